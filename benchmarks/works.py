"""The works that all programs run: weights, tokens and initial adapters, written once to a folder.

    model/          config.json and model.safetensors in Hugging Face's layout, float32
    adapters.npz    "q.a" f32[L, in, r], "q.b" f32[L, r, out], ... as PEFT initialises them: a Kaiming-uniform, b zero
    examples.npz    tokens i32[N, T] padded with 0, lengths i64[N], prompt_lengths i32[N], order i64[C, S, B]
    work.json       the numbers of the training

`order` is the order that this project's engine draws in its first round, so that the engine can draw its data as usual and
still trains on the same batches as the other programs.

Axis letters: N examples, C clients, S local steps, B batch, T tokens, L layers, r rank.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from devft_jax import RunConfig
from devft_jax.data import Examples, build_federated_data, gather_batch
from devft_jax.errors import InputError
from devft_jax.models import ModelConfig, init_base, load_pretrained, save_pretrained
from devft_jax.training.submodels import bundled_model

sys.path.insert(0, str(Path(__file__).parent / "programs"))

from engine import first_order
from protocol import TARGETS, write_arrays

TRAINING = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}
"""AdamW of every work, fresh for every client; no dropout and no clipping."""


@dataclass(frozen=True, kw_only=True)
class WorkShape:
    """The sizes of a work.

    Attributes:
      model: of random weights; None for one in a folder.
      length: of every row of random tokens; None for real text.
      longest: number of tokens to which an example of real text is truncated.
      bundled: whether the folder is the bundled base's; otherwise it is named with the command.
      tolerance: largest difference of an aggregated adapter's element from the PEFT loop's that still counts as equal.
        AdamW divides gradients by their own size, so that rounding in the near-zero ones becomes visible.
    """

    name: str
    model: ModelConfig | None
    rank: int
    alpha: float
    clients: int
    steps: int
    batch: int
    length: int | None
    tolerance: float
    longest: int = 512
    bundled: bool = True


TINY = ModelConfig(vocabulary=128, width=32, feed_forward=88, layers=2, heads=4, kv_heads=2, head_size=8, max_length=512)
SMALL = ModelConfig(vocabulary=768, width=128, feed_forward=352, layers=4, heads=4, kv_heads=4, head_size=32, max_length=512)

WORKS = {
    shape.name: shape
    for shape in (
        WorkShape(name="micro", model=TINY, rank=4, alpha=8.0, clients=4, steps=2, batch=2, length=8, tolerance=2e-5),
        WorkShape(name="tiny", model=TINY, rank=8, alpha=16.0, clients=256, steps=10, batch=2, length=16, tolerance=2e-5),
        WorkShape(name="small", model=SMALL, rank=8, alpha=16.0, clients=32, steps=10, batch=4, length=64, tolerance=1e-4),
        WorkShape(name="dolly", model=None, rank=16, alpha=32.0, clients=8, steps=10, batch=8, length=None, tolerance=5e-4),
        WorkShape(
            name="pretrained",
            model=None,
            rank=16,
            alpha=32.0,
            clients=2,
            steps=4,
            batch=4,
            length=None,
            # The PEFT loop on two threads differs by 5e-4 from itself on one: more elements have a gradient near zero.
            tolerance=2e-3,
            longest=256,
            bundled=False,
        ),
    )
}


def write_work(folder: Path, shape: WorkShape, *, dolly: str | None = None, model: str | None = None, seed: int = 0) -> Path:
    """Write a work into `folder`.

    Args:
      dolly: the data of a work of real text, named as for `devft run --data`. Each file is a client; a single source is
        split at random.
      model: folder of the model of a work that is not about the bundled base.

    Raises:
      InputError: the data cannot be read, or has too few clients or examples.
    """
    rng = np.random.default_rng(seed)
    if shape.model is None:
        source = str(bundled_model()) if shape.bundled else model
        if source is None:
            raise InputError(f"the work {shape.name} needs the folder of a model; set --model.")
        found = load_pretrained(source, dtype="float32")
        config, base = found.config, found.base
        examples = real_examples(shape, dolly, found.tokenizer, rng)
    else:
        config, base = shape.model, init_base(jax.random.key(seed), shape.model)
        examples = random_examples(shape, rng)
    save_pretrained(folder / "model", config, base, dtype="float32")
    write_arrays(folder / "adapters.npz", initial_adapters(config, shape.rank, rng))
    order = first_order(shape.clients, shape.steps, shape.batch)
    write_arrays(folder / "examples.npz", {"order": order, **examples})
    settings = {"name": shape.name, "rank": shape.rank, "alpha": shape.alpha, **TRAINING}
    (folder / "work.json").write_text(json.dumps(settings, indent=1))
    return folder


def initial_adapters(config: ModelConfig, rank: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """PEFT's fresh factors: a uniform within 1/sqrt(in), which is Kaiming's bound for a = sqrt(5), and b zero."""
    factors = {}
    for name in TARGETS:
        fan_in, fan_out = config.projection_shape(name)
        bound = fan_in**-0.5
        factors[f"{name}.a"] = rng.uniform(-bound, bound, (config.layers, fan_in, rank)).astype(np.float32)
        factors[f"{name}.b"] = np.zeros((config.layers, rank, fan_out), np.float32)
    return factors


def random_examples(shape: WorkShape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Full rows of uniform random tokens, all of which except the first are predicted."""
    assert shape.model is not None
    assert shape.length is not None
    count = shape.clients * shape.steps * shape.batch
    return {
        "tokens": rng.integers(0, shape.model.vocabulary, (count, shape.length)).astype(np.int32),
        "lengths": np.full(count, shape.length, np.int64),
        "prompt_lengths": np.ones(count, np.int32),
    }


def real_examples(shape: WorkShape, data: str | None, tokenizer: object, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For every client as many of its own examples as it trains on, drawn at random."""
    if data is None:
        raise InputError(f"the work {shape.name} needs Dolly's text; set --dolly.")
    wanted = shape.steps * shape.batch
    options = RunConfig(data=data, clients=shape.clients, max_length=shape.longest, test_fraction=0.0)
    found = build_federated_data(options, tokenizer)
    if len(found.clients) < shape.clients or min(len(client.indices) for client in found.clients) < wanted:
        raise InputError(f"the data {data!r} has fewer than {shape.clients} clients of {wanted} examples; use more data.")
    chosen = [rng.choice(client.indices, wanted, replace=False) for client in found.clients[: shape.clients]]
    return as_arrays(found.train.take(np.concatenate(chosen)))


def as_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """Examples with one answer each, as a work holds them."""
    tokens, answer = gather_batch(examples, np.arange(len(examples)), int(examples.lengths.max()))
    inside = np.arange(tokens.shape[1]) < examples.lengths[:, None]
    after = inside & (np.arange(tokens.shape[1]) >= examples.prompt_lengths[:, None])
    if not np.array_equal(answer, after):
        raise InputError("the data holds conversations; a work needs examples of one prompt and one answer.")
    return {"tokens": tokens, "lengths": examples.lengths, "prompt_lengths": examples.prompt_lengths}

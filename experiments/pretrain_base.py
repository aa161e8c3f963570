"""Pretrain the small LLaMA of this package: resumable full-parameter training with the package's forward pass.

The text is a mixture of microtasks and prose. Microtasks are written in other formats than the instruction template, so that
the model learns the skills here and the format in tuning. Prose is read from `--text` files (JSON Lines with a `text` field,
gzip allowed). The words of a microtask's question are random and teach nothing, so only one in `--question-stride` of its
tokens counts in the loss; answers and prose count in full. Every batch is a function of (seed, step), so a run that is
resumed by the same command gives the same result as an uninterrupted one. Matrices are trained with Muon (Jordan et al.
2024), all other parameters with AdamW, both from optax.

    python experiments/pretrain_base.py --out runs/base --text classics.jsonl.gz

Writes a Hugging Face folder (`config.json`, `model.safetensors` in bfloat16, `tokenizer.json`) and `training.json` with
the losses for the model card.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax import contrib
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from devft_jax.data.microtasks.generate import Document, solved_documents
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, init_base
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.typing import PyTree

Streams: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""By name ("problems", "prose"): all tokens of a text, concatenated, u16[N], and which of them count in full, bool[N]."""

BOS, EOS = 1, 2
TOKENIZER_SAMPLE = 4_000_000


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its checkpoints")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="JSON Lines files with a `text` field")
    parser.add_argument(
        "--text-field",
        default="shelf=children",
        help="keep records with field=value; empty keeps all",
    )
    parser.add_argument("--text-characters", type=int, default=12_000_000, help="characters of prose to read")
    parser.add_argument("--text-share", type=float, default=0.25, help="share of the rows of a batch that are prose")
    parser.add_argument(
        "--question-stride", type=int, default=5, help="one of this many tokens of a microtask's question counts in the loss"
    )
    parser.add_argument("--documents", type=int, default=160_000, help="microtask documents to generate")
    parser.add_argument("--steps", type=int, default=4_000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--vocabulary", type=int, default=4096, help="size of the tokenizer's vocabulary")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--feed-forward", type=int, default=352)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations and checkpoints")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="dtype of activations and matrix products"
    )
    parser.add_argument("--devices", type=int, default=2, help="host devices when there is no accelerator")
    return parser.parse_args()


def read_prose(options: argparse.Namespace) -> list[str]:
    """Passages of the requested prose, split between paragraphs so that no document is much longer than the others."""
    field, _, value = options.text_field.partition("=")
    passages: list[str] = []
    characters = 0
    for path in options.text:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                if field and record.get(field) != value:
                    continue
                for paragraph in record["text"].split("\n\n"):
                    if len(paragraph) >= 80 and not paragraph.startswith(("#", "[", "<", "|")):
                        passages.append(" ".join(paragraph.split()))
                        characters += len(passages[-1])
                        if characters >= options.text_characters:
                            return passages
    return passages


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer in which every digit is a token, so that a number's tokens do not depend on its context."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # A single text begins with <s>, as in the training data.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json` and the configuration that lets transformers find the special tokens."""
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=1) + "\n")


def token_stream(tokenizer: Tokenizer, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """All documents, concatenated, each between `<s>` and `</s>`: tokens u16[N] and which of them count in full, bool[N]."""
    tokens, counts = [], []
    encodings = tokenizer.encode_batch([text for text, _ in documents], add_special_tokens=False)
    for document, encoding in zip(documents, encodings, strict=True):
        ends = np.asarray([end for _, end in encoding.offsets])
        full = np.zeros(len(ends), bool)
        for start, end in document.answers:
            full |= (start < ends) & (ends <= end)
        tokens.append(np.asarray([BOS, *encoding.ids, EOS], np.uint16))
        counts.append(np.concatenate([[False], full, [True]]))
    return np.concatenate(tokens), np.concatenate(counts)


def prepare(options: argparse.Namespace) -> tuple[Tokenizer, Streams]:
    """The tokenizer and, per stream, its tokens and which of them count in full; built once and stored in the output
    folder."""
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "streams.npz"
    if not stored.exists():
        problems = list(solved_documents(options.documents, options.seed))
        prose = [Document(text, ((0, len(text)),)) for text in read_prose(options)]
        sample: list[str] = []
        characters = 0
        for pair in zip(problems, prose or problems, strict=False):
            sample.extend(document.text for document in pair)
            characters += sum(len(document.text) for document in pair)
            if characters > TOKENIZER_SAMPLE:
                break
        tokenizer = train_tokenizer(sample, options.vocabulary)
        save_tokenizer(tokenizer, folder)
        arrays = {}
        for name, documents in (("problems", problems), ("prose", prose)):
            if documents:
                arrays[name], arrays[f"{name}_full"] = token_stream(tokenizer, documents)
        np.savez(stored, **arrays)  # type: ignore[arg-type]
    arrays = dict(np.load(stored))
    streams: Streams = {name: (arrays[name], arrays[f"{name}_full"]) for name in ("problems", "prose") if name in arrays}
    return Tokenizer.from_file(str(folder / "tokenizer.json")), streams


def make_batch(
    options: argparse.Namespace, streams: Streams, step: int, *, held_out: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random windows: tokens i32[batch, length], which count in full and which count in this step, both bool.

    The last fiftieth of each stream is held out. Every prose row counts in full.
    """
    generator = np.random.default_rng([options.seed, int(held_out), step])
    prose_rows = round(options.text_share * options.batch) if "prose" in streams else 0
    rows, full = [], []
    for name, count in (("prose", prose_rows), ("problems", options.batch - prose_rows)):
        if count == 0:
            continue
        tokens, counts = streams[name]
        border = len(tokens) - len(tokens) // 50
        low, high = (border, len(tokens)) if held_out else (0, border)
        windows = generator.integers(low, high - options.length, count)[:, None] + np.arange(options.length)
        rows.append(tokens[windows])
        full.append(counts[windows])
    answers = np.concatenate(full)
    return (
        np.concatenate(rows).astype(np.int32),
        answers,
        answers | (generator.random(answers.shape) * options.question_stride < 1),
    )


def make_optimizer(options: argparse.Namespace) -> optax.GradientTransformation:
    """Muon for the layers' matrices, AdamW for the rest; warm-up, constant, then a linear fall to zero."""
    warm, fall = min(200, options.steps // 10), options.steps // 3
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, options.learning_rate, warm),
            optax.constant_schedule(options.learning_rate),
            optax.linear_schedule(options.learning_rate, 0.0, fall),
        ],
        [warm, options.steps - fall],
    )

    def dimensions(base: Base) -> Base:
        per_layer = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        nothing = jax.tree.map(lambda leaf: None, base)
        blocks = jax.tree.map(lambda leaf: per_layer if leaf.ndim == 3 else None, base.blocks)
        return nothing.replace(blocks=blocks)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        contrib.muon(
            schedule,
            weight_decay=0.02,
            muon_weight_dimension_numbers=dimensions,
            consistent_rms=0.2,
            adam_b2=0.98,
        ),
    )


class Programs(NamedTuple):
    """The compiled programs.

    Attributes:
      update: (base, state, tokens, counted) to the new base and state, and the loss; donates the buffers of the old base and
        state.
      evaluate: (base, tokens, counted) to the loss.
    """

    update: Callable[[Base, PyTree, jax.Array, jax.Array], tuple[Base, PyTree, jax.Array]]
    evaluate: Callable[[Base, jax.Array, jax.Array], jax.Array]


def compile_programs(config: ModelConfig, optimizer: optax.GradientTransformation, compute: Compute) -> Programs:
    """One step of training, and the loss of a batch."""

    def loss(base: Base, tokens: jax.Array, counted: jax.Array) -> jax.Array:
        return completion_loss(config, base, None, tokens, counted, compute=compute)

    def update(base: Base, state: PyTree, tokens: jax.Array, counted: jax.Array) -> tuple[Base, PyTree, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(base, tokens, counted)
        updates, state = optimizer.update(gradients, state, base)
        return optax.apply_updates(base, updates), state, value

    return Programs(jax.jit(update, donate_argnums=(0, 1)), jax.jit(loss))


def held_out_losses(
    options: argparse.Namespace, streams: Streams, programs: Programs, base: Base, split: NamedSharding
) -> dict[str, float]:
    """Mean loss of eight held-out batches of each stream, and of the answers of problems alone."""
    found: dict[str, list[float]] = {}
    for name in streams:
        only = argparse.Namespace(**{**vars(options), "text_share": float(name == "prose")})
        for index in range(8):
            tokens, full, _ = make_batch(only, streams, index, held_out=True)
            kinds = {name: np.ones_like(full)} | ({"answers": full} if name == "problems" else {})
            for kind, counted in kinds.items():
                value = programs.evaluate(base, *jax.device_put((tokens, counted), split))
                found.setdefault(kind, []).append(float(value))
    return {f"held_out_{name}": float(np.mean(values)) for name, values in found.items()}


class Records:
    """The files of a training run: checkpoints, the history of losses, and the model's folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Open the folder of the model."""
        self.options = options
        self.file = options.out / "training.json"
        self.history: list[dict[str, float]] = []
        self.manager = ocp.CheckpointManager(
            (options.out / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
        )

    def restore(self, base: Base, state: PyTree) -> tuple[int, Base, PyTree]:
        """Step, base and state of the last checkpoint; without one, 0 and the arguments."""
        step = self.manager.latest_step() or 0
        if not step:
            return 0, base, state
        restored = self.manager.restore(step, args=ocp.args.StandardRestore({"base": base, "state": state}))
        self.history = [row for row in json.loads(self.file.read_text())["history"] if row["step"] <= step]
        return step, restored["base"], restored["state"]

    def save(self, config: ModelConfig, base: Base, state: PyTree, row: dict[str, float]) -> None:
        """Add a row to the history, and write history, checkpoint and model as of its step."""
        self.history.append(row)
        print(json.dumps(row), flush=True)
        self.manager.save(int(row["step"]), args=ocp.args.StandardSave({"base": base, "state": state}))
        described = {key: str(value) for key, value in vars(self.options).items()}
        self.file.write_text(json.dumps({"options": described, "history": self.history}, indent=1) + "\n")
        save_pretrained(self.options.out, config, base, dtype="bfloat16", bos_id=BOS, eos_id=EOS)


def main() -> None:
    """Train, evaluating and saving at intervals."""
    options = arguments()
    jax.config.update("jax_num_cpu_devices", options.devices)
    tokenizer, streams = prepare(options)
    config = ModelConfig(
        vocabulary=tokenizer.get_vocab_size(),
        width=options.width,
        feed_forward=options.feed_forward,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        head_size=options.width // options.heads,
        max_length=512,
    )
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    optimizer = make_optimizer(options)
    programs = compile_programs(config, optimizer, Compute(dtype=options.dtype))
    records = Records(options)
    initial = jax.device_put(init_base(jax.random.key(options.seed), config), everywhere)
    start, base, state = records.restore(initial, jax.device_put(optimizer.init(initial), everywhere))

    began = time.perf_counter()
    running: list[float] = []
    for step in range(start + 1, options.steps + 1):
        tokens, _, counted = jax.device_put(make_batch(options, streams, step - 1), split)
        base, state, value = programs.update(base, state, tokens, counted)
        # Fetched in every step: on host devices two programs with collectives that run at once can deadlock.
        running.append(float(value))
        if step % options.every and step < options.steps:
            continue
        row = {
            "step": step,
            "tokens": step * options.batch * options.length,
            "loss": float(np.mean(running)),
            **held_out_losses(options, streams, programs, base, split),
        }
        records.save(config, base, state, row | {"seconds": round(time.perf_counter() - began, 1)})
        running.clear()


if __name__ == "__main__":
    main()

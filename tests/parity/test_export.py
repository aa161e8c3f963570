"""Merged, sharded and submodel exports load in transformers and PEFT, with our logits within 1e-4 in float32."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")
pytest.importorskip("peft", reason="parity needs peft: pip install 'devft-jax[parity]'")

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.exporting.export import export
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward
from devft_jax.models.lora import init_lora
from devft_jax.models.quantization import quantize_base
from devft_jax.reporting import Progress
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.parts import build_parts
from devft_jax.training.trainer import Trainer

pytestmark = pytest.mark.parity

CONFIG = ModelConfig(vocabulary=101, width=32, feed_forward=48, layers=4, heads=4, kv_heads=2, head_size=10)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocabulary, (2, 12))
FAMILIES = {
    "llama": {},
    "mistral": {"family": "mistral", "sliding_window": 8},
    "qwen2": {"family": "qwen2", "biases": ("q", "k", "v"), "tied_head": True},
    "qwen3": {"family": "qwen3", "qk_norm": True},
}


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.float().eval()(torch.from_numpy(TOKENS)).logits.numpy()


def transformers_logits(folder) -> np.ndarray:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return torch_logits(model)


def large_base(config: ModelConfig):
    return jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 2 else leaf, init_base(jax.random.key(0), config))


def trained(adapter: Adapter) -> Adapter:
    noise = jax.random.normal(jax.random.key(2), (256,))
    lora = {name: factors.replace(b=0.1 * jnp.resize(noise, factors.b.shape)) for name, factors in adapter.lora.items()}
    return adapter.replace(lora=lora)


@pytest.mark.parametrize("kind", [None, "int4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000], ids=["one file", "shards"])
def test_merged_models(tmp_path, family, shard_bytes, kind):
    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    base = large_base(config)
    base = base if kind is None else quantize_base(base, kind)
    adapter = trained(init_lora(jax.random.key(1), config, rank=4, alpha=12.0, targets=PROJECTIONS))
    save_pretrained(tmp_path, config, base, adapter=adapter, dtype="float32", max_shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_bytes < 10**9
    expected = np.asarray(forward(config, base, adapter, jnp.asarray(TOKENS)))
    assert np.abs(expected - forward(config, base, None, jnp.asarray(TOKENS))).max() > 0.05
    np.testing.assert_allclose(transformers_logits(tmp_path), expected, atol=1e-4)
    loaded = load_pretrained(tmp_path)
    assert loaded.config == config
    np.testing.assert_allclose(forward(config, loaded.base, None, jnp.asarray(TOKENS)), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shards_of_every_type_are_those_of_transformers(tmp_path, dtype):
    """What transformers writes from our file in shards of the same size, tensor by tensor."""
    base = large_base(CONFIG)
    save_pretrained(tmp_path / "one", CONFIG, base, dtype=dtype)
    save_pretrained(tmp_path / "ours", CONFIG, base, dtype=dtype, max_shard_bytes=30_000)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == getattr(torch, dtype)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    sizes = [
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
        for name in ("ours", "theirs")
    ]
    assert sizes[0] == sizes[1]
    bases = [load_pretrained(tmp_path / name).base for name in ("one", "ours", "theirs")]
    for other in bases[1:]:
        jax.tree.map(np.testing.assert_array_equal, bases[0], other)


@pytest.fixture(scope="module")
def run(tmp_path_factory, word_tokenizer):
    """The folder of a run in its first stage, in which every factor has learned something."""
    folder = tmp_path_factory.mktemp("run")
    config = dataclasses.replace(CONFIG, max_length=64)
    save_pretrained(folder / "base", config, large_base(config), dtype="float32", bos_id=1, eos_id=2)
    word_tokenizer(words=tuple("abcdefgh123")).save_pretrained(folder / "base")
    (folder / "data.json").write_text(json.dumps([{"instruction": "a", "output": "b"}] * 8))
    settings = RunConfig(
        model=str(folder / "base"),
        data=str(folder / "data.json"),
        clients=2,
        template="completion",
        capacities=(2, 4),
        rounds=2,
        clients_per_round=1,
        max_length=16,
        rank=4,
        alpha=12.0,
        targets=PROJECTIONS,
        devices=1,
    )
    trainer = Trainer(build_parts(settings, progress=Progress(quiet=True)))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    state.server = trained(state.server)
    with RunFolder(folder / "run") as written:
        written.write_json("config.json", to_plain(settings))
        trainer.save(written, state)
    return folder / "run", trainer, state


def test_a_runs_exports(tmp_path, run):
    folder, trainer, state = run
    tokens = jnp.asarray(TOKENS)
    config, base = trainer.parts.model.config, trainer.parts.model.base
    full, small = trainer.transferred(state), state.server
    plain = forward(config, base, full, tokens)
    fused = forward(config, state.base, small, tokens)
    assert np.abs(plain - fused).max() > 0.1

    export(folder, tmp_path / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    np.testing.assert_allclose(torch_logits(model), plain, atol=1e-4)
    export(folder, tmp_path / "merged", form="merged", dtype="float32")
    np.testing.assert_allclose(transformers_logits(tmp_path / "merged"), plain, atol=1e-4)
    export(folder, tmp_path / "shards", form="submodel", dtype="float32", max_shard_bytes=20_000)
    np.testing.assert_allclose(transformers_logits(tmp_path / "shards"), fused, atol=1e-4)
    export(folder, tmp_path / "both", form="submodel-adapter", dtype="float32")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "both" / "adapter")
    np.testing.assert_allclose(torch_logits(model), fused, atol=1e-4)
    bare = forward(config, state.base, None, tokens)
    np.testing.assert_allclose(transformers_logits(tmp_path / "both"), bare, atol=1e-4)

    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "merged"), trainer.parts.model.tokenizer
    assert ours("a b 1")["input_ids"] == theirs("a b 1")["input_ids"]
    assert import_peft(tmp_path / "adapter", config).scale == full.scale

"""Folders that can be asked: a tiny model's, a finished run's and an adapter's."""

import json
from pathlib import Path

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.huggingface.writing import save_pretrained
from tests.models.conftest import random_adapter, random_base

MODEL = ModelConfig(vocabulary=64, width=16, feed_forward=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=64)


def write_folders(root: Path, word_tokenizer) -> dict[str, str]:
    """A model's folder, an adapter's, and that of a finished run of both, by kind."""
    model, run = root / "model", root / "run"
    save_pretrained(model, MODEL, random_base(MODEL), dtype="float32")
    word_tokenizer(words=tuple("abcdefghijklmnopqrstuvwxyz") + tuple(map(str, range(35)))).save_pretrained(model)
    export_peft(random_adapter(MODEL, ("q", "v")), run / "adapter")
    config = RunConfig(model=str(model), template="completion", rank=3, alpha=6.0)
    (run / "config.json").write_text(json.dumps(to_plain(config)))
    return {"model": str(model), "run": str(run), "adapter": str(run / "adapter")}

"""A run small enough for a test: a random tiny model, three clients with letters to say again, and held-out ones."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from devft_jax.config.run_config import RunConfig
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, init_base
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.reporting import Progress

MODEL = ModelConfig(vocabulary=64, width=16, feed_forward=24, layers=4, heads=4, kv_heads=2, head_size=4, max_length=64)
WORDS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
# One algorithm of each kind of state: stacks, rows, ranks, moments, masks, control variates, residuals, a network.
KINDS = ("flora", "fedsa-lora", "hetlora", "fedadam", "flasc", "scaffold", "fedex-lora", "c2a")


def write_run_inputs(folder: Path, word_tokenizer: Any, model: ModelConfig = MODEL, base: Base | None = None) -> RunConfig:
    """Fill `folder` with model/, client_0.json to client_2.json and test.json, and give the configuration of a run on them.

    `word_tokenizer` is the fixture of tests/conftest.py; `base` are the model's weights, fresh ones by default.
    """
    base = init_base(jax.random.key(0), model) if base is None else base
    save_pretrained(folder / "model", model, base, dtype="float32", bos_id=1, eos_id=2)
    word_tokenizer(words=WORDS).save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    for name, count in (("client_0", 24), ("client_1", 12), ("client_2", 17), ("test", 10)):
        letters = ["abcdefgh"[int(index)] for index in generator.integers(0, 8, count)]
        records = [{"instruction": letter, "output": f"{letter} 1"} for letter in letters]
        (folder / f"{name}.json").write_text(json.dumps(records))
    return RunConfig(
        model=str(folder / "model"),
        data=str(folder / "client_*.json"),
        test_data=str(folder / "test.json"),
        template="completion",
        capacities=(1, 2, 4),
        rounds=6,
        clients_per_round=2,
        local_steps=2,
        batch_size=3,
        max_length=16,
        rank=4,
        alpha=8.0,
        learning_rate=(0.05,),
        checkpoint_every=2,
        devices=2,
    )


def flags(config, **changes):
    """The command line of a configuration's fields that differ from the defaults."""
    words = []
    for field in dataclasses.fields(RunConfig):
        value = changes.get(field.name, getattr(config, field.name))
        if value != field.default:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{field.name.replace('_', '-')}", text]
    return words


def adapter_bytes(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


class CopiedInRound(Progress):
    """After a round, before it is saved, it copies the run's folder: what a process killed then would leave."""

    def __init__(self, round_index: int, folder: str | Path, copy: Path, *, quiet: bool = True):
        super().__init__(quiet=quiet)
        self.last, self.folder, self.copy = round_index, folder, copy

    def round(self, row, *rest):
        super().round(row, *rest)
        if row.round == self.last:
            shutil.copytree(self.folder, self.copy)

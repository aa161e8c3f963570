"""Whole tiny runs of an algorithm, with growth, interrupted, and without: what every algorithm has to stand."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from devft_jax.config import RunConfig
from devft_jax.reporting import Progress
from devft_jax.run import Run, train
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)


def tiny_config(folder: Path, word_tokenizer: Any, name: str, **options: Any) -> RunConfig:
    """Two rounds of an algorithm on the tiny run's model and data, a stage of two layers and one of four."""
    written = write_run_inputs(folder, word_tokenizer)
    return dataclasses.replace(
        written,
        algorithm=name,
        capacities=(2, 4),
        rounds=2,
        targets=("v", "down"),
        devices=1,
        checkpoint_every=1,
        **options,
    )


def exported(run: Run) -> bytes:
    """The global adapter's file."""
    return (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def run_and_go_on(config: RunConfig, folder: Path) -> Run:
    """A run with DevFT, whose last stage is the whole model; cut back by its last round it goes on bit for bit."""
    chosen = dataclasses.replace(config, growth="devft", out=str(folder / "run"))
    run = train(chosen, progress=QUIET)
    whole, summary = exported(run), run.summary
    assert summary["rounds"] == 2
    assert np.isfinite([summary["final_loss"], summary["base_loss"]]).all()
    assert summary["bytes_up"] > 0
    # As if killed in the last round.
    shutil.rmtree(run.folder / "checkpoints" / "2")
    again = train(chosen, progress=QUIET)
    assert exported(again) == whole
    assert again.summary["final_loss"] == summary["final_loss"]
    return again


def run_without_growth(config: RunConfig, folder: Path) -> Run:
    """A run at full depth from the first round on."""
    run = train(dataclasses.replace(config, growth="end-to-end", out=str(folder / "whole")), progress=QUIET)
    assert np.isfinite(run.summary["final_loss"])
    assert [stage["layers"] for stage in run.summary["stages"]] == [4]
    return run

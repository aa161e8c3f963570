"""Runs whose devices hold the base together, against the same runs with all of it on every device."""

import dataclasses

import numpy as np
import pytest

from devft_jax.config import RunConfig
from devft_jax.reporting import Progress
from devft_jax.run import train
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture
def config(tmp_path, word_tokenizer) -> RunConfig:
    """Two stages of two and four layers, each of two rounds, with dropout, passes of one example and three lengths."""
    inputs = write_run_inputs(tmp_path, word_tokenizer)
    return dataclasses.replace(
        inputs, capacities=(2, 4), rounds=4, devices=1, dropout=0.25, clients_per_round=3, optimizer="sgd", evaluate_every=1
    )


def losses(run):
    stages = [(stage["loss_start"], stage["loss_end"], stage["loss_full_after_transfer"]) for stage in run.summary["stages"]]
    return np.array([run.summary["base_loss"], *(loss for stage in stages for loss in stage)])


def run_of(config, folder, **options):
    return train(dataclasses.replace(config, out=str(folder), **options), progress=QUIET)


def test_a_run_on_a_divided_base_has_the_losses_of_one_device(config, tmp_path):
    whole = run_of(config, tmp_path / "whole")
    divided = run_of(config, tmp_path / "divided", devices=8, model_shards=2)
    np.testing.assert_allclose(losses(divided), losses(whole), rtol=1e-5)

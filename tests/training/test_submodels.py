"""Runs whose devices hold the base together, against the same runs with all of it on every device."""

import dataclasses
import io

import jax
import numpy as np
import pytest

from devft_jax.config.execution import resolve_compute
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.models.weights import ShardedWeight
from devft_jax.planning.planner import make_plan
from devft_jax.planning.text import to_text
from devft_jax.reporting import Progress
from devft_jax.training.parts import build_parts
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from devft_jax.training.submodels import open_model
from devft_jax.training.trainer import Trainer
from tests.tiny_run import MODEL, write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture
def config(tmp_path, word_tokenizer) -> RunConfig:
    """Two stages, of two layers and of four, with passes of one example; three clients on eight devices."""
    return dataclasses.replace(
        write_run_inputs(tmp_path, word_tokenizer), capacities=(2, 4), rounds=4, clients_per_round=3, optimizer="sgd"
    )


def losses(run):
    """Of the untuned base and around every stage, on held-out data."""
    names = ("loss_start", "loss_end", "loss_full_after_transfer")
    return np.array([run.summary.base_loss, *(getattr(stage, name) for stage in run.summary.stages for name in names)])


def both(config, tmp_path, **options):
    """The run on one device, and on four groups of two."""
    config = dataclasses.replace(config, **options)
    whole = train(dataclasses.replace(config, devices=1, out=str(tmp_path / "whole")), progress=QUIET)
    choices = {"devices": 8, "model_shards": 2, "out": str(tmp_path / "divided")}
    return whole, train(dataclasses.replace(config, **choices), progress=QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"evaluate_every": 1, "evaluate_full": True},
        pytest.param({"quantization": "nf4", "dropout": 0.25}, marks=pytest.mark.slow),
        pytest.param({"quantization": "int8", "fuse_from": "original"}, marks=pytest.mark.slow),
        pytest.param({"quantization": "int8", "fused_precision": "float"}, marks=pytest.mark.slow),
        # It takes what it starts from out of the stage's frozen weights.
        pytest.param({"algorithm": "federa"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "federa", "growth": "top-grow"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "central"}, marks=pytest.mark.slow),
        pytest.param({"growth": "top-grow", "prefix_cache": "on"}, marks=pytest.mark.slow),
        # It measures the layers first.
        pytest.param({"growth": "skip-grow", "quantization": "nf4"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_on_a_divided_base_has_the_losses_of_one_device(config, tmp_path, options):
    whole, divided = both(config, tmp_path, **options)
    np.testing.assert_allclose(losses(divided), losses(whole), rtol=1e-4)
    assert divided.summary.stages[0].assign == whole.summary.stages[0].assign
    influence = [run.summary.block_influence for run in (whole, divided)]
    if influence[0] is not None:
        # A difference from one, so that what cosines lose by rounding stands absolutely.
        np.testing.assert_allclose(influence[1], influence[0], atol=5e-6)


@pytest.mark.slow
def test_a_run_of_whole_bases_goes_on_and_is_replayed_on_a_divided_base(config, tmp_path):
    config, stream = dataclasses.replace(config, out=str(tmp_path / "run"), devices=4), io.StringIO()
    # Three participants have three devices, and four where four hold the base together.
    train(config, progress=QUIET)
    resumed = train(dataclasses.replace(config, rounds=5, model_shards=4), progress=Progress(stream=stream))
    assert "model_shards was 1 and is 4: results will be equal up to rounding but not bit for bit." in stream.getvalue()
    assert resumed.summary.resumed_after == [4]
    assert np.isfinite(losses(resumed)).all()
    assert replay(resumed.folder, client="client_0", round=5, progress=QUIET).first_break is None


def test_the_base_stays_in_host_memory_and_devices_have_parts(config):
    shared = dataclasses.replace(config, devices=4, model_shards=4, quantization="nf4")
    trainer = Trainer(build_parts(shared, progress=QUIET))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(trainer.parts.model.base))
    state = trainer.begin()
    assert trainer.begin_stage(state, [])
    for base in (trainer.parts.base, state.base):
        for weight in (base.embed, base.head, base.blocks.q, base.blocks.down):
            assert isinstance(weight, ShardedWeight)
            for leaf in jax.tree.leaves(weight):
                assert leaf.addressable_data(0).size == leaf.size // 4
    whole, _ = open_model(dataclasses.replace(config, quantization="nf4"), resolve_compute(config), None)
    for part, own in zip(jax.tree.leaves(trainer.parts.model.base), jax.tree.leaves(whole.base), strict=True):
        np.testing.assert_array_equal(part, own)


def test_a_run_says_what_each_device_holds_and_what_could_not_be_divided(config, capfd):
    stream = io.StringIO()
    build_parts(dataclasses.replace(config, devices=4, model_shards=4), progress=Progress(stream=stream))
    assert "4 devices hold the base together: " in stream.getvalue()
    assert "warning" not in stream.getvalue()
    build_parts(dataclasses.replace(config, devices=3, model_shards=3), progress=Progress(stream=stream))
    assert "model_shards 3 divides no dimension of embed, head, q, k, v, o, so every device holds them whole" in (
        stream.getvalue()
    )


def test_a_plan_divides_the_base_and_says_so(config):
    plans = [make_plan(dataclasses.replace(config, devices=4, model_shards=shards), architecture=MODEL) for shards in (1, 4)]
    weights = [plan.stages[0].simulator.weights for plan in plans]
    assert weights[1] < 0.5 * weights[0]
    assert plans[0].stages[0].client == plans[1].stages[0].client
    assert "the simulator's 4 device(s), of which 4 hold the base together" in to_text(plans[1])


def test_devices_that_are_no_whole_groups_are_refused_before_anything_is_read(config):
    for wrong in ({"devices": 6}, {"devices": 6, "model": "nothing-here"}):
        with pytest.raises(InputError, match="devices 6 is not a multiple of model_shards 4; use 4 devices, or"):
            train(dataclasses.replace(config, model_shards=4, **wrong), progress=QUIET)
    with pytest.raises(InputError, match="devices 6 is not a multiple of model_shards 4"):
        make_plan(dataclasses.replace(config, model_shards=4, devices=6), architecture=MODEL)

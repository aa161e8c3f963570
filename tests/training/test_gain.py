"""Stages that end because the next one promises as much per cost: what is measured, and what a run makes of it."""

import dataclasses
import json

import numpy as np
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.errors import InputError
from devft_jax.models.lora import weight_changes
from devft_jax.planning.options import PlanOptions
from devft_jax.planning.planner import make_plan
from devft_jax.planning.text import to_text
from devft_jax.reporting import Progress
from devft_jax.storage.result_records import GainRecord
from devft_jax.training.alignment import alignment
from devft_jax.training.gain import measure_gain
from devft_jax.training.parts import build_parts
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from devft_jax.training.trainer import Trainer
from tests.tiny_run import CopiedInRound, adapter_bytes, flags

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def chosen(config):
    return dataclasses.replace(
        config, stage_end="gain", gain_every=1, probe_data=config.test_data, probe_examples=6, devices=1, test_data=None
    )


def measured_alone(parts, state, full):
    """The alignment of the state's stage with the full model of state `full`, each gradient measured by itself."""
    view, layers = parts.algorithm.view, parts.model.config.layers
    whole = parts.slopes(parts.base, layers, weight_changes(view(full))).gradient
    own = parts.slopes(state.base, state.layer_map.num_groups, weight_changes(view(state.server))).gradient
    return alignment(state.layer_map, own, whole, mode=parts.config.transfer)


@pytest.mark.parametrize(
    "choices",
    [
        {"capacities": (2, 3), "grouping": "random", "quantization": "int8"},
        {"growth": "top-grow", "capacities": (1, 3)},
        {"growth": "skip-grow", "capacities": (2, 3)},
    ],
    ids=("devft", "top-grow", "skip-grow"),
)
def test_what_is_measured_is_what_the_next_stage_begins_with(chosen, choices):
    trainer = Trainer(build_parts(dataclasses.replace(chosen, learning_rate=(0.5,), rounds=4, **choices), progress=QUIET))
    state, history = trainer.begin(), []
    assert trainer.advance(state, history)
    history.append(trainer.round(state))
    found = measure_gain(trainer.parts, state, history)
    assert found.alignment == pytest.approx(measured_alone(trainer.parts, state, trainer.transferred(state)), abs=1e-4)
    before = state.layer_map
    state.totals.stage_rounds = [1, 3]
    assert trainer.advance(state, history)
    assert state.stage == 1
    assert found.next_layers == state.layer_map.num_groups == 3 > before.num_groups
    # The adapter is not zero any more, and the map of the next stage is the one that was measured.
    assert any(np.abs(leaf).max() > 1e-3 for leaf in weight_changes(trainer.parts.algorithm.view(state.full)).values())
    assert found.next_alignment == pytest.approx(measured_alone(trainer.parts, state, state.full), abs=1e-4)
    assert state.totals.stages[0].gains == [found]


def test_a_run_grows_when_the_next_stage_pays_and_a_resumed_run_grows_alike(chosen, tmp_path, capfd):
    chosen = dataclasses.replace(
        chosen,
        growth="top-grow",
        capacities=(1, 4),
        rounds=8,
        gain_every=2,
        gain_cost="flops",
        min_stage_rounds=2,
        checkpoint_every=1,
        out=str(tmp_path / "whole"),
    )
    whole = train(chosen, progress=CopiedInRound(2, chosen.out, tmp_path / "cut", quiet=False))
    said = capfd.readouterr().err
    assert "stage 2 promises as much: stage 1 ends after 2 of 4 rounds; the others go to stage 2" in said
    assert "times as much per FLOP; the server's measurement took" in said
    assert whole.summary.stage_rounds == [2, 6]
    [gain], none = whole.summary.stages[0].gains, whole.summary.stages[1].gains
    assert none is None
    assert (gain.round, gain.ended, gain.next_layers) == (2, True, 4)
    assert gain.next_alignment == pytest.approx(1.0)
    assert 0 < gain.alignment < 1
    assert gain.next_alignment / gain.next_cost >= gain.alignment / gain.cost
    assert gain.server_flops > 0
    stored = json.loads((whole.folder / "summary.json").read_text())["stages"][0]["gains"]
    assert [GainRecord.from_plain(each, "here") for each in stored] == [gain]
    page = (whole.folder / "report.html").read_text()
    assert "When it grew" in page
    assert "1 measurement took the server" in page

    again = train(dataclasses.replace(chosen, out=str(tmp_path / "cut")), progress=QUIET)
    assert again.summary.resumed_after == [1]
    [same] = again.summary.stages[0].gains
    assert dataclasses.replace(same, seconds=gain.seconds) == gain
    assert again.summary.stage_rounds == [2, 6]
    assert again.summary.train_flops == whole.summary.train_flops
    assert adapter_bytes(again.folder) == adapter_bytes(whole.folder)
    assert replay(whole.folder, client="client_0", round=3, progress=QUIET).stage == 2


def test_messages_of_more_layers_cost_more(chosen, tmp_path):
    run = train(
        dataclasses.replace(chosen, growth="top-grow", capacities=(1, 4), rounds=4, out=str(tmp_path)), progress=QUIET
    )
    [gain] = run.summary.stages[0].gains
    # Two clients take part, and a message has as many bytes down as up.
    assert gain.cost == run.history[0].bytes_up
    assert gain.next_cost == 4 * gain.cost
    assert gain.ratio == pytest.approx(1 / (4 * gain.alignment))
    assert gain.ended == (gain.ratio >= 1)
    assert run.summary.stage_rounds == ([1, 3] if gain.ended else [2, 2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"algorithm": "local-only"}, "stage_end gain measures the gradient of one model with an adapter on q,v for all"),
        ({"algorithm": "fedsa-lora"}, "fedsa-lora has none; use --stage-end plateau or fixed, or another algorithm."),
        ({"algorithm": "c2a", "growth": "top-grow"}, "on q,v for all clients, and c2a has none"),
        ({"algorithm": "central"}, "gain_cost bytes has no meaning with central, which sends no messages"),
    ],
)
def test_gains_that_cannot_be_measured_are_refused_by_runs_and_plans(chosen, options, words):
    refused = dataclasses.replace(chosen, **options)
    for ask in (make_plan, lambda config: build_parts(config, progress=QUIET)):
        with pytest.raises(InputError, match=words):
            ask(refused)


def test_a_plan_says_that_stages_may_begin_sooner_and_the_command_line_refuses(chosen, tmp_path, capsys):
    options = PlanOptions(flops_per_second=1e12)
    said = to_text(make_plan(chosen, options))
    assert "stage_end gain may begin later stages sooner than here, never later; the rounds left over go to the next" in said
    assert "may begin" not in to_text(make_plan(dataclasses.replace(chosen, stage_end="fixed"), options))
    assert run_command(["run", *flags(chosen, algorithm="local-only", out=str(tmp_path / "out"))]) == 2
    assert "devft: stage_end gain measures the gradient of one model" in capsys.readouterr().err

"""Early stopping: the round at which a run ends, and the best round, which is kept."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.evaluation.judgement import Judgement
from devft_jax.exporting.export import export
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.reporting import Progress
from devft_jax.storage.result_records import BestRecord
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.early_stopping import EarlyStopping
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import MODEL, CopiedInRound

QUIET = Progress(quiet=True)


class Scripted:
    """A run whose held-out losses are given: one stage after another, each of some rounds, evaluated every second round."""

    def __init__(self, losses, stages, stop_after, lengthened_after=0):
        self.totals = SimpleNamespace(best=None, stage_rounds=list(stages), lengthened_after=lengthened_after)
        self.state = SimpleNamespace(
            totals=self.totals, stage=0, rounds_in_stage=0, layer_map=SimpleNamespace(is_identity=True)
        )
        self.config = SimpleNamespace(stop_after=stop_after, evaluate_every=2)
        self.trainer = SimpleNamespace(parts=None)
        self.progress, self.losses, self.round = Progress(quiet=True), losses, 0

    @property
    def rounds(self):
        return sum(self.totals.stage_rounds)

    @property
    def at_end_of_stage(self):
        return self.state.rounds_in_stage == self.totals.stage_rounds[self.state.stage]

    def ended(self):
        """The round after which it ends."""
        callback = EarlyStopping()
        while self.round < self.rounds:
            if self.at_end_of_stage:
                self.state.stage, self.state.rounds_in_stage = self.state.stage + 1, 0
            self.round += 1
            self.state.rounds_in_stage += 1
            # As in a run, the last round of a stage is evaluated at its end.
            loss = None if self.round % 2 or self.at_end_of_stage else self.losses[self.round]
            callback.on_round(self, SimpleNamespace(round=self.round, held_out_loss=loss, full_loss=None))
        return self.round


@pytest.mark.parametrize(
    ("losses", "stop_after", "ended", "best"),
    [
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 1.0}, 4, 8, 4),  # an equal loss is no improvement
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.5, 10: 1.0}, 5, 11, 10),
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.5, 10: 2.5}, 6, 10, 4),
        ({2: 1.0, 4: float("nan"), 6: 2.0, 8: 2.0, 10: 0.5}, 3, 6, 2),
    ],
)
def test_the_run_ends_once_no_round_was_better_for_as_long(monkeypatch, losses, stop_after, ended, best):
    monkeypatch.setattr(
        "devft_jax.training.early_stopping.evaluate_stage", lambda parts, state: SimpleNamespace(loss=losses[10] + 1)
    )
    run = Scripted(losses, (11,), stop_after)
    assert run.ended() == ended
    assert run.totals.best.round == best
    assert run.totals.best.planned_rounds == (None if ended == 11 else 11)
    assert run.totals.stage_rounds == [ended]


def test_only_the_last_stage_counts_and_the_last_round_is_measured(monkeypatch):
    monkeypatch.setattr("devft_jax.training.early_stopping.evaluate_stage", lambda parts, state: SimpleNamespace(loss=0.5))
    run = Scripted({2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0, 10: 5.0}, (6, 6), 4)
    assert run.ended() == 12
    assert run.totals.best == BestRecord(round=12, loss=0.5)


def test_a_lengthened_run_has_as_many_rounds_again_to_improve(monkeypatch):
    monkeypatch.setattr("devft_jax.training.early_stopping.evaluate_stage", lambda parts, state: None)
    run = Scripted({2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0, 10: 5.0}, (12,), 4, lengthened_after=6)
    assert run.ended() == 10


@pytest.fixture(scope="module", autouse=True)
def rising():
    """Within a stage, the loss is lowest after round 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "devft_jax.training.standard.evaluate_stage",
            lambda parts, state: Judgement(1.0 + abs(state.round - 2), 0.0),
        )
        yield


@pytest.fixture(scope="module")
def asked(config):
    return dataclasses.replace(
        config, growth="end-to-end", rounds=6, evaluate_every=1, stop_after=2, checkpoint_every=10, clients_per_step=2
    )


@pytest.fixture(scope="module")
def ended(asked, tmp_path_factory):
    """A run that ended after round 4, and beside it what is left of it if it was killed after round 3."""
    folder = tmp_path_factory.mktemp("ended")
    progress = CopiedInRound(3, folder / "whole", folder / "killed")
    return train(dataclasses.replace(asked, out=str(folder / "whole")), progress=progress)


def test_a_run_that_ended_early_is_finished_and_has_its_best_round(ended, tmp_path):
    assert ended.finished
    assert ended.summary.rounds == 4
    assert ended.summary.best == BestRecord(round=2, loss=1.0, planned_rounds=6)
    assert json.loads((ended.folder / "summary.json").read_text())["best"]["round"] == 2
    report = (ended.folder / "report.html").read_text()
    assert "finished: 4 rounds of 6, ended early" in report
    assert (
        "that after round 2: 1.0000; none was lower in the 2 rounds after it, so that the run ended after round 4" in report
    )
    # Its adapter is that of its checkpoint, which every command finds.
    assert RunFolder(ended.folder).checkpoints.saved_rounds() == [2, 4]
    export(ended.folder, tmp_path / "best", round="best")
    first, second = (import_peft(path, MODEL).lora for path in (ended.folder / "adapter-best", tmp_path / "best"))
    for leaf, same in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(leaf, same)
    assert not np.array_equal(first["q"].b, ended.adapter.lora["q"].b)
    with pytest.raises(InputError, match="round 6 is outside 1 to 4"):
        replay(ended.folder, client="client_0", round=6, progress=QUIET)


def test_a_killed_run_ends_in_the_same_round_and_more_rounds_continue_it(ended, asked):
    again = train(dataclasses.replace(asked, out=str(ended.folder)), progress=QUIET)
    assert again.summary.to_plain() == json.loads((ended.folder / "summary.json").read_text())
    killed = dataclasses.replace(asked, out=str(ended.folder.parent / "killed"))
    resumed = train(killed, progress=QUIET)
    assert resumed.summary.resumed_after == [2]
    assert resumed.summary.best == ended.summary.best
    assert resumed.summary.rounds == 4
    weights = "adapter-best/adapter_model.safetensors"
    assert (resumed.folder / weights).read_bytes() == (ended.folder / weights).read_bytes()
    longer = train(dataclasses.replace(killed, rounds=9), progress=QUIET)
    assert longer.summary.rounds == 6
    assert longer.summary.best == BestRecord(round=2, loss=1.0, planned_rounds=9)
    with pytest.raises(InputError, match="rounds 8 is fewer than the 9"):
        train(dataclasses.replace(killed, rounds=8), progress=QUIET)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evaluate_every": 0}, "stop_after 2 counts rounds without a lower held-out loss, but evaluate_every is 0"),
        ({"test_data": None}, "stop_after 2 ends a run by its held-out loss, but no data is held out; give test_data or"),
    ],
    ids=str,
)
def test_a_run_without_evaluations_cannot_stop_by_them(asked, tmp_path, changes, sentence):
    if "test_data" in changes:
        data = str(Path(asked.model).parent / "client_0.json")
        changes = {**changes, "data": data, "clients_per_round": 1}
    with pytest.raises(InputError, match=sentence):
        train(dataclasses.replace(asked, out=str(tmp_path / "out"), **changes), progress=QUIET)


def test_a_run_that_did_not_look_for_its_best_round_has_none(finished, tmp_path):
    with pytest.raises(InputError, match="did not look for its best round; run it with --stop-after"):
        export(finished.folder, tmp_path / "best", round="best")

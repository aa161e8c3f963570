"""Callbacks of a user: what they are called with, in which order, on resume too, and what an exception in one does."""

import dataclasses

import jax
import numpy as np
import pytest

from devft_jax.reporting import Progress
from devft_jax.training.callbacks import Callback
from devft_jax.training.run import train

QUIET = Progress(quiet=True)


class Notes(Callback):
    """Writes down every call; fails after the round `fails`."""

    def __init__(self, fails=None):
        self.calls, self.fails = [], fails

    def on_begin(self, run):
        self.calls.append(("begin", run.round, len(run.history), run.resumed_after))

    def on_stage(self, run, stage):
        self.calls.append(("stage", len(run.stages), stage.layers, run.round))
        assert run.stages[-1] is stage
        assert stage.loss_start is not None

    def on_round(self, run, row):
        self.calls.append(("round", row.round, row.held_out_loss is not None, run.at_end_of_stage))
        assert run.history[-1] is row
        assert (run.round, run.rounds, run.record().rounds) == (row.round, 4, row.round)
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == row.round
        assert not (run.path / "checkpoints" / str(row.round)).exists()
        if row.round == self.fails:
            raise ZeroDivisionError("of the user's")

    def on_end(self, run):
        self.calls.append(("end", run.round, run.finished, (run.path / "summary.json").exists()))
        self.adapter = run.adapter()


WHOLE = [
    ("begin", 0, 0, None),
    ("stage", 1, 2, 0),
    ("round", 1, True, False),
    ("round", 2, False, True),
    ("stage", 2, 4, 2),
    ("round", 3, True, False),
    ("round", 4, False, True),
    ("end", 4, True, True),
]


def test_a_callback_is_called_at_every_point_and_after_an_exception_goes_on(two_stages, tmp_path):
    first = Notes(fails=3)
    with pytest.raises(ZeroDivisionError, match="of the user's"):
        train(dataclasses.replace(two_stages, out=str(tmp_path)), progress=QUIET, callbacks=[first])
    assert first.calls == WHOLE[:6]
    again = Notes()
    run = train(dataclasses.replace(two_stages, out=str(tmp_path)), progress=QUIET, callbacks=[again])
    assert again.calls == [("begin", 2, 2, 2), *WHOLE[4:]]
    assert run.summary.resumed_after == [2]
    for leaf, same in zip(jax.tree.leaves(again.adapter), jax.tree.leaves(run.adapter), strict=True):
        np.testing.assert_array_equal(leaf, same)
    # Nothing is left to do, so that nothing is called.
    idle = Notes()
    train(dataclasses.replace(two_stages, out=str(tmp_path)), progress=QUIET, callbacks=[idle])
    assert idle.calls == []


def test_callbacks_are_called_in_order_and_end_in_the_opposite_one(two_stages, tmp_path):
    said = []

    class Named(Callback):
        def __init__(self, name):
            self.name = name

        def on_round(self, run, row):
            said.append(self.name)

        def on_end(self, run):
            said.append(f"end of {self.name}")

    chosen = dataclasses.replace(two_stages, growth="end-to-end", rounds=1, out=str(tmp_path))
    train(chosen, progress=QUIET, callbacks=[Named("a"), Named("b"), Callback()])
    assert said == ["a", "b", "end of b", "end of a"]


def test_a_misspelt_method_is_an_error_where_the_class_is_made():
    with pytest.raises(
        TypeError, match="on_rounds is never called; a callback has on_begin, on_stage, on_round, on_trained, on_end"
    ):

        class Mine(Callback):
            def on_rounds(self, run, row):
                pass

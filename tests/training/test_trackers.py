"""Trackers: every round once, at its step, also after a run that failed and went on; missing packages before any work."""

import csv
import dataclasses
import importlib.util
import json
import struct
import sys
from types import SimpleNamespace

import pytest

from devft_jax.config.identity import identity
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.errors import InputError
from devft_jax.reporting import Progress
from devft_jax.training.callbacks import Callback
from devft_jax.training.run import train
from devft_jax.training.trackers import scalars
from tests.run_records import round_record

QUIET = Progress(quiet=True)


class Fails(Callback):
    """Ends the run after its third round, of which no checkpoint is written."""

    def on_round(self, run, row):
        if row.round == 3:
            raise ZeroDivisionError


def interrupted_and_resumed(config, folder, track):
    chosen = dataclasses.replace(config, out=str(folder), track=track)
    with pytest.raises(ZeroDivisionError):
        train(chosen, progress=QUIET, callbacks=[Fails()])
    return train(chosen, progress=QUIET)


def test_the_csv_file_has_every_round_once(two_stages, tmp_path):
    run = interrupted_and_resumed(two_stages, tmp_path, ("csv",))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    for row, record in zip(rows, run.history, strict=True):
        figures = {"round": record.round, **scalars(record)}
        assert {name: float(value) for name, value in row.items() if value} == figures
    assert rows[0]["held_out_loss"]
    assert not rows[1]["held_out_loss"]


def test_scalars_are_the_finite_numbers():
    figures = scalars(round_record(loss=float("nan")))
    assert {"learning_rate", "update_norm", "tokens"} <= figures.keys()
    assert figures.keys().isdisjoint({"loss", "odd", "round", "clients", "adapter_norms", "held_out_loss"})


def events_of(file):
    """The events of a TensorBoard file: records of length, checksum, content and checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content = file.read_bytes()
    while content:
        [length] = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard_has_every_round_once_at_its_step(two_stages, tmp_path):
    run = interrupted_and_resumed(two_stages, tmp_path, ("tensorboard", "csv"))
    assert (tmp_path / "metrics.csv").exists()
    [file] = (tmp_path / "tensorboard").iterdir()
    found = {}
    for event in events_of(file):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert found["round/loss"] == [(row.round, pytest.approx(row.loss)) for row in run.history]
    assert [step for step, _ in found["round/held_out_loss"]] == [1, 3]
    ends = [stage.loss_end for stage in run.summary.stages]
    assert found["stage/loss_end"] == [(step, pytest.approx(loss)) for step, loss in zip((2, 4), ends, strict=True)]


class FakeWandb(SimpleNamespace):
    """What the tracker calls of Weights & Biases, written down."""

    def __init__(self):
        super().__init__(begun=[], logged=[], summary={}, ended=0, id="abc")
        self.Settings = lambda: SimpleNamespace(project=None)

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self):
        self.ended += 1


def test_weights_and_biases_is_sent_every_round_once(two_stages, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = interrupted_and_resumed(two_stages, tmp_path, ("wandb",))
    assert [step for step, _ in fake.logged] == [1, 2, 3, 4]
    # The third round was sent before the run failed, and is the same but for its time.
    assert [figures["loss"] for _, figures in fake.logged] == [row.loss for row in run.history]
    assert fake.logged[3] == (4, scalars(run.history[3]))
    assert [begun["id"] for begun in fake.begun] == [None, "abc"]
    assert {begun["project"] for begun in fake.begun} == {"devft"}
    assert fake.begun[0]["config"]["rounds"] == 4
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": "abc", "round": 4}
    assert fake.summary["final_loss"] == run.summary.final_loss
    assert fake.ended == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_offline_leaves_its_files(two_stages, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    chosen = dataclasses.replace(two_stages, out=str(tmp_path), track=("wandb",), growth="end-to-end", rounds=2)
    assert train(chosen, progress=QUIET).finished
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    # Its files belong to the run, which can still be resumed.
    assert train(dataclasses.replace(chosen, rounds=3), progress=QUIET).summary.resumed_after == [2]


@pytest.mark.parametrize(("track", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_one_sentence_before_any_work(two_stages, tmp_path, monkeypatch, track, package):
    monkeypatch.setitem(sys.modules, package, None)
    chosen = dataclasses.replace(two_stages, out=str(tmp_path / "run"), track=(track,))
    with pytest.raises(InputError, match=rf"needs the package {package}.*pip install {package}"):
        train(chosen, progress=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("track", "words"), [(("mlflow",), "mlflow' is unknown"), (("csv", "csv"), "csv,csv holds csv twice")]
)
def test_what_is_no_tracker_is_refused(track, words):
    with pytest.raises(InputError, match=words):
        validate(RunConfig(track=track))


def test_tracking_is_no_part_of_what_is_computed():
    assert "track" not in identity(RunConfig(track=("csv",)))

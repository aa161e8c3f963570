"""Runs end to end on a random tiny model, through the command line and through `train`."""

import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from devft_jax.commands.cli import run_command
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import DevFT, Growth, LayerMap
from devft_jax.errors import InputError, RunError
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.lora import adapter_norms
from devft_jax.reporting import Progress, split_chart
from devft_jax.reporting.report import report_html
from devft_jax.reporting.report_file import read_settings, read_story, write_report
from devft_jax.storage.digests import write_list
from devft_jax.storage.records import CompiledAheadRecord, SecondsRecord, SplitRecord
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import MODEL, write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    return write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)


@pytest.fixture(scope="module")
def tiny(config):
    """The folder of the run's model and data."""
    return Path(config.model).parent


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


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run = train(dataclasses.replace(config, out=str(folder)), progress=QUIET)
    return run


@pytest.fixture
def copied(finished, config, tmp_path):
    """A copy of the finished run's folder to do harm to, and the configuration that goes on with it."""
    folder = tmp_path / "copied"
    shutil.copytree(finished.folder, folder)
    return dataclasses.replace(config, out=str(folder))


def test_a_run_leaves_the_folder_of_the_contract(finished, config):
    folder = finished.folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "adapter", "summary.json", "split.json", "split.svg"} <= names
    split = json.loads((folder / "split.json").read_text())
    assert [client["name"] for client in split["clients"]] == ["client_0", "client_1", "client_2"]
    assert sum(client["examples"] for client in split["clients"]) == split["examples"]
    assert (folder / "split.svg").read_text() == split_chart(SplitRecord.from_plain(split, folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(finished.summary.to_plain()))
    losses = {"final_loss", "base_loss", "accuracy", "base_accuracy", "rounds", "stages"}
    costs = {"seconds", "bytes_up", "bytes_down", "bytes_stage", "train_flops", "peak_memory_bytes", "peak_memory_source"}
    for name in losses | costs:
        assert summary[name] is not None, name
    assert set(summary["seconds"]) == {"train", "compile", "build", "evaluate"}
    assert summary["energy"]["kwh"] > 0
    assert summary["energy"]["kgco2e"] == summary["energy"]["kwh"] * summary["energy"]["grid_kgco2e_per_kwh"]
    assert [stage["layers"] for stage in summary["stages"]] == [1, 2, 4]
    assert [stage["rounds"] for stage in summary["stages"]] == [2, 2, 2]
    for stage in summary["stages"]:
        assert sum(stage["group_sizes"]) == 4
        assert len(stage["assign"]) == 4
        for name in ("loss_start", "loss_end", "loss_full_after_transfer", "transition_gap", "seconds"):
            assert np.isfinite(stage[name]), name
    assert summary["stages"][-1]["transition_gap"] == 0
    assert summary["stages"][0]["transition_gap"] > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert {"loss", "update_norm", "aggregation_error", "bytes_up", "bytes_down", "tokens_per_second"} <= set(row)
        assert len(row["adapter_norms"]) == row["layers"]
        assert min(row["adapter_norms"]) > 0
    assert sum(row["train_flops"] for row in rows) == summary["train_flops"]
    by_depth = [row["program_bytes"] for row in rows[::2]]
    assert 0 < by_depth[0] < by_depth[1] < by_depth[2]
    norms = adapter_norms(finished.adapter)
    np.testing.assert_allclose(rows[-1]["adapter_norms"], norms, rtol=1e-5)


def test_a_run_leaves_its_report(finished):
    folder = finished.folder
    assert not (folder / "record.json").exists()
    assert write_report(folder, folder / "again.html").read_text() == (folder / "report.html").read_text()
    page = (folder / "report.html").read_text()
    assert f"{finished.summary.base_loss:.4f} to {finished.summary.final_loss:.4f}" in page
    assert "finished: 6 rounds" in page
    assert finished.summary.versions["jax"] == jax.__version__
    assert finished.summary.resumed_after == []


def test_bytes_follow_depth_and_the_dense_submodels_are_counted(finished, config):
    per_layer = 4 * (2 * (16 * 4) + 4 * 16 + 4 * 8)  # float32: a and b of q [16, 16] and v [16, 8] at rank 4
    rows = finished.summary.stages
    for stage in rows:
        expected = stage.layers * per_layer * stage.rounds * config.clients_per_round
        assert stage.bytes_up == stage.bytes_down == expected
    assert finished.summary.bytes_up == sum(stage.bytes_up for stage in rows)
    blocks = 4 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16)
    assert [stage.submodel_bytes for stage in rows] == [blocks, 2 * blocks, 0]
    assert finished.summary.bytes_stage % blocks == 0
    assert finished.summary.bytes_stage >= 2 * blocks + 2 * 2 * blocks


def test_training_lowers_held_out_loss(finished):
    assert finished.summary.final_loss < finished.summary.base_loss - 0.1


def test_the_exported_adapter_is_the_runs_adapter(finished):
    imported = import_peft(finished.folder / "adapter", MODEL)
    for name, factors in finished.adapter.lora.items():
        np.testing.assert_array_equal(imported.lora[name].a, factors.a)
        np.testing.assert_array_equal(imported.lora[name].b, factors.b)
    assert float(imported.scale) == float(finished.adapter.scale)


def test_the_run_and_its_adapter_tell_what_ended_answers(finished):
    assert json.loads((finished.folder / "split.json").read_text())["ends_with"] == ["</s>"]
    assert json.loads((finished.folder / "adapter" / "generation_config.json").read_text()) == {"eos_token_id": [2]}


def test_the_command_line_runs_the_same(finished, config, tmp_path, capfd):
    assert run_command(["run", *flags(config, out=str(tmp_path))]) == 0
    assert adapter_bytes(tmp_path) == adapter_bytes(finished.folder)
    text = capfd.readouterr().err
    assert "stage 1/3  1 layer <- 4:  [0-3]\n" in text
    assert "round 6/6" in text
    assert "tokens/s" in text


def test_nothing_stored_depends_on_where_one_stood(config, tmp_path, monkeypatch, capfd):
    """Started with paths relative to one folder, a run is resumed, replayed, asked and exported from another."""
    inputs, elsewhere = Path(config.model).parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(inputs)
    relative = dataclasses.replace(
        config, model="model", data="client_*.json", test_data="./test.json", out=os.path.relpath(tmp_path / "run"), rounds=3
    )
    first = train(relative, progress=QUIET)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [stored[name] for name in ("model", "data", "test_data", "out")] == [
        str(inputs / "model"),
        str(inputs / "client_*.json"),
        str(inputs / "test.json"),
        str(tmp_path / "run"),
    ]
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(inputs / "model")
    monkeypatch.chdir(elsewhere)
    name = {field: os.path.relpath(stored[field]) for field in ("model", "data", "test_data", "out")}
    longer = train(dataclasses.replace(relative, rounds=4, **name), progress=QUIET)
    assert (longer.folder, longer.summary.lengthened_after) == (first.folder, 3)
    client = next(item for item in json.loads((tmp_path / "run" / "split.json").read_text())["clients"])["name"]
    assert len(replay(longer.folder, client=client, round=4, progress=QUIET).steps) == config.local_steps
    assert run_command(["generate", "../run", "--prompt", "a", "--max-new-tokens", "2"]) == 0
    assert run_command(["export", "../run", "--out", "merged", "--form", "merged"]) == 0
    assert run_command(["export", "../run/adapter", "--out", "again", "--form", "merged"]) == 0


def test_a_finished_run_is_not_run_again(finished, config, capfd):
    def files():
        found = [path for path in finished.folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before, told = files(), io.StringIO()
    again = train(dataclasses.replace(config, out=str(finished.folder)), progress=Progress(told))
    assert again.finished
    assert again.summary.to_plain() == json.loads((finished.folder / "summary.json").read_text())
    assert again.history == finished.history
    for leaf, same in zip(jax.tree.leaves(again.adapter), jax.tree.leaves(finished.adapter), strict=True):
        np.testing.assert_array_equal(leaf, same)
    assert files() == before
    assert "finished after 6 rounds: nothing is left to do" in told.getvalue()


def test_a_finished_run_without_its_checkpoints_is_not_trained_anew(copied):
    folder = Path(copied.out)
    shutil.rmtree(folder / "checkpoints")
    before = adapter_bytes(folder)
    again = train(copied, progress=QUIET)
    assert again.summary.rounds == 6
    assert adapter_bytes(folder) == before
    assert not (folder / "checkpoints").exists()


def test_what_is_missing_of_a_run_is_written_again(finished, copied):
    for name in ("split.json", "split.svg", "report.html"):
        (Path(copied.out) / name).unlink()
    shutil.rmtree(Path(copied.out) / "adapter")
    train(copied, progress=QUIET)
    for name in ("split.json", "split.svg"):
        assert (Path(copied.out) / name).read_bytes() == (finished.folder / name).read_bytes()
    assert adapter_bytes(Path(copied.out)) == adapter_bytes(finished.folder)
    assert (Path(copied.out) / "report.html").exists()
    (Path(copied.out) / "split.json").unlink()
    longer = train(dataclasses.replace(copied, rounds=7), progress=QUIET)
    assert (longer.folder / "split.json").read_bytes() == (finished.folder / "split.json").read_bytes()


@pytest.mark.parametrize("name", ["split.json", "split.svg", "report.html", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["removed", "emptied"])
def test_a_file_that_is_removed_or_emptied_is_written_again(finished, copied, name, harm):
    harm(Path(copied.out) / name)
    train(copied, progress=QUIET)
    written = (Path(copied.out) / name).read_bytes()
    assert written
    assert name == "report.html" or written == (finished.folder / name).read_bytes()


@pytest.mark.parametrize("harm", ["removed", "emptied"])
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_trained_run_that_lost_its_checkpoints_is_not_begun_anew(copied, harm, unfinished):
    folder = Path(copied.out)
    if harm == "removed":
        shutil.rmtree(folder / "checkpoints")
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    if unfinished:
        (folder / "summary.json").unlink()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"has trained 6 rounds, but no checkpoint is left to resume it from"):
        train(dataclasses.replace(copied, rounds=8), progress=QUIET)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_run_that_was_stored_with_relative_paths_goes_on_from_where_it_was_begun(copied, tiny, tmp_path, monkeypatch):
    stored = json.loads((Path(copied.out) / "config.json").read_text())
    stored |= {"model": "model", "data": "client_*.json", "test_data": "test.json"}
    (Path(copied.out) / "config.json").write_text(json.dumps(stored))
    with pytest.raises(
        InputError, match=r"another run: its (model|data|test_data) is '[^/].*from the folder where it was started, to"
    ):
        train(copied, progress=QUIET)
    monkeypatch.chdir(tiny)
    assert train(copied, progress=QUIET).finished


def test_a_replay_makes_nothing_in_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(InputError, match="holds no run"):
        replay(tmp_path, client="client_0", round=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_runs_history_is_its_metrics(finished):
    lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    assert [row.to_plain() for row in finished.history] == [json.loads(line) for line in lines]
    assert [row.round for row in finished.history] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("lengthened_rate", ["schedule", "end"])
def test_a_lengthened_cosine_says_what_becomes_of_its_rate(config, tmp_path, lengthened_rate):
    short = dataclasses.replace(config, rounds=2, growth="end-to-end", min_learning_rate=1e-3, out=str(tmp_path))
    last = train(short, progress=QUIET).history[-1].learning_rate
    told = io.StringIO()
    longer = dataclasses.replace(short, rounds=6, lengthened_rate=lengthened_rate)
    rates = [row.learning_rate for row in train(longer, progress=Progress(told)).history]
    said = told.getvalue()
    if lengthened_rate == "schedule":
        assert rates[2:] == pytest.approx([0.03775, 0.0255, 0.01325, 0.0042824], rel=1e-4)
        assert f"warning: lengthened from 2 to 6 rounds: the learning rate is {last:.3g} in round 2 and 0.0378" in said
        assert "--lengthened-rate end to continue at 0.001" in said
    else:
        assert rates[2:] == [1e-3] * 4
        assert f"lengthened from 2 to 6 rounds: the learning rate is {last:.3g} in round 2 and 0.001 in round 3" in said
    # What was decided holds on however often the run is resumed.
    rate = train(dataclasses.replace(longer, rounds=7), progress=QUIET).history[-1].learning_rate
    assert rate == (1e-3 if lengthened_rate == "end" else pytest.approx(0.0034262, rel=1e-3))


def test_trained_parameters_are_told(config, tmp_path):
    told = io.StringIO()
    train(dataclasses.replace(config, rounds=1, growth="end-to-end", out=str(tmp_path)), progress=Progress(told))
    parameters = 4 * (2 * (16 * 4) + 4 * 16 + 4 * 8)
    total = 2 * 64 * 16 + 16 + 4 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16)
    assert f"{parameters:,} parameters are trained, {parameters / total:.2%} of the model's" in told.getvalue()
    assert "finished 1 round;" in told.getvalue()


def test_a_replay_says_whether_the_client_took_part(finished):
    row = finished.history[2]
    for client in range(3):
        again = replay(finished.folder, client=f"client_{client}", round=3, progress=QUIET)
        assert again.took_part == (client in row.clients)


@pytest.mark.parametrize("name", ["summary.json", "record.json"])
@pytest.mark.parametrize("change", [{"stage_rounds": "6"}, {"stages": []}, {"stages": [3]}, {"seconds": {}}])
def test_a_record_that_is_json_and_no_record_is_one_sentence(copied, name, change):
    folder = Path(copied.out)
    summary = json.loads((folder / "summary.json").read_text()) | change
    (folder / name).write_text(json.dumps(summary))
    if name == "summary.json":
        with pytest.raises(InputError, match=r"is damaged \(.* lacks a usable|are inconsistent"):
            train(copied, progress=QUIET)
    with pytest.raises(InputError, match=r"is damaged \(.* lacks a usable|are inconsistent"):
        write_report(folder)


def test_more_rounds_lengthen_the_last_stage_and_rounds_before_are_not_replayed(copied):
    longer = train(dataclasses.replace(copied, rounds=9), progress=QUIET)
    assert [stage.rounds for stage in longer.summary.stages] == [2, 2, 5]
    assert longer.summary.lengthened_after == 6
    assert "planned for fewer rounds and lengthened after round 6" in (longer.folder / "report.html").read_text()
    with pytest.raises(InputError, match="lengthened, not shortened"):
        train(copied, progress=QUIET)
    with pytest.raises(InputError, match="lengthened after round 6"):
        replay(longer.folder, client="client_0", round=2, progress=QUIET)
    assert replay(longer.folder, client="client_0", round=7, progress=QUIET).first_break is None


def test_a_folder_that_does_not_exist_is_not_replayed(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        replay(tmp_path / "typo", client="client_0", round=1, progress=QUIET)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("change", [{"rank": 2}, {"seed": 3}, {"beta": 0.2}, {"learning_rate": (0.01,)}])
def test_another_run_is_refused_in_the_same_folder(finished, config, change):
    before = {path: path.read_bytes() for path in finished.folder.glob("*.json*")}
    with pytest.raises(InputError, match=next(iter(change))):
        train(dataclasses.replace(config, out=str(finished.folder), **change), progress=QUIET)
    assert before == {path: path.read_bytes() for path in finished.folder.glob("*.json*")}


def test_end_to_end_growth_and_equal_cohorts(finished, config, tmp_path):
    run = train(dataclasses.replace(config, growth="end-to-end", out=str(tmp_path)), progress=QUIET)
    assert [stage.layers for stage in run.summary.stages] == [4]
    assert run.summary.bytes_stage == 0

    def cohorts(folder):
        return [json.loads(line)["clients"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    assert cohorts(tmp_path) == cohorts(finished.folder)


@pytest.mark.parametrize(
    "transfer", ["anchor_delta", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("anchor_only", "delta"))]
)
def test_every_transfer_runs(config, tmp_path, transfer):
    run = train(dataclasses.replace(config, transfer=transfer, out=str(tmp_path)), progress=QUIET)
    assert run.summary.final_loss < run.summary.base_loss


@pytest.mark.parametrize(
    "change",
    [
        {"grouping": "random", "fusion": "r_one"},
        pytest.param({"grouping": "even_blocks", "fusion": "mean"}, marks=pytest.mark.slow),
        pytest.param({"grouping": "even_strides", "fusion": "anchor"}, marks=pytest.mark.slow),
        pytest.param({"fusion": "sum", "beta": "auto"}, marks=pytest.mark.slow),
    ],
)
def test_every_grouping_and_fusion_runs(config, tmp_path, change):
    run = train(dataclasses.replace(config, out=str(tmp_path), rounds=3, **change), progress=QUIET)
    assert run.finished


@pytest.mark.parametrize("algorithm", ["fedit", pytest.param("local-only", marks=pytest.mark.slow)])
def test_the_full_model_can_be_judged_within_a_stage_as_if_it_ended_there(config, tmp_path, algorithm):
    chosen = dataclasses.replace(config, algorithm=algorithm, schedule="constant", evaluate_every=1, capacities=(2, 4))
    watched = dataclasses.replace(chosen, stage_rounds=(2, 2), evaluate_full=True, out=str(tmp_path / "watched"))
    run = train(watched, progress=QUIET)
    ended = train(dataclasses.replace(chosen, stage_rounds=(1, 1), out=str(tmp_path / "ended")), progress=QUIET)
    first, _, third, _ = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert first["full_loss"] == pytest.approx(ended.summary.stages[0].loss_full_after_transfer, abs=1e-6)
    assert first["full_loss"] != first["held_out_loss"]
    assert third["full_loss"] == third["held_out_loss"]
    measured = [point.round for piece in read_story(run.folder).full_model for point in piece]
    assert measured == [0, 1, 2, 3, 4]
    unwatched = dataclasses.replace(watched, evaluate_full=False, evaluate_every=0, out=str(tmp_path / "unwatched"))
    again = train(unwatched, progress=QUIET)
    assert again.summary.final_loss == run.summary.final_loss


@pytest.mark.slow
def test_chunks_and_devices_change_nothing_but_rounding(config, finished, tmp_path):
    plain = dataclasses.replace(config, optimizer="sgd", learning_rate=(0.5,), capacities=(2, 4), rounds=4)
    results = []
    for index, change in enumerate(
        ({"devices": 1, "clients_per_step": 1}, {"devices": 2, "clients_per_step": 2}, {"devices": 8})
    ):
        run = train(dataclasses.replace(plain, out=str(tmp_path / str(index)), **change), progress=QUIET)
        results.append(run.adapter)
    for other in results[1:]:
        for leaf, same in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(leaf, same, atol=1e-5)


def test_a_growth_of_ones_own_is_one_function(config, tmp_path):
    class LastLayerFirst(Growth):
        def next(self, stage, tree, history, key):
            if stage == 2:
                return None
            if stage == 1:
                assert [row.stage for row in history] == [0, 0]
                return LayerMap.identity(4)
            fuse = np.eye(4, dtype=np.float32)[[0, 3]]
            return LayerMap(fuse=fuse, assign=np.array([0, -1, -1, 1], np.int32), train=np.array([False, True]))

    chosen = dataclasses.replace(config, out=str(tmp_path), stage_rounds=(2, 1))
    run = train(chosen, growth=LastLayerFirst(), progress=QUIET)
    assert [stage.layers for stage in run.summary.stages] == [2, 4]
    with pytest.raises(InputError, match="objects"):
        replay(run.folder, client="client_0", round=1, progress=QUIET)


def test_what_is_no_growth_is_refused_in_one_sentence(config, tmp_path):
    class Plain:
        def next(self, stage, tree, history, key):
            return None

    chosen = dataclasses.replace(config, out=str(tmp_path / "a"))
    for given, words in ((Plain(), "an object of .*Plain"), (DevFT, "the class DevFT"), ("devft", "an object of str")):
        with pytest.raises(InputError, match=f"growth is {words}, not a Growth; pass an instance of a class that inherits"):
            train(chosen, growth=given, progress=QUIET)


def test_a_wrong_map_ends_with_one_sentence_and_a_frozen_row_of_no_layer_runs(config, tmp_path):
    class Doubled(Growth):
        def __init__(self, train):
            self.train = train

        def next(self, stage, tree, history, key):
            fuse = np.eye(4, dtype=np.float32)[[0, 0, 3]]
            assign = np.array([0, -1, -1, 2], np.int32)
            return None if stage else LayerMap(fuse=fuse, assign=assign, train=np.array(self.train))

    chosen = dataclasses.replace(config, stage_rounds=(1,))
    with pytest.raises(RunError, match="stage 1 could not be built: group 1 trains but no layer is assigned"):
        train(dataclasses.replace(chosen, out=str(tmp_path / "a")), growth=Doubled([True, True, True]), progress=QUIET)
    right = Doubled([True, False, True])
    run = train(dataclasses.replace(chosen, out=str(tmp_path / "b")), growth=right, progress=QUIET)
    assert run.summary.stages[0].anchor_coefficients == [1.0, None, 1.0]


def test_replay_repeats_the_rounds_losses(finished):
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    row = rows[4]
    names = ["client_0", "client_1", "client_2"]
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != ".lock"}
    losses = [
        report.loss
        for client in row["clients"]
        for report in replay(finished.folder, client=names[client], round=5, progress=QUIET).steps
    ]
    np.testing.assert_allclose(np.mean(losses), row["loss"], rtol=1e-5)
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != ".lock"}


def test_nan_is_named_and_stops_the_run_past_the_share(config, tmp_path, capfd):
    chosen = dataclasses.replace(config, learning_rate=(1e38,))
    with pytest.raises(RunError, match=r"client 'client_\d', stage 1, round 1, step 2: the loss is nan"):
        train(dataclasses.replace(chosen, out=str(tmp_path / "a")), progress=QUIET)
    code = run_command(["run", *flags(chosen, out=str(tmp_path / "b"))])
    assert code == 1
    assert "devft replay" in capfd.readouterr().err
    again = replay(tmp_path / "b", client="client_1", round=1, progress=QUIET)
    assert again.first_break.startswith(
        "client 'client_1', stage 1, round 1, step 2: the first values that are not finite are in loss"
    )
    reports = again.steps
    assert [report.step for report in reports] == [1, 2]
    assert np.isfinite(reports[0].loss)
    assert reports[0].nonfinite == ()
    assert "loss" in reports[1].nonfinite


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clients_per_round": 4}, "clients_per_round 4 exceeds the 3 clients"),
        ({"capacities": (2, 8)}, "8"),
        ({"capacities": (4, 2)}, "ascend"),
        ({"rounds": 2}, "rounds 2 is fewer than the 3 stages"),
        ({"stage_rounds": (1, 1)}, "stage_rounds names 2 stages"),
        ({"learning_rate": (0.1, 0.2)}, "learning_rate has 2 rates for 3 stages"),
        ({"devices": 99}, "devices 99"),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"data": "/nowhere/*.json"}, "/nowhere"),
        ({"max_length": 2}, "max_length"),
        ({"out": "/proc/nothing"}, "/proc/nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(config, tmp_path, capfd, change, words):
    chosen = dataclasses.replace(config, **{"out": str(tmp_path / "run"), **change})
    assert run_command(["run", *flags(chosen)]) == 2
    error = capfd.readouterr().err
    last = [line for line in error.splitlines() if line.startswith("devft: ")]
    assert len(last) == 1
    assert words in last[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_in_use_is_refused(config, tmp_path):
    from devft_jax.storage import RunFolder

    with RunFolder(tmp_path), pytest.raises(InputError, match="in use"):
        train(dataclasses.replace(config, out=str(tmp_path)), progress=QUIET)


def test_a_failed_save_is_a_run_error_and_keeps_what_was_saved(config, tmp_path, monkeypatch):
    original, calls = write_list, []

    def save(folder, **marks):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(folder, **marks)

    monkeypatch.setattr("devft_jax.storage.checkpoints.write_list", save)
    chosen = dataclasses.replace(config, out=str(tmp_path))
    with pytest.raises(RunError, match="No space left on device"):
        train(chosen, progress=QUIET)
    monkeypatch.undo()
    resumed = train(chosen, progress=QUIET)
    assert resumed.finished


@pytest.fixture(scope="module")
def on_own_data(config, tiny, tmp_path_factory):
    """The configuration of a finished run whose data is its own."""
    folder = tmp_path_factory.mktemp("own")
    for path in [*tiny.glob("client_*.json"), tiny / "test.json"]:
        shutil.copy(path, folder)
    data, test = str(folder / "client_*.json"), str(folder / "test.json")
    chosen = dataclasses.replace(config, data=data, test_data=test, out=str(folder / "run"), rounds=3)
    train(chosen, progress=QUIET)
    return chosen


@pytest.mark.parametrize("change", ["records", "border", "name", "test"])
def test_changed_data_is_refused(on_own_data, tiny, change):
    folder = Path(on_own_data.test_data).parent
    before = (folder / "run" / "config.json").read_text()
    first, second, test = (folder / name for name in ("client_0.json", "client_1.json", "test.json"))
    records = json.loads(first.read_text()), json.loads(second.read_text())
    if change == "records":
        first.write_text(json.dumps(records[0][::-1] + records[0][:1]))
    elif change == "border":
        first.write_text(json.dumps(records[0][:-1]))
        second.write_text(json.dumps(records[0][-1:] + records[1]))
    elif change == "name":
        first.rename(folder / "client_00.json")
    else:
        test.write_text(json.dumps(json.loads(test.read_text())[:4]))
    try:
        with pytest.raises(InputError, match="data of the run"):
            train(dataclasses.replace(on_own_data, rounds=4), progress=QUIET)
    finally:
        (folder / "client_00.json").unlink(missing_ok=True)
        for path in (first, second, test):
            shutil.copy(tiny / path.name, path)
    assert (folder / "run" / "config.json").read_text() == before


def test_tokens_outside_the_vocabulary_are_refused(tiny, config, tmp_path):
    small = dataclasses.replace(MODEL, vocabulary=8)
    save_pretrained(tmp_path / "model", small, init_base(jax.random.key(0), small), dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text((tiny / "model" / name).read_text())
    with pytest.raises(InputError, match="vocabulary ends at 7"):
        train(dataclasses.replace(config, model=str(tmp_path / "model"), out=str(tmp_path / "run")), progress=QUIET)
    assert not (tmp_path / "run").exists()


TRAP = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Trap: ...\n"


@pytest.mark.parametrize("command", ["run", "plan", "export", "replay", "generate"])
def test_no_command_runs_code_of_a_model_folder_or_asks_whether_to(copied, tiny, tmp_path, monkeypatch, capfd, command):
    model = tmp_path / "model"
    shutil.copytree(tiny / "model", model)
    for name in ("trap", "tokenization_trap", "configuration_trap", "modeling_trap"):
        (model / f"{name}.py").write_text(TRAP)
    settings = {"auto_map": {"AutoTokenizer": ["trap.Trap", None]}, "tokenizer_class": "TrapTokenizer"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    fields = json.loads((model / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id"):
        # They are then asked of the tokenizer.
        fields.pop(name, None)
    fields["auto_map"] = {"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"}
    (model / "config.json").write_text(json.dumps(fields))
    stored = json.loads((Path(copied.out) / "config.json").read_text()) | {"model": str(model)}
    (Path(copied.out) / "config.json").write_text(json.dumps(stored))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    words = {
        "run": flags(copied, model=str(model)),
        "plan": flags(copied, model=str(model)),
        "export": [copied.out, "--form", "merged", "--out", str(tmp_path / "merged")],
        "replay": [copied.out, "--client", "client_0", "--round", "1"],
        "generate": [str(model), "--prompt", "a"],
    }
    assert run_command([command, *words[command]]) == (0 if command == "plan" else 2)
    assert not list(tmp_path.rglob("ran"))
    assert sys.stdin.read() == "y\n" * 9
    if command != "plan":
        assert "code from a model's folder is never run" in capfd.readouterr().err.replace("\n", " ")


def test_a_damaged_checkpoint_names_the_way_on(copied):
    checkpoints = Path(copied.out) / "checkpoints"
    for path in (checkpoints / "6").rglob("*"):
        if path.is_file() and path.stat().st_size > 16:
            path.write_bytes(path.read_bytes()[:8])
    with pytest.raises(InputError, match="delete it to resume from round 4"):
        train(copied, progress=QUIET)
    shutil.rmtree(checkpoints / "6")
    again = train(copied, progress=QUIET)
    assert again.finished
    assert again.summary.resumed_after == [4]


@pytest.mark.parametrize(("name", "text"), [("metrics.jsonl", "3\n{}\n"), ("config.json", "[]"), ("config.json", "{")])
def test_damaged_records_are_named(copied, name, text):
    (Path(copied.out) / name).write_text(text)
    with pytest.raises(InputError, match=name):
        train(copied, progress=QUIET)


def test_a_broken_base_ends_with_one_sentence(tiny, config, tmp_path):
    base = init_base(jax.random.key(0), MODEL)
    broken = base.replace(blocks=base.blocks.replace(up=base.blocks.up.at[2, 0, 0].set(np.nan)))
    save_pretrained(tmp_path / "model", MODEL, broken, dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text((tiny / "model" / name).read_text())
    chosen = dataclasses.replace(config, model=str(tmp_path / "model"), out=str(tmp_path / "run"), capacities=(2, 4))
    with pytest.raises(RunError, match="stage 1 could not be built"):
        train(chosen, progress=QUIET)


def test_growth_objects_are_told_apart_by_their_fields(config, tmp_path):
    chosen = dataclasses.replace(config, out=str(tmp_path), rounds=2)
    train(chosen, growth=DevFT((2, 4)), progress=QUIET)
    with pytest.raises(InputError, match="objects"):
        train(dataclasses.replace(chosen, rounds=3), growth=DevFT((1, 4)), progress=QUIET)


# ---- stop and resume, with real signals --------------------------------------------------------------------------


def start(config, folder, script=None):
    """The run in a process of its own, with the test session's compiled programs."""
    code = "from devft_jax.commands.cli import main; main()" if script is None else script
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", *flags(config, out=str(folder))],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for_rounds(process, folder, rounds):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= rounds:
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended early: {process.stderr.read()}")
        time.sleep(0.005)
    pytest.fail("the run made no progress")


@pytest.fixture(scope="module")
def long(config):
    return dataclasses.replace(config, rounds=15)


@pytest.fixture(scope="module")
def uninterrupted(long, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(long, folder)
    assert process.wait(180) == 0, process.stderr.read()
    return folder


KILL_IN_CHECKPOINT = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from pathlib import Path
    folder = Path(sys.argv[sys.argv.index("--out") + 1]) / "checkpoints"
    def watch():
        while True:
            try:
                whole = [name for name in os.listdir(folder) if name.isdecimal()]
                partial = [path for path in folder.glob(".*.partial") if any(WHERE in name for name in os.listdir(path))]
            except OSError:  # it has just got its name
                continue
            if whole and partial:
                os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()
    from devft_jax.commands.cli import main
    main()
    """
)


def slow(value):
    """One more case of what the default suite tries once."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("where", [slow("first-stage"), "stage-border", slow("last-stage"), "tmp", slow("record")])
def test_a_killed_run_resumes_bit_for_bit(long, uninterrupted, tmp_path, where):
    if where in ("tmp", "record"):
        every = dataclasses.replace(long, checkpoint_every=1)
        process = start(every, tmp_path, KILL_IN_CHECKPOINT.replace("WHERE", repr(where)))
        process.wait(180)
    else:
        process = start(long, tmp_path)
        wait_for_rounds(process, tmp_path, {"first-stage": 3, "stage-border": 5, "last-stage": 13}[where])
        process.kill()
        process.wait(60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "adapter").exists()
    resumed = start(long, tmp_path)
    assert resumed.wait(180) == 0, resumed.stderr.read()
    assert adapter_bytes(tmp_path) == adapter_bytes(uninterrupted)
    rounds = [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, 16))
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, uninterrupted))
    for name in ("final_loss", "bytes_up", "bytes_down", "bytes_stage", "train_flops", "rounds"):
        assert mine[name] == theirs[name], name
    if mine["energy"]["source"] == theirs["energy"]["source"] == "estimate from FLOPs":
        assert mine["energy"]["kwh"] == pytest.approx(theirs["energy"]["kwh"], rel=1e-12)


@pytest.mark.parametrize("stream", ["closed", slow("/dev/full")])
def test_a_run_whose_progress_nobody_takes_goes_on(config, finished, tmp_path, stream):
    command = [
        sys.executable,
        "-c",
        "from devft_jax.commands.cli import main; main()",
        "run",
        *flags(config, out=str(tmp_path)),
    ]
    if stream == "closed":
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        process.stderr.close()
        assert process.wait(180) == 0
    else:
        with open(stream, "w") as full:
            assert subprocess.run(command, stderr=full, env={**os.environ, "JAX_PLATFORMS": "cpu"}).returncode == 0
    assert adapter_bytes(tmp_path) == adapter_bytes(finished.folder)
    assert json.loads((tmp_path / "summary.json").read_text())["progress_lost"] in ("Broken pipe", "No space left on device")


def test_a_stop_while_a_run_is_loaded_is_before_its_first_round(long, tmp_path):
    process = start(long, tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    said = process.stderr.read()
    assert "stopped before a round was trained; the same command starts the run again" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM), slow(signal.SIGHUP)])
def test_a_stopped_run_says_how_to_go_on_and_does(long, uninterrupted, tmp_path, number):
    process = start(long, tmp_path)
    wait_for_rounds(process, tmp_path, 4)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert "the same command resumes it" in process.stderr.read()
    done = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert f"stopped after round {done} of 15" in (tmp_path / "report.html").read_text()
    resumed = start(long, tmp_path)
    assert resumed.wait(180) == 0, resumed.stderr.read()
    assert adapter_bytes(tmp_path) == adapter_bytes(uninterrupted)
    assert f"finished: 15 rounds, resumed after round {done}<" in (tmp_path / "report.html").read_text()
    story = read_story(tmp_path)
    assert story.resumes == [done]
    for axis in story.axes:
        assert len(axis.values) == 16
        assert all(before < after for before, after in itertools.pairwise(axis.values))
    assert timeless_page(tmp_path) == timeless_page(uninterrupted)


def timeless_page(folder):
    """The report without what two equal runs differ in: times, memory, the folder's name and where it was resumed."""

    story = read_story(folder)
    record = dataclasses.replace(
        story.record,
        resumed_after=[],
        peak_memory_bytes=1,
        seconds=SecondsRecord(train=1, compile=1, build=1, evaluate=1),
        compiled_ahead=CompiledAheadRecord(programs=1, seconds=1, unused=0),
        stages=[dataclasses.replace(stage, seconds=1.0) for stage in story.record.stages],
    )
    rows = [dataclasses.replace(row, seconds=1.0, tokens_per_second=1.0) for row in story.rows]
    config = {**story.config, "out": "run"}
    story = dataclasses.replace(story, name="run", config=config, record=record, rows=rows)
    return report_html(story, read_settings(story.config))


@pytest.mark.slow
def test_real_models_and_data(shared, tmp_path):
    config = RunConfig(
        model=str(shared / "models" / "proxy-16l"),
        data=str(shared / "data" / "dolly-15k-fed10" / "local_training_*.json.gz"),
        test_data=str(shared / "data" / "dolly-15k-fed10" / "global_test.json.gz"),
        growth="end-to-end",
        rounds=2,
        local_steps=2,
        batch_size=4,
        max_length=128,
        rank=8,
        learning_rate=(3e-3,),
        out=str(tmp_path),
    )
    run = train(config, progress=QUIET)
    assert run.summary.clients == 10
    assert run.summary.final_loss < run.summary.base_loss


def test_the_adapter_file_holds_contiguous_hugging_face_factors(finished):
    tensors = load_file(finished.folder / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], np.asarray(finished.adapter.lora["v"].b[2]).T)


def test_load_pretrained_reads_what_the_run_used(tiny):
    assert load_pretrained(tiny / "model").config == dataclasses.replace(MODEL)


@pytest.mark.parametrize("change", [{"data": "absent/*.json"}, {"test_data": "./absent.json"}], ids=str)
def test_data_that_is_not_there_is_told_before_a_model_is_fetched(config, change):
    with pytest.raises(InputError, match=r"data '(.*/absent/\*|./absent)\.json' (matches no file|does not exist)"):
        train(dataclasses.replace(config, model="somebody/no-such-model", **change), progress=QUIET)


def test_a_page_that_cannot_be_written_does_not_fail_a_run_that_is_saved(config, tmp_path, monkeypatch):
    def refuse(path):
        raise InputError("the report cannot be written; name another file.")

    monkeypatch.setattr("devft_jax.training.finishing.write_report", refuse)
    told = io.StringIO()
    run = train(dataclasses.replace(config, out=str(tmp_path), rounds=2, growth="end-to-end"), progress=Progress(told))
    assert run.finished
    assert (tmp_path / "summary.json").exists()
    assert "the report cannot be written; name another file. The run itself is saved." in told.getvalue()

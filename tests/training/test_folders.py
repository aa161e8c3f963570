"""A run in a folder that already holds something: a finished or damaged run, another one, changed data."""

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.errors import InputError, RunError
from devft_jax.reporting import Progress
from devft_jax.reporting.report_file import write_report
from devft_jax.storage.digests import write_list
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import adapter_bytes, flags

QUIET = Progress(quiet=True)


def test_a_finished_run_is_not_run_again(finished, config, capfd):
    def files():
        found = [path for path in finished.folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before, said = files(), io.StringIO()
    again = train(dataclasses.replace(config, out=str(finished.folder)), progress=Progress(said))
    assert again.finished
    assert again.summary.to_plain() == json.loads((finished.folder / "summary.json").read_text())
    assert again.history == finished.history
    for leaf, same in zip(jax.tree.leaves(again.adapter), jax.tree.leaves(finished.adapter), strict=True):
        np.testing.assert_array_equal(leaf, same)
    assert files() == before
    assert "finished after 6 rounds: nothing is left to do" in said.getvalue()


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


@pytest.mark.parametrize("lengthened_rate", ["schedule", "end"])
def test_a_lengthened_cosine_says_what_becomes_of_its_rate(config, tmp_path, lengthened_rate):
    short = dataclasses.replace(config, rounds=2, growth="end-to-end", min_learning_rate=1e-3, out=str(tmp_path))
    last = train(short, progress=QUIET).history[-1].learning_rate
    output = io.StringIO()
    longer = dataclasses.replace(short, rounds=6, lengthened_rate=lengthened_rate)
    rates = [row.learning_rate for row in train(longer, progress=Progress(output)).history]
    said = output.getvalue()
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


@pytest.mark.parametrize("change", [{"rank": 2}, {"seed": 3}, {"beta": 0.2}, {"learning_rate": (0.01,)}])
def test_another_run_is_refused_in_the_same_folder(finished, config, change):
    before = {path: path.read_bytes() for path in finished.folder.glob("*.json*")}
    with pytest.raises(InputError, match=next(iter(change))):
        train(dataclasses.replace(config, out=str(finished.folder), **change), progress=QUIET)
    assert before == {path: path.read_bytes() for path in finished.folder.glob("*.json*")}


def test_a_folder_in_use_is_refused(config, tmp_path):
    from devft_jax.storage.run_folder import RunFolder

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


def test_a_page_that_cannot_be_written_does_not_fail_a_run_that_is_saved(config, tmp_path, monkeypatch):
    def refuse(path):
        raise InputError("the report cannot be written; name another file.")

    monkeypatch.setattr("devft_jax.training.finishing.write_report", refuse)
    said = io.StringIO()
    run = train(dataclasses.replace(config, out=str(tmp_path), rounds=2, growth="end-to-end"), progress=Progress(said))
    assert run.finished
    assert (tmp_path / "summary.json").exists()
    assert "the report cannot be written; name another file. The run itself is saved." in said.getvalue()

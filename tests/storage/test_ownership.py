"""Who owns `--out`: what is somebody else's is refused before a byte is written, whatever its names are."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from devft_jax.comparing.compare import compare
from devft_jax.comparing.options import CompareOptions
from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError, RunError
from devft_jax.files import exclusive_temporary
from devft_jax.reporting import Progress
from devft_jax.reporting.report_file import write_report
from devft_jax.storage.ownership import COMPARISON, EXPORT, JUDGED, RUN, claim
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.run import train
from experiments import demo
from tests.reporting.stories import write_story

QUIET = Progress(quiet=True)
OWN_RUN = json.dumps(to_plain(RunConfig()))


def files_of(folder: Path) -> dict[str, object]:
    """Everything below a folder: what files hold, and where links lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def foreign(folder: Path, *names: str) -> Path:
    """A folder of somebody's files, a name that ends in / a folder with one."""
    for name in names:
        path = folder / name / "my_weights.bin" if name.endswith("/") else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("years of work")
    return folder


FOREIGN = [
    ("adapter/", "bank/", "report.html", "summary.json"),
    ("adapter/",),
    ("checkpoints/",),
    ("metrics.jsonl",),
    ("config.json", "model.safetensors"),
    ("comparison.json", "runs/"),
    ("devft_export.json",),
    ("demo.json", "fedit/"),
    (".hidden",),
    (".config.json.partial",),
    ("notes.txt",),
]


def start_run(out: Path) -> None:
    train(RunConfig(out=str(out)), progress=QUIET)


def start_comparison(out: Path) -> None:
    compare(RunConfig(rounds=8), CompareOptions(arms=("fedit",), out=str(out)), progress=QUIET)


def start_demo(out: Path) -> None:
    claim(out, demo.DEMO)


@pytest.mark.parametrize("names", FOREIGN, ids=",".join)
@pytest.mark.parametrize("start", [start_run, start_comparison, start_demo])
def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path, start, names):
    folder = foreign(tmp_path / "theirs", *names)
    before = files_of(folder)
    with pytest.raises(InputError, match=r"holds something else \(.*\); name an absent or empty folder"):
        start(folder)
    assert files_of(folder) == before


@pytest.mark.parametrize("names", FOREIGN, ids=",".join)
def test_every_kind_refuses_what_no_kind_left(tmp_path, names):
    folder = foreign(tmp_path / "theirs", *names)
    for kind in (RUN, COMPARISON, EXPORT, JUDGED, demo.DEMO):
        with pytest.raises(InputError, match="holds something else"):
            claim(folder, kind)


@pytest.mark.parametrize(("name", "kind"), [("config.json", RUN), ("devft_export.json", EXPORT)])
@pytest.mark.parametrize("text", ["", "{", '{"a": 1'])
def test_a_damaged_record_of_whose_folder_it_is_is_named(tmp_path, name, kind, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"\({name}:1 is not valid JSON .*\); name .* or restore {name} if it is"):
        claim(tmp_path, kind)
    assert (tmp_path / name).read_text() == text


def test_nothing_is_nobodys_and_a_lock_or_what_a_kill_left_is_nothing(tmp_path):
    assert not claim(tmp_path / "absent", RUN)
    assert not claim(tmp_path, RUN)
    (tmp_path / ".lock").write_text("")
    (tmp_path / f".config.json.{'0' * 16}.partial").write_text("{")
    (tmp_path / f".adapter.{'0' * 16}.partial").mkdir()
    assert not claim(tmp_path, RUN)
    with RunFolder(tmp_path, RUN):
        assert os.listdir(tmp_path) == [".lock"]


def test_each_kind_knows_its_own_and_refuses_the_others(tmp_path):
    names = ("run", "comparison", "stopped", "export", "judged")
    run, comparison, stopped, export, judged = (tmp_path / name for name in names)
    for folder in (run, comparison, stopped / "runs", export, judged):
        folder.mkdir(parents=True)
    (run / "config.json").write_text(OWN_RUN)
    (comparison / "comparison.json").write_text(json.dumps({"budgets": [], "reference": "fedit", "seeds": [0]}))
    (stopped / "runs" / "fedit-end-to-end-s0-01234567.json").write_text(OWN_RUN)
    request = dict.fromkeys(("source", "form", "stage", "client", "model"))
    (export / "devft_export.json").write_text(json.dumps(request))
    (export / "config.json").write_text('{"model_type": "llama"}')
    (judged / "results.json").write_text(json.dumps(dict.fromkeys(("questions", "models", "judge", "results"))))
    owners = {run: RUN, comparison: COMPARISON, stopped: COMPARISON, export: EXPORT, judged: JUDGED}
    for folder, owner in owners.items():
        for kind in (RUN, COMPARISON, EXPORT, JUDGED):
            if kind is owner:
                assert claim(folder, kind)
            else:
                with pytest.raises(InputError, match=f"holds an? {owner.name}; name another folder for the {kind.name}"):
                    claim(folder, kind)
    (tmp_path / "demo" / "fedit").mkdir(parents=True)
    (tmp_path / "demo" / "fedit" / "config.json").write_text(OWN_RUN)
    assert claim(tmp_path / "demo", demo.DEMO)
    with pytest.raises(InputError, match="holds something else"):
        claim(tmp_path / "demo", RUN)


@pytest.mark.parametrize("name", ["adapter", "checkpoints", "bank", "config.json", "metrics.jsonl", "report.html", ".lock"])
def test_no_link_is_followed_out_of_a_run(tmp_path, name):
    theirs = foreign(tmp_path / "theirs", "adapter_config.json")
    folder = tmp_path / "run"
    folder.mkdir()
    if name == "config.json":
        (theirs / name).write_text(OWN_RUN)
    else:
        (folder / "config.json").write_text(OWN_RUN)
    (folder / name).symlink_to(theirs / name if "." in name else theirs)
    before = files_of(tmp_path)
    with pytest.raises(InputError, match=f"{name} is a link, and the run would be written to its target; remove it"):
        start_run(folder)
    assert files_of(tmp_path) == before


def test_links_in_the_way_of_temporary_files_lead_nowhere(tmp_path):
    theirs = foreign(tmp_path / "theirs", "precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(OWN_RUN)
    for name in (".config.json.partial", ".report.html.partial", ".adapter.partial", ".adapter.old"):
        (folder / name).symlink_to(theirs if "adapter" in name else theirs / "precious")
    before = files_of(theirs)
    with RunFolder(folder, RUN) as held:
        held.write_json("config.json", to_plain(RunConfig(seed=1)))
        with held.replacing("adapter") as adapter:
            (adapter / "adapter_config.json").write_text("{}")
    assert files_of(theirs) == before
    assert (folder / "adapter" / "adapter_config.json").read_text() == "{}"
    assert (folder / ".adapter.old").is_symlink()


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "config.json").write_text(OWN_RUN)
    with RunFolder(tmp_path, RUN) as held:
        with pytest.raises(ZeroDivisionError), exclusive_temporary(tmp_path / "summary.json"):
            raise ZeroDivisionError
        with pytest.raises(RunError, match="no adapter today"), held.replacing("adapter"):
            raise InputError("no adapter today.")
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.json"}


def test_what_is_not_the_runs_is_not_lost_with_its_adapter(tmp_path):
    (tmp_path / "config.json").write_text(OWN_RUN)
    foreign(tmp_path, "adapter/")
    with pytest.raises(InputError, match=r"adapter holds my_weights.bin, which would be lost when it is replaced; move it"):
        start_run(tmp_path)
    assert (tmp_path / "adapter" / "my_weights.bin").read_text() == "years of work"


def test_a_file_a_pipe_the_root_and_the_home_folder_are_no_folders_for_a_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for name, words in (("file", "is a file"), ("pipe", "is no folder"), ("nowhere", "is no folder")):
        with pytest.raises(InputError, match=words):
            start_run(tmp_path / name)
    with pytest.raises(InputError, match=r"holds something else|is the root of all files"):
        start_run(Path("/"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match="is the home folder"):
        start_run(tmp_path / "home")
    assert not any((tmp_path / "home").iterdir())


def test_an_empty_folder_that_was_there_stays_where_the_request_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"does not exist|matches no file"):
        train(dataclasses.replace(RunConfig(), out=".", data="absent.json"), progress=QUIET)
    assert tmp_path.is_dir()


def test_nothing_is_written_into_what_a_run_replaces(tmp_path):
    (tmp_path / "config.json").write_text(OWN_RUN)
    for inside in ("adapter/again", "checkpoints/9", "bank"):
        with pytest.raises(InputError, match=r"is inside .*, which the run replaces"):
            start_run(tmp_path / inside)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    write_story(tmp_path / "run")
    page = write_report(tmp_path / "run", tmp_path / "page.html")
    assert write_report(tmp_path / "run", page) == page
    (tmp_path / "notes.html").write_text("<!DOCTYPE html><p>mine")
    (tmp_path / "link.html").symlink_to(tmp_path / "notes.html")
    for name, words in (("notes.html", "exists and is not a report"), ("link.html", "is a link"), (".", "is not a file")):
        with pytest.raises(InputError, match=words):
            write_report(tmp_path / "run", tmp_path / name)
    assert (tmp_path / "notes.html").read_text() == "<!DOCTYPE html><p>mine"
    planted = tmp_path / "run" / ".report.html.partial"
    planted.symlink_to(tmp_path / "notes.html")
    write_report(tmp_path / "run")
    assert (tmp_path / "notes.html").read_text() == "<!DOCTYPE html><p>mine"

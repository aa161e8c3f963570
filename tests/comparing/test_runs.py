"""The runs of a comparison as processes: how a stop reaches them, and what is said of one that dies."""

import signal
import sys
import threading
import time

import pytest

import devft_jax
from devft_jax.comparing import processes as module
from devft_jax.comparing.runs import Runs
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import StopRequest

QUIET = Progress(quiet=True)


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
print("  round 1/9", flush=True)
time.sleep(60)
"""


def test_a_stop_is_passed_on_to_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "REPORT_EVERY", 0.1)
    stop = StopRequest()
    runs = Runs(tmp_path, Progress(), stop, 0)
    log = tmp_path / "log"

    def ask():
        while "round" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.05)
        time.sleep(0.5)
        stop.signal = signal.SIGINT

    asker = threading.Thread(target=ask)
    asker.start()
    assert runs._supervise([sys.executable, "-c", CHILD], log) == 130
    asker.join()
    said = capsys.readouterr().err
    assert "  round 1/9\n" in said
    assert "stopping when the run has saved its round" in said


def test_a_run_that_goes_on_is_reported_where_it_said_something_new(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "REPORT_EVERY", 0.0)
    script = "import time; print('  compiling', flush=True); time.sleep(1); print('  round 1/2', flush=True); time.sleep(1)"
    assert Runs(tmp_path, Progress(), StopRequest(), 0)._supervise([sys.executable, "-c", script], tmp_path / "log") == 0
    assert capsys.readouterr().err.splitlines()[-2:] == ["  compiling", "  round 1/2"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL, perhaps for lack of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV."),
        ("raise ValueError('deep inside')", "ValueError: deep inside"),
        ("import sys; sys.exit(143)", "it was stopped"),
        ("import sys; sys.exit(3)", "it ended with code 3"),
    ],
)
def test_however_a_run_dies_there_is_a_sentence(tmp_path, script, expected):
    log = tmp_path / "log"
    code = Runs(tmp_path, QUIET, StopRequest(), 0)._supervise([sys.executable, "-c", script], log)
    assert expected in module.last_words(log, code)


def test_a_run_is_of_this_package_wherever_it_is_started(tmp_path, monkeypatch):
    """Not of another one that is installed, and the package's own modules are none of the standard library's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    script = "import typing, devft_jax; print(typing.Any, devft_jax.__file__)"
    assert Runs(tmp_path, QUIET, StopRequest(), 0)._supervise([sys.executable, "-c", script], tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == f"typing.Any {devft_jax.__file__}\n"

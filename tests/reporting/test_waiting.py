"""What is said of a step while no round ends: sparsely in a log file, in one line that is rewritten at a terminal."""

import io
import time

import pytest

from devft_jax.reporting import waiting
from devft_jax.reporting.progress import Progress
from devft_jax.reporting.waiting import Watch
from devft_jax.runtime.screen import show


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(**changes):
    """A watch whose thread never wakes up, and what it adds."""
    lines = []
    return Watch(lines.append, first=1000.0, **changes), lines


def test_a_log_file_gets_a_line_at_once_and_then_at_growing_distances():
    watching, lines = watch(again=(10, 100))
    with watching.doing("reading the model") as step:
        # Sums of whole numbers are exact.
        step.began = float(int(step.began))
        step.due = step.began + 1000
        for second in range(1, 1000):
            watching.report(step.began + 1000 + second)
    assert lines == [
        "  reading the model ...",
        *(f"  reading the model ... {shown}" for shown in ("16m51s", "18m31s", "20m11s", "21m51s", "23m31s")),
        *(f"  reading the model ... {shown}" for shown in ("25m11s", "26m51s", "28m31s", "30m11s", "31m51s")),
    ]


def test_a_step_says_how_far_it_is():
    watching, lines = watch()
    with watching.doing("reading the data") as step:
        step.count(2048, 20_000, "records tokenised")
        watching.report(step.began + 1000)
    assert lines == ["  reading the data ... 2,048 of 20,000 records tokenised, 16m40s"]


def test_of_steps_within_each_other_the_innermost_is_reported():
    watching, lines = watch()
    with watching.doing("building stage 2's model") as outer:
        with watching.doing("compiling") as inner:
            watching.report(inner.began + 1001)
        watching.report(outer.began + 1002)
    assert lines == ["  compiling ...", "  building stage 2's model ..."]


@pytest.mark.parametrize(("seconds", "kept"), [(1.9, []), (2.1, ["  compiling ... 2s"])])
def test_at_a_terminal_only_a_long_step_keeps_its_line(seconds, kept, monkeypatch):
    drawn = []
    watching, lines = watch(draw=drawn.append)
    with watching.doing("compiling") as step:
        watching.report(step.began + 1000)
        watching.report(step.began + 1001)
        monkeypatch.setattr(waiting.time, "monotonic", lambda: step.began + seconds)
    assert drawn == ["  compiling ... 16m40s", "  compiling ... 16m41s", ""]
    assert lines == kept


def test_a_step_that_was_not_reported_leaves_nothing():
    drawn = []
    watching, lines = watch(draw=drawn.append)
    with watching.doing("something quick"):
        pass
    assert not drawn
    assert not lines


def test_other_output_replaces_the_line_at_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream)
    progress._draw("  compiling ... 3s")
    show("a result", stream=stream)
    progress.say("round 1")
    assert stream.getvalue() == "\r\x1b[K  compiling ... 3s\r\x1b[Ka result\nround 1\n"


def test_a_line_at_a_terminal_is_written_while_a_step_lasts_and_fits_into_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream)
    with progress.doing("x" * 500):
        deadline = time.monotonic() + 20
        while "xxx" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    first, *_ = stream.getvalue().split("\r\x1b[K")[1:]
    assert len(first) == 119


def test_a_terminal_that_cannot_rewrite_a_line_is_a_log_file(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    progress = Progress(stream)
    assert progress._watch._draw is None


def test_a_quiet_run_shows_no_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    Progress(stream, quiet=True)._draw("  compiling ... 3s")
    assert stream.getvalue() == ""

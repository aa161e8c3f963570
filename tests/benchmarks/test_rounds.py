"""The driver's tables, charts and command line, from made-up measurements."""

import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from processes import idle_share
from rounds import OWN, REFERENCE, Bench, apply_gate, head_layers, interleaved, parse, planned, report

REPEATS = 7


def timed(wall, peak=1e8):
    return [{"wall": wall * (1 + index % 3), "cpu": 2 * wall * (1 + index % 3), "peak": peak} for index in range(REPEATS)]


def result():
    programs = {
        name: {
            "difference": 1e-7, "relative": 1e-6, "passed": True, "loss": 4.5,
            "start": 3.0, "first": 10.0, "rounds": timed(wall),
        }
        for name, wall in ((OWN, 0.25), (REFERENCE, 5.0))
    }  # fmt: skip
    work = {"clients": 4, "steps": 5, "batch": 2, "tokens": 640, "answer_tokens": 600, "longest": 16}
    return {"tolerance": 1e-5, "reference": REFERENCE, "programs": programs, "work": work}


def results():
    part = {"cold": 9.0, "wall": [1.0] * REPEATS, "cpu": [1.0] * REPEATS}
    stage = {"layers": 2, "build": part, "transfer": part, "round": {**part, "wall": [4.0] * REPEATS}}
    return {
        "machine": "a machine",
        "busy_before": 0.02,
        "rounds": {"tiny": result()},
        "scaling": {OWN: {size: timed(size / 1000, 1e8 + 1e4 * size) for size in (1, 256, 4096)}},
        "depth": {
            "rounds": {depth: timed(1 + depth / 2) for depth in (2, 4, 8, 16)},
            "work": result()["work"],
            "head_layers": 1.0,
        },
        "stages": {"none": [stage]},
        "left_out": ["something, because of a reason"],
    }


def test_the_report_holds_every_part(tmp_path):
    text = report(results(), tmp_path)
    for line in (
        "| torch + PEFT loop, 1 thread | 0.050 [0.050, 0.050] | 0.050 [0.050, 0.050] |",
        f"{OWN}, 4,096 clients against 256: time per client 1.000 [1.000, 1.000] times (wall)",
        # Repetitions that are all alike make no interval.
        "the rest of c is 5.6 % of the time at 16 layers",
        "| none | 2 | 1.000 | 1.000 | 4.000 | 2.00 [2.00, 2.00] | 0.50 [0.50, 0.50] | 21.0 |",
        "- something, because of a reason",
    ):
        assert line in text
    for name in ("scaling_speed.svg", "scaling_memory.svg"):
        ElementTree.parse(tmp_path / name)
        assert f"({name})" in text


def test_wall_and_cpu_seconds_stand_in_their_columns(tmp_path):
    text = report({**results(), "scaling": {}}, tmp_path)
    # The median of 0.25 and its double and treble is 0.5 s of wall and 1 s of CPU time; 20 client-steps a round.
    assert f"| {OWN} | 0.500 (0.250 to 0.750) | 1.000 [0.500, 1.500] | 100 | 3.0 | 9.5 | 40 | 80 | 1,280 |" in text


class FakeProcess:
    def __init__(self, name, log):
        self.name, self.log, self.stopped = name, log, False

    def ask(self, command):
        self.log.append(self.name)
        return {"wall": 1.0, "cpu": 1.0, "peak": 1.0}

    def stop(self):
        self.stopped = True


def test_repetitions_are_interleaved_in_a_shifting_order():
    log = []
    rows = interleaved({name: FakeProcess(name, log) for name in "abc"}, 3, lambda text: None)
    assert log == list("abcbcacab")
    assert {name: len(timed) for name, timed in rows.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_program_that_computes_something_else_is_not_timed():
    left_out = []
    bench = SimpleNamespace(say=lambda text: None, leave_out=left_out.append)
    shape = SimpleNamespace(name="tiny", tolerance=1e-5)
    found = result()
    for name, shift in ((OWN, 1e-3), (REFERENCE, 0.0)):
        found["programs"][name]["adapters"] = {"q.a": np.ones(3) + shift}
    running = {name: FakeProcess(name, []) for name in found["programs"]}
    wrong = running[OWN]
    apply_gate(bench, shape, found, running, {"q.a": np.zeros(3)})
    assert list(running) == [REFERENCE]
    assert wrong.stopped
    assert not found["programs"][OWN]["passed"]
    assert found["programs"][REFERENCE]["passed"]
    assert found["programs"][OWN]["relative"] == pytest.approx(1e-3)
    assert left_out == [f"{OWN} on tiny: its adapters differ by 1.0e-03, more than 1e-05."]
    assert all("adapters" not in program for program in found["programs"].values())


def test_the_head_is_counted_on_the_answers_alone(micro):
    rounds = {2: [{"flops": 1e6}], 4: [{"flops": 3e6}]}
    with np.load(micro / "examples.npz") as stored:
        answers = (stored["lengths"] - np.maximum(stored["prompt_lengths"], 1)).sum()
    assert head_layers(micro, rounds) == pytest.approx(4 * 32 * 128 * answers / 1e6)


def test_the_command_line_names_interpreters():
    options = parse(["--out", "x", "--rival", f"torch={sys.executable}", "--works", "tiny"])
    assert options.rival == [("torch", sys.executable)]
    assert options.works == ["tiny"]


def test_the_command_line_refuses_unknown_environments(capsys):
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--rival", "tensorflow=/usr/bin/python3"])
    assert "'tensorflow=/usr/bin/python3' is not an environment and its interpreter" in capsys.readouterr().err


def test_without_dolly_what_needs_it_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DOLLY_DATA", raising=False)
    bench = Bench(parse(["--out", "x"]), tmp_path)
    assert [(part, work) for part, work, _ in planned(bench)] == [("rounds", "tiny"), ("rounds", "small"), ("scaling", None)]
    assert bench.left_out == [
        f"{what}: it needs Dolly's text; set --dolly." for what in ("the work dolly", "the part depth", "the part stages")
    ]


def test_the_machine_is_idle_to_some_share():
    assert 0 <= idle_share(0.05) <= 1

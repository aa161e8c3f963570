"""A work as programs read it, and the lines by which a program is driven."""

import sys
from pathlib import Path

import numpy as np
import pytest
from processes import Process, ProgramError
from protocol import Work

PROGRAM = """
import sys
sys.path.insert(0, {programs!r})
from protocol import serve

class Echo:
    def __init__(self, work, options):
        print("a library's chatter")
        self.work, self.rounds = work, 0

    def round(self):
        self.rounds += 1
        if self.rounds == 3:
            raise RuntimeError("out of breath")

    def figures(self):
        return {{"rounds": self.rounds}}

    def result(self):
        return self.work.adapters, 1.5

serve(Echo)
"""


@pytest.fixture
def program(tmp_path, micro):
    script = tmp_path / "echo.py"
    programs = Path(sys.modules["protocol"].__file__).parent
    script.write_text(PROGRAM.format(programs=str(programs)))
    process = Process("echo", [sys.executable, str(script), "--work", str(micro)], tmp_path)
    yield process
    process.stop()


def test_a_program_is_driven_by_lines_and_its_end_is_told(program, micro):
    assert program.versions["numpy"] == np.__version__
    first = program.ask("round")
    assert first["rounds"] == 1
    assert first["wall"] >= 0
    assert first["cpu"] >= 0
    assert first["peak"] > 1e6
    adapters, loss = program.adapters()
    assert loss == 1.5
    np.testing.assert_array_equal(adapters["q.a"], Work(micro).adapters["q.a"])
    program.ask("round")
    with pytest.raises(ProgramError, match=r"ended with code 1: RuntimeError: out of breath"):
        program.ask("round")


def test_rows_are_padded_to_the_longest_asked_for(micro):
    work = Work(micro)
    for client in range(work.clients):
        for examples, (tokens, answer) in zip(work.order[client], work.steps_of(client), strict=True):
            lengths = work.lengths[examples]
            assert tokens.shape == answer.shape == (work.batch, lengths.max())
            for row, length, prompt in zip(answer, lengths, work.prompt_lengths[examples], strict=True):
                assert np.flatnonzero(row).tolist() == list(range(max(prompt, 1), length))
    assert work.gather(work.order)[0].shape == (4, 2, 2, work.lengths.max())
    assert work.tokens == work.lengths.sum()


def test_fewer_clients_are_the_first_ones(micro):
    whole, part = Work(micro), Work(micro, 3)
    np.testing.assert_array_equal(part.order, whole.order[:3])
    assert len(part.rows) == part.order.size
    assert part.order.max() < len(part.rows)

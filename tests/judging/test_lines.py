"""Files of JSON lines that only grow: whatever moment a process is killed at, finished lines stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.errors import InputError, RunError
from devft_jax.judging.lines import GrowingLines, read_lines

ROWS = [{"text": "a\u2028b \N{SNOWMAN}", "n": 1}, {"text": "", "n": 2}]


@given(cut=st.integers(0, 200))
def test_a_kill_in_the_middle_of_a_line_loses_that_line_alone(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("lines") / "a" / "lines.jsonl"
    file = GrowingLines(path)
    assert file.read() == []
    for row in ROWS:
        file.append(row)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    ends = [whole.index(b"\n"), len(whole) - 1]
    kept = [row for row, end in zip(ROWS, ends, strict=True) if end <= cut]
    assert [row for _, row in file.read()] == kept
    file.append({"n": 3})
    assert [row for _, row in file.read()] == [*kept, {"n": 3}]
    assert path.read_bytes().endswith(b"\n")


def test_what_other_programs_ended_without_a_line_break_is_kept(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}')
    GrowingLines(path).append({"n": 2})
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n\n{"n": \n{"n": 3}\n')
    for read in (GrowingLines(path).read, lambda: read_lines(path, "the lines")):
        with pytest.raises(InputError, match=r"lines.jsonl:3 is not valid JSON"):
            read()
    path.write_text('{"n": 1}\n[2]\n')
    with pytest.raises(InputError, match=r"lines.jsonl:2 is no JSON object"):
        GrowingLines(path).read()
    path.write_bytes(b'{"n": "\xff"}\n{"n": 2}\n')
    with pytest.raises(InputError, match=r"lines.jsonl:1 is not UTF-8 text"):
        GrowingLines(path).read()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        GrowingLines(tmp_path / "file" / "lines.jsonl").append({})

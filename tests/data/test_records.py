"""Sources and records are read anew each time."""

from devft_jax.data.records import Records
from devft_jax.data.sources import load_sources
from tests.data.written import ALPACA, write_rows


def test_a_source_is_read_anew_each_time_and_picked_from_in_one_pass(tmp_path):
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", [ALPACA | {"output": f"{name}{n}"} for n in range(4)])
    records = Records(load_sources(str(tmp_path)))
    assert len(records) == 8
    assert [record.output for record in records] == [record.output for record in records]
    assert [record.output for record in records.at([1, 4, 7])] == ["a1", "b0", "b3"]
    assert list(records.at([])) == []

"""Fleets from files: tables with one sentence for each broken line, and FedScale's pickles of plain values."""

import json
import os
import pickle

import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.fleets.opening import open_fleet
from devft_jax.fleets.options import FleetOptions
from devft_jax.fleets.tiers import tiers_or_file

NAMES, IDS = ["a", "b"], np.array([11, 12], np.uint32)
TABLE = """client,gflops,memory_gb,down_mbit,up_mbit,failure_rate,from_hour,to_hour,tier
b, 10, 2, 80, 8, 0.5, 22, 6, pi
a, 1000, 16, 800, 80, , , , gpu
c, 1, 1, 1, 1, 0, 0, 24, pi
"""


def opened(path, **options):
    return open_fleet(FleetOptions(fleet=str(path), **options), NAMES, IDS, 0)


def written(folder, text, name="fleet.csv"):
    (folder / name).write_text(text)
    return folder / name


def check(fleet):
    assert fleet.flops_per_second.tolist() == [1e12, 1e10]
    assert fleet.memory.tolist() == [16e9, 2e9]
    assert fleet.down.tolist() == [1e8, 1e7]
    assert fleet.up.tolist() == [1e7, 1e6]
    assert fleet.failure.tolist() == [0, 0.5]
    assert fleet.by_tier() == {"gpu": 1, "pi": 1}
    both = np.arange(2)
    assert fleet.presence.present(12 * 3600.0, both).tolist() == [True, False]
    assert fleet.presence.present(5 * 3600.0, both).tolist() == [True, True]


def test_csv_is_read_in_the_clients_order(tmp_path):
    check(opened(written(tmp_path, TABLE)))


def test_json_and_json_lines_say_the_same(tmp_path):
    lines = [line.split(",") for line in TABLE.replace(" ", "").splitlines()]
    entries = [
        {
            key: value if key in ("client", "tier") else float(value)
            for key, value in zip(lines[0], line, strict=True)
            if value
        }
        for line in lines[1:]
    ]
    check(opened(written(tmp_path, json.dumps(entries), "fleet.json")))
    check(opened(written(tmp_path, "\n".join(map(json.dumps, entries)), "fleet.jsonl")))


HEADER = "client,gflops,memory_gb,down_mbit,up_mbit\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "a,1,1,1,1\nb,1,1,1\n", r"fleet.csv:3 has 4 values for 5 columns; correct the line."),
        (HEADER + "a,1,1,1,1\nb,1,1,x,1\n", r"fleet.csv:3: down_mbit has 'x', which is not a number; write a number."),
        (HEADER + "a,1,1,1,1\nb,1,,1,1\n", r"fleet.csv:3: memory_gb has no value; write a number."),
        (HEADER + "a,0,1,1,1\n", r"fleet.csv:2: gflops 0 is not positive"),
        (HEADER + "a,nan,1,1,1\n", r"fleet.csv:2: gflops has 'nan', which is not a number"),
        (HEADER + "a,1,1,1,1\na,1,1,1,1\n", r"fleet.csv:3 names the client 'a' again"),
        (HEADER + ",1,1,1,1\n", r"fleet.csv:2 names no client"),
        (HEADER + "a,1,1,1,1\n", r"fleet .*fleet.csv has no line for the client 'b' of the data; add one"),
        (HEADER, r"fleet.csv names no client; write one line for each client."),
        ("client,gflops\na,1\n", r"fleet.csv:1 lacks the column memory_gb, down_mbit, up_mbit"),
        ('[{"client": "a"}]', r"fleet.csv, entry 1: gflops has no value"),
        (
            '{"client": "a", "gflops": 1, "memory_gb": 1, "down_mbit": 1, "up_mbit": 1}\n{"client"',
            r"fleet.csv:2 is not valid JSON",
        ),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        opened(written(tmp_path, text))


def test_a_missing_file_is_no_fleet(tmp_path):
    with pytest.raises(InputError, match=r"fleet 'phones' is neither a tier nor a file; did you mean 'phone'\?"):
        open_fleet(FleetOptions(fleet="phones"), NAMES, IDS, 0)
    with pytest.raises(InputError, match="is not a file; give the path of one"):
        opened(tmp_path)


CAPACITY = {1: {"computation": 150.0, "communication": 8000.0}, 2: {"computation": 300.0, "communication": 800.0}}
BEHAVIOUR = {
    7: {"duration": 5, "inactive": [100, 500], "finish_time": 1000, "active": [50, 400], "model": "some"},
    9: {"duration": 5, "inactive": [100], "finish_time": 2000, "active": [0, 1500], "model": "some"},
}


@pytest.mark.parametrize("protocol", [2, 4, "json"])
def test_traces_of_fedscale_are_read_as_they_are(tmp_path, protocol):
    paths = [tmp_path / "client_device_capacity", tmp_path / "client_behave_trace"]
    for path, trace in zip(paths, (CAPACITY, BEHAVIOUR), strict=True):
        content = json.dumps(trace).encode() if protocol == "json" else pickle.dumps(trace, protocol=protocol)
        path.write_bytes(content)
    ids = np.arange(50, dtype=np.uint32)
    options = FleetOptions(fleet=str(paths[0]), fleet_availability=str(paths[1]), trace_flops=3e8)
    fleet = open_fleet(options, [str(each) for each in ids], ids, 1)
    assert set(zip(fleet.flops_per_second.tolist(), fleet.down.tolist(), strict=True)) == {(2e9, 1e6), (1e9, 1e5)}
    assert set(fleet.presence.period) == {1000, 2000}
    short = np.flatnonzero(fleet.presence.period == 1000)
    assert fleet.presence.present(60.0, short).all()
    assert not fleet.presence.present(1200.0, short).any()
    long = np.flatnonzero(fleet.presence.period == 2000)
    assert fleet.presence.present(1999.0, long).all(), "open at the end: until the end of the period"
    assert fleet.memory.min() > 0


def test_a_pickle_that_names_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "client_device_capacity"
    path.write_bytes(pickle.dumps({1: Evil()}))
    with pytest.raises(InputError, match=r"is a pickle that cannot be read as plain values \(it names .*system\)"):
        opened(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"computation": 0, "communication": 1}, "device 1: computation has 0; it needs a positive number."),
        ({"communication": 1}, "device 1: computation has no value"),
    ],
)
def test_a_broken_device_is_refused(tmp_path, entry, message):
    path = written(tmp_path, json.dumps({"1": entry}), "capacity.json")
    with pytest.raises(InputError, match=message):
        opened(path)


def test_a_broken_availability_is_refused(tmp_path):
    path = written(tmp_path, json.dumps({"1": {"active": [5, 3], "inactive": [6, 7], "finish_time": 10}}), "behave.json")
    with pytest.raises(InputError, match=r"behave.json, device 1: active and inactive are not ascending times in turn"):
        open_fleet(FleetOptions(fleet="phone", fleet_availability=str(path)), NAMES, IDS, 0)
    table = written(tmp_path, TABLE)
    with pytest.raises(InputError, match="is not a dictionary of devices; give FedScale's client_behave_trace"):
        open_fleet(FleetOptions(fleet="phone", fleet_availability=str(table)), NAMES, IDS, 0)


def test_a_file_is_named_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tiers_or_file("fleet.csv") == str(tmp_path / "fleet.csv")
    assert tiers_or_file("phone=1,laptop=2") == "phone=1,laptop=2"

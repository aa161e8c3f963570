"""Lanes: how the devices of a host are divided among runs at the same time and among processes, and what is refused."""

import os
import sys
from types import SimpleNamespace

import pytest

from devft_jax.comparing import lanes as module
from devft_jax.comparing.lanes import VISIBLE, WHOLE, Lane, find_lanes
from devft_jax.comparing.processes import supervise
from devft_jax.errors import InputError
from devft_jax.reporting import Progress
from devft_jax.runtime.processes import ALONE
from devft_jax.runtime.stopping import StopRequest


def among(index, *seen):
    """Process `index` of as many as there are values in `seen`; those with equal values see the same devices."""

    def of_all(own):
        return [[own[0], own[1], each] for each in seen]

    return SimpleNamespace(index=index, count=len(seen), several=len(seen) > 1, of_all=of_all)


def host(monkeypatch, platform, *devices, seen=None):
    monkeypatch.setattr(module, "_look", lambda: module._Host(platform, devices, seen))


def test_gpus_are_divided_by_their_visible_names(monkeypatch):
    host(monkeypatch, "gpu", "2", "3", "5", "7", "8")
    assert find_lanes(2, None, ALONE) == [Lane({VISIBLE: "2,3"}), Lane({VISIBLE: "5,7"})]
    assert [lane.environment[VISIBLE] for lane in find_lanes(5, 1, ALONE)] == ["2", "3", "5", "7", "8"]


def test_one_run_at_a_time_has_all_devices_and_looks_for_none(monkeypatch):
    monkeypatch.setattr(module, "_look", None)
    assert find_lanes(1, None, ALONE) == [WHOLE]


def test_processes_that_see_the_same_devices_divide_them(monkeypatch):
    host(monkeypatch, "gpu", "0", "1", "2", "3")
    names = [lane.environment[VISIBLE] for index in (0, 2) for lane in find_lanes(2, None, among(index, "a", "b", "a"))]
    assert names == ["0", "1", "2", "3"]
    # Another process's devices are others, under whatever numbers.
    assert find_lanes(1, None, among(1, "a", "b", "a")) == [WHOLE]


@pytest.mark.parametrize(
    ("platform", "at_once", "devices", "seen", "expected"),
    [
        ("gpu", 5, None, ["a"], "at_once 5 exceeds the 4 GPUs of .*; use 4 or less"),
        ("cpu", 3, None, ["a", "a"], "at_once 3 exceeds the 4 cores of .* for 2 processes; use 2 or less"),
        ("cpu", 1, None, ["a"] * 5, "at_once 1 exceeds the 4 cores of .* for 5 processes; start fewer processes"),
        ("gpu", 2, 3, ["a"], "devices 3 exceeds the 2 GPUs of each of the runs made at once"),
        ("tpu", 2, None, ["a"], "at_once: on a TPU one process holds all chips of a host"),
        ("tpu", 1, None, ["a", "a"], "at_once: on a TPU one process holds all chips of a host"),
    ],
)
def test_what_cannot_be_divided_is_refused(monkeypatch, platform, at_once, devices, seen, expected):
    host(monkeypatch, platform, "0", "1", "2", "3")
    with pytest.raises(InputError, match=expected):
        find_lanes(at_once, devices, among(0, *seen))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform has no affinity")
def test_a_run_has_the_cores_and_variables_of_its_lane(tmp_path):
    core = min(os.sched_getaffinity(0))
    script = "import os, time; time.sleep(0.3); print(os.sched_getaffinity(0), os.environ['CUDA_VISIBLE_DEVICES'])"
    words, log = [sys.executable, "-c", script], tmp_path / "log"
    lane = {"environment": {VISIBLE: "5"}, "cores": [core]}
    assert supervise(words, log, Progress(quiet=True), StopRequest(), **lane) == 0
    assert log.read_text() == f"{{{core}}} 5\n"

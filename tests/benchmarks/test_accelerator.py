"""The measurements on accelerators: every case runs at a tiny size, without packages that such machines may lack."""

import json
import os
import runpy
import subprocess
import sys
import time

import pytest
from accelerator import PARTS, cases, peft_rounds, report, rounds

from tests.benchmarks.conftest import BENCHMARKS

MISSING = ("datasets", "tyro", "lm_eval", "peft")


def trial(part):
    return [case for case in cases("tiny", None) if case["part"] == part]


def test_every_part_has_cases_of_both_sizes():
    for size in ("full", "tiny"):
        assert {case["part"] for case in cases(size, None)} == set(PARTS)
        names = [(case["part"], case["name"]) for case in cases(size, None)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", trial("llama"), ids=lambda case: case["name"])
def test_rounds_go_through_all_stages(case, monkeypatch):
    monkeypatch.setenv("BENCHMARK_STARTED", str(time.time()))
    found = rounds(case)["stages"]
    assert [stage["layers"] for stage in found] == [2, 4]
    for stage in found:
        assert len(stage["seconds"]) == case["rounds"]
        assert stage["tokens"] == case["clients"] * case["steps"] * case["batch"] * case["length"]
        assert min(stage["flops"], stage["peak_bytes"], stage["since_start"], *stage["seconds"]) > 0


def test_a_measurement_runs_where_optional_packages_are_missing(tmp_path):
    [case] = trial("smollm2")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({MISSING!r})); "
        f"sys.argv = ['accelerator.py', '--case', {json.dumps(case)!r}]; "
        f"runpy.run_path({str(BENCHMARKS / 'accelerator.py')!r}, run_name='__main__')"
    )
    own = {"BENCHMARK_STARTED": str(time.time()), "DEVFT_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["stages"][0]["layers"] == 4


def test_the_report_has_a_row_for_each_stage_and_names_what_failed():
    stage = {
        "layers": 4, "seconds": [2.0, 1.0], "wall": [3.0], "compiling": 9.0, "tokens": 1000, "flops": 5e11,
        "peak_bytes": 2**31, "since_start": 12.0, "clients_per_step": 8,
    }  # fmt: skip
    text = report(
        {
            "rate": {"bfloat16": {"device": "a card", "flops_per_second": 1e12}},
            "llama": {"nf4": {"stages": [stage, {**stage, "layers": 8}]}, "none": {"error": "out of memory"}},
            "peft": {"bfloat16": {"layers": 8, "seconds": [2.0], "tokens": 1000, "peak_bytes": None}},
            "first": {"tiny": {"cold": {"stages": [stage]}, "warm": {"stages": [{**stage, "since_start": 4.0}]}}},
        }
    )
    assert "a card: 1 TFLOP/s in products of bfloat16." in text
    assert "| nf4 | 4 | 8 | 1 s | 1,000 | 50.0% | 2.00 GiB | 9.0 s |" in text
    assert "| nf4 | 8 |" in text
    assert "| 8 | 2 s | 500 |  |" in text
    assert "| tiny | 12.0 s | 4.0 s |" in text
    assert "- llama, none: out of memory" in text


def test_without_an_accelerator_the_command_ends_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="JAX finds no accelerator here; --platform cpu --size tiny tries"):
        runpy.run_path(str(BENCHMARKS / "accelerator.py"), run_name="__main__")
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
def test_peft_trains_the_same_rounds():
    [case] = trial("peft")
    found = peft_rounds(case)
    assert len(found["seconds"]) == case["rounds"]
    assert found["tokens"] == case["clients"] * case["steps"] * case["batch"] * case["length"]

"""The measurements of several processes: the tables, and a tiny case by two processes."""

import copy

import pytest
from hosts import LAYOUTS, cores_of, population_cases, report, run_case, scaling_case, steady


def measured(case, seconds):
    one = {"seconds": seconds, "loss": 1.0, "building": 1.0, "all": 9.0, "before": 2e8, "peak": 3e8}
    return {"case": case, "of_processes": [copy.deepcopy(one) for _ in range(case["processes"])], "stored_rows": 5e6}


def test_populations_differ_in_nothing_but_their_size_and_the_processes():
    for full in (False, True):
        cases = population_cases(full)
        assert len({(case["clients"], case["processes"]) for case in cases}) == len(cases) == 4
        assert len({str({**case, "clients": 0, "processes": 0}) for case in cases}) == 1
        assert all(case["cohort"] <= case["clients"] for case in cases)


def test_layouts_run_the_same_rounds_on_as_many_devices():
    cases = [scaling_case(True, processes, devices) for _, processes, devices in LAYOUTS]
    assert len({str({**case, "devices": 0, "processes": 0}) for case in cases}) == 1
    assert [case["processes"] * case["devices"] for case in cases] == [1, 2, 2]


def test_every_process_has_cores_of_its_own_if_there_are_enough(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 8})
    assert [cores_of(scaling_case(True, 2, 1), process) for process in (0, 1)] == [[3], [5]]
    assert cores_of(scaling_case(True, 1, 2), 0) == [3, 5]
    assert [cores_of(scaling_case(True, 2, 2), process) for process in (0, 1)] == [[3, 5, 8], [3, 5, 8]]


def test_the_tables_leave_out_the_first_round_and_compare_sizes():
    seconds = {10_000: [9.0, 4.0, 4.0, 4.2], 1_000_000: [9.0, 5.0, 5.0, 5.1]}
    cases = [measured(case, seconds[case["clients"]]) for case in population_cases(True)]
    layouts = {
        name: [measured(scaling_case(True, 1, 1), [9.0, 1.0 + at, 1.0 + at])] for at, (name, *_) in enumerate(LAYOUTS)
    }
    text = report({"population": cases, "scaling": layouts})
    assert "| 1,000,000 | 2 | 5.00 (5.00 to 5.10) | 1.221 | 300 and 300 | 200 and 200 | 5.0 | 9 |" in text
    assert "2 process(es): a client of 1,000,000 takes 1.25 times as long as one of 10,000." in text
    assert "| 2 processes, 1 device each | 3.000 (3.000 to 3.000) | 1.500 |" in text


@pytest.mark.slow
def test_two_processes_train_a_tiny_population(monkeypatch):
    [case] = [case for case in population_cases(False) if (case["clients"], case["processes"]) == (200, 2)]
    found = run_case(case)
    assert len(found["of_processes"]) == 2
    assert found["of_processes"][0]["loss"] == found["of_processes"][1]["loss"]
    assert len(steady(found)) == case["rounds"] - 1
    assert found["stored_rows"] > 0
    assert all(one["peak"] >= one["before"] > 0 for one in found["of_processes"])
    monkeypatch.setitem(case, "algorithm", "nothing")
    with pytest.raises(SystemExit, match="algorithm 'nothing' is unknown"):
        run_case(case)

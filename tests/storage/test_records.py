"""Records as plain values and back: names and order as they stand in the files, and what is said of other files."""

import json

import pytest

from devft_jax.errors import InputError
from devft_jax.storage.records import (
    CheckpointRecord,
    CompiledAheadRecord,
    EnergyRecord,
    RoundRecord,
    RunRecord,
    RunTotals,
    SecondsRecord,
    StageRecord,
)

SECONDS = SecondsRecord(train=1.0, compile=2.0, build=3.0, evaluate=4.0)


def stage(**changes):
    values = {
        "layers": 2,
        "depth": 2,
        "trained": None,
        "assign": [0, 1, 1, -1],
        "group_sizes": [1, 2],
        "anchor_coefficients": [1.0, 0.9],
        "transition_gap": 0.5,
        "similarity": [[1.0, 0.5], [0.5, 1.0]],
        "spectrum": None,
        "planned_rounds": 3,
        "submodel_bytes": 8,
        "cached_layers": 0,
    }
    return StageRecord(**(values | changes))


def round_record(**changes):
    values = dict.fromkeys(("stage", "bytes_up", "bytes_down", "bytes_missed", "train_flops", "program_bytes", "dropped"), 0)
    values |= {"round": 1, "layers": 2, "loss": 1.5, "learning_rate": 0.1, "metrics": {"update_norm": 2.0, "odd": None}}
    values |= {"client_update_norm": 1.0, "tokens": 8, "seconds": 2.0, "tokens_per_second": 4.0}
    return RoundRecord(**(values | {"adapter_norms": [0.5, None], "clients": [0, 2]} | changes))


def run_record(**changes):
    numbers = ("held_out_examples", "rounds", "lengthened_after", "programs_compiled", "bytes_up", "bytes_down")
    numbers += ("bytes_stage", "bytes_missed", "base_bytes", "train_flops", "peak_memory_bytes", "scratch_bytes")
    numbers += ("updates_dropped", "clients", "devices", "clients_per_step")
    unknown = ("final_loss", "base_loss", "accuracy", "base_accuracy", "personal", "progress_lost", "block_influence")
    values = dict.fromkeys(numbers, 1) | dict.fromkeys(unknown)
    values |= {
        "personal_models": False,
        "stage_rounds": [3],
        "resumed_after": [],
        "seconds": SecondsRecord(train=1.0, compile=2.0, build=3.0, evaluate=4.0),
    }
    values |= {"compiled_ahead": CompiledAheadRecord(programs=0, seconds=0, unused=0), "message_dtype": "float32"}
    values |= {"energy": EnergyRecord(kwh=1.0, kgco2e=0.5, grid_kgco2e_per_kwh=0.5, source="rapl")}
    return RunRecord(**(values | {"peak_memory_source": "x", "versions": {"jax": "1"}, "stages": [stage()]} | changes))


def checkpoint_record(**changes):
    totals = RunTotals(stage_rounds=[3], clients_per_step=1, devices=1, model_shards=1, data="d", base="b")
    totals.stages.append(stage())
    return CheckpointRecord(totals=totals, round=1, stage=0, rounds_in_stage=1, groups=2, bare=0, **changes)


def through_json(record):
    return type(record).from_plain(json.loads(json.dumps(record.to_plain())), "runs/x")


@pytest.mark.parametrize("make", [round_record, stage, run_record, checkpoint_record])
def test_a_record_is_the_same_after_its_file(make):
    assert through_json(make()) == make()
    assert json.dumps(through_json(make()).to_plain()) == json.dumps(make().to_plain())


def test_names_in_the_files_are_flat_and_what_is_not_known_is_left_out():
    names = list(round_record().to_plain())
    assert names[:8] == ["round", "stage", "layers", "loss", "learning_rate", "update_norm", "odd", "client_update_norm"]
    assert names[-1] == "clients"
    assert list(round_record(held_out_loss=1.0, held_out_accuracy=0.5).to_plain())[-2:] == [
        "held_out_loss",
        "held_out_accuracy",
    ]
    assert "stopped_by" not in run_record().to_plain()
    assert run_record(stopped_by=2).to_plain()["stopped_by"] == 2
    plain = checkpoint_record(maps=[[2, 0]]).to_plain()
    assert plain["stages"][0]["assign"] == [0, 1, 1, -1]
    assert {"round", "stage_rounds", "bare", "maps"} <= set(plain)


def test_names_of_a_newer_version_are_left_out_and_those_with_a_default_may_be_missing():
    plain = run_record().to_plain() | {"of_a_newer_version": {"a": 1}}
    assert RunRecord.from_plain(plain, "runs/x") == run_record()
    row = round_record().to_plain()
    del row["learning_rate"]
    found = RoundRecord.from_plain(row | {"table": [1], "own_figure": 3.0}, "runs/x")
    assert found == round_record(learning_rate=None, metrics={"update_norm": 2.0, "odd": None, "own_figure": 3.0})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"stage_rounds": "6"}, "its record lacks a usable stage_rounds"),
        ({"stage_rounds": [1, "2"]}, "its record lacks a usable stage_rounds"),
        ({"stages": []}, "its record lacks a usable stages"),
        ({"stages": [3]}, "a stage of its record lacks a usable object"),
        ({"stages": [{}]}, "a stage of its record lacks a usable layers"),
        ({"seconds": 3}, "its record of seconds lacks a usable object"),
        ({"seconds": {}}, "its record of seconds lacks a usable train"),
        ({"energy": {"kwh": "a"}}, "its record of energy lacks a usable kwh"),
        ({"bytes_up": None}, "its record lacks a usable bytes_up"),
        ({"rounds": ...}, "its record lacks a usable rounds"),
    ],
    ids=str,
)
def test_a_record_that_is_none_is_one_sentence(change, where):
    plain = {name: value for name, value in (run_record().to_plain() | change).items() if value is not ...}
    with pytest.raises(InputError) as raised:
        RunRecord.from_plain(plain, "runs/x")
    assert where in str(raised.value)
    assert str(raised.value).startswith("the run in runs/x was written by another version of devft or is damaged (")


def test_groups_are_read_off_the_assignment():
    assert stage().groups == [[0], [1, 2]]
    assert not stage().runs_base
    assert stage(anchor_coefficients=None).runs_base

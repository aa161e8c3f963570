"""Records as plain values and back: names and order as they stand in the files, and what is said of other files."""

import json

import pytest

from devft_jax.errors import InputError
from devft_jax.storage.records import RoundRecord, RunRecord
from tests.run_records import checkpoint_record, round_record, run_record, score_record, stage_record


def through_json(record):
    return type(record).from_plain(json.loads(json.dumps(record.to_plain())), "runs/x")


@pytest.mark.parametrize("make", [round_record, stage_record, run_record, checkpoint_record])
def test_a_record_is_the_same_after_its_file(make):
    assert through_json(make()) == make()
    assert json.dumps(through_json(make()).to_plain()) == json.dumps(make().to_plain())


def test_scores_are_the_same_after_their_file():
    scores = [score_record(), score_record(filter="strict", standard_error=None, change=0.1, change_error=0.2)]
    for record in (round_record(scores=scores), run_record(base_scores=scores[:1], final_scores=scores)):
        assert through_json(record) == record
    assert [score.name for score in scores] == [("own", "acc"), ("own", "acc (strict)")]
    with pytest.raises(InputError, match="a score of its record lacks a usable value"):
        RoundRecord.from_plain(round_record().to_plain() | {"scores": [{"task": "own", "metric": "acc"}]}, "runs/x")


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
    assert stage_record().groups == [[0], [1, 2]]
    assert not stage_record().runs_base
    assert stage_record(anchor_coefficients=None).runs_base

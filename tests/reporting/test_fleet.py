"""The report's section on a simulated fleet."""

from devft_jax.reporting.fleet import _lost, _table
from devft_jax.storage.fleet_records import SimulatedRoundRecord, SimulatedStageRecord

STAGE = {"memory_bytes": 2 * 10**9, "eligible": {"phone": 3, "laptop": 2}}


def a_round(**changes):
    usual = {"seconds": 5.0, "clock": 5.0, "waited": 0.0, "eligible": 5, "present": 5, "abandoned": 0}
    lists = {name: [] for name in ("selected", "failed", "left", "late", "surplus", "client_seconds")}
    return SimulatedRoundRecord(**{**usual, **lists, **changes})


def test_a_stage_adds_up_its_rounds():
    stage = SimulatedStageRecord(**STAGE)
    stage.add(a_round(selected=[0, 1, 2], late=[1]))
    stage.add(a_round(seconds=2.0, selected=[3, 4], failed=[4]))
    assert (stage.seconds, stage.selected, stage.late, stage.failed, stage.left) == (7.0, 5, 1, 1, 0)
    assert SimulatedStageRecord.from_plain(stage.to_plain(), "here") == stage


def test_a_round_is_read_as_it_was_written():
    row = a_round(selected=[2, 0], surplus=[0], client_seconds=[1.5], steps=[1])
    assert SimulatedRoundRecord.from_plain(row.to_plain(), "here") == row
    assert row.lost == 1


def test_what_became_of_the_clients_is_said():
    some = SimulatedStageRecord(**STAGE, selected=12, late=2, surplus=1)
    words = _lost([some, SimulatedStageRecord(**STAGE, selected=3, late=1)])
    assert words == (
        "Of 15 participations that were begun, 3 were not done at the deadline, 1 were still at work when enough had "
        "finished; their work was not used."
    )
    assert _lost([SimulatedStageRecord(**STAGE, selected=4)]) == "All 4 participations that were begun were used."


def test_the_table_has_every_tier_and_stage():
    html = _table({"phone": 4, "laptop": 2}, [(1, SimulatedStageRecord(**STAGE, seconds=90.0))])
    for text in ("stage 1", "Can take part: phone", "3 of 4", "2 of 2", "Simulated time"):
        assert text in html

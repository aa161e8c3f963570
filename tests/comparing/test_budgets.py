"""What arms cost, and what controls and budgets make of them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.comparing.arms import parse_arm, total_rounds
from devft_jax.comparing.budgets import Costs, configure, leanest, nearest, nearest_rank, within_bytes
from devft_jax.config.presets import preset
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.planning.planner import make_plan

DEMO = preset("demo")


def configured(*texts, common=DEMO):
    return {each.arm.name: each for each in configure([parse_arm(text) for text in texts], common)}


@given(st.integers(1, 30), st.floats(0.5, 9), st.floats(-3, 300))
def test_the_nearest_rank_is_that_of_a_search(most, step, wanted):
    costs = {rank: step * rank for rank in range(1, most + 1)}
    found = nearest_rank(costs.__getitem__, wanted, most)
    assert abs(costs[found] - wanted) == min(abs(cost - wanted) for cost in costs.values())
    assert found == nearest(costs, wanted)


def test_of_two_equally_close_the_larger_is_taken():
    assert nearest_rank(float, 7.5, 20) == nearest({7: 7.0, 8: 8.0}, 7.5) == 8


@pytest.mark.slow
def test_the_controls_have_the_bytes_and_the_work_of_their_target():
    found = configured("fedit", "fedit+devft", "fedit@bytes=fedit+devft", "fedit@flops=fedit+devft")
    target = make_plan(found["fedit+devft"].config)
    same_bytes, same_work = found["fedit@bytes=fedit+devft"], found["fedit@flops=fedit+devft"]
    # Stages of 2, 4, 8 and 16 of 16 layers send 7.5 / 16 of what rank 16 sends; of ranks 7 and 8 it is the larger.
    assert (same_bytes.config.rank, same_bytes.config.rounds) == (8, 16)
    assert same_bytes.config.alpha / same_bytes.config.rank == DEMO.alpha / DEMO.rank
    ratio = make_plan(same_bytes.config).total("bytes_up") / target.total("bytes_up")
    assert same_bytes.note == f"rank 8 instead of 16 sends {ratio:.0%} of 'fedit+devft'"
    work = {
        rounds: make_plan(dataclasses.replace(found["fedit"].config, rounds=rounds)).total("train_flops")
        for rounds in range(1, 17)
    }
    wanted = target.total("train_flops")
    assert same_work.config.rounds == min(work, key=lambda rounds: abs(work[rounds] - wanted))
    assert same_work.config.rank == DEMO.rank
    assert "as planned" in same_work.note


@pytest.mark.parametrize("text", ["fedit+devft", "fedit+progfed"])
def test_costs_at_other_lengths_are_those_of_plans(text):
    config = configured(text)[text].config
    costs = Costs(config)
    sent, computed = (costs.by_rounds(name, 33) for name in ("bytes_up", "train_flops"))
    assert min(sent) == {"fedit+devft": 4, "fedit+progfed": 8}[text]
    for rounds in (9, 33):
        plan = make_plan(dataclasses.replace(config, rounds=rounds))
        assert sent[rounds] == plan.total("bytes_up")
        assert computed[rounds] == pytest.approx(plan.total("train_flops"))


def test_what_is_only_known_while_training_is_no_budget_and_no_target():
    for text in ("fedit+devft:stage_end=plateau", "fedit+devft:capacity_schedule=eigengap"):
        # By rounds it is compared like any other.
        found = configured("fedit", text)
        with pytest.raises(InputError, match=r"not known in advance|does not read"):
            within_bytes(list(found.values()), "fedit")
        with pytest.raises(
            InputError, match=r"the arm 'fedit@bytes=.*' cannot be run: .*(not known in advance|does not read)"
        ):
            configured(text, f"fedit@bytes={text}")


def test_a_budget_of_bytes_cuts_what_sends_more_and_leaves_the_rest():
    arms = list(configured("fedit", "fedit+devft", "fedit+devft:capacities=1/16", "local-only").values())
    # The least is sent by the stages of 1 and 16 layers: 8.5 / 16 is more than 7.5 / 16.
    assert leanest(arms) == "fedit+devft"
    found = within_bytes(arms, "fedit+devft")
    budget, cut = found.budget, found.arms
    assert not found.left_out
    for before, each in zip(arms, cut, strict=True):
        rounds, full = total_rounds(each.config), total_rounds(before.config)
        sent = Costs(before.config).by_rounds("bytes_up", full)
        assert sent[rounds] <= budget
        assert rounds == full or sent[rounds + 1] > budget
        assert each.config == dataclasses.replace(before.config, rounds=rounds)
    notes = [each.note for each in cut]
    assert notes[0] == "7 of 16 rounds fit: 93% of the budget"
    assert notes[1] == "its bytes are the budget"
    assert notes[3] == "sends nothing, so it has its full length"
    within_fedit = within_bytes(arms, "fedit").arms
    assert [total_rounds(each.config) for each in within_fedit] == [16] * 4
    assert within_fedit[1].note == "full length: its 16 rounds send 47% of the budget"


def test_an_arm_whose_shortest_run_sends_more_is_left_out_and_told_of():
    arms = list(configured("fedit:rank=1", "fedit+devft:rank=64", "fedit").values())
    found = within_bytes(arms, "fedit:rank=1")
    assert [each.arm.name for each in found.arms] == ["fedit:rank=1", "fedit"]
    assert found.left_out == ["fedit+devft:rank=64 is left out: its shortest run sends 13.8 MB, more than the budget."]


def test_budgets_that_cannot_be_are_refused():
    alone = list(configured("local-only", "central").values())
    with pytest.raises(InputError, match="no arm sends any; give --budget rounds"):
        leanest(alone)
    with pytest.raises(InputError, match="budget_of 'central' sends nothing"):
        within_bytes(alone, "central")
    fixed = list(configured("fedit+devft:stage_rounds=1/1/1/13", "fedit:rank=4").values())
    with pytest.raises(InputError, match="stage_rounds sets its length, but a budget of bytes must be able to cut it"):
        within_bytes(fixed, "fedit:rank=4")


def test_bytes_that_are_only_bounded_cut_their_own_arm_and_measure_no_other():
    mixed = "flora:client_ranks=16/4"
    arms = list(configured(mixed, "fedit:rank=2", "hetlora").values())
    # The bound alone would not tell which sends least.
    assert leanest(arms) == "fedit:rank=2"
    notes = [each.note for each in within_bytes(arms, "fedit:rank=2").arms]
    assert notes[0] == "1 of 16 rounds fit: at most 50% of the budget"
    assert "at most" in notes[2]
    with pytest.raises(InputError, match="budget_of 'hetlora' has ranks that differ between clients or rounds"):
        within_bytes(arms, "hetlora")
    with pytest.raises(InputError, match="the budget is bytes and 'flora:client_ranks=16/4' has ranks that differ"):
        leanest(arms[:1])
    with pytest.raises(InputError, match=r"'flora:client_ranks=16/4' has ranks that differ .*; leave the control out"):
        configured(mixed, f"fedit@bytes={mixed}")
    control = configured("fedit", "hetlora@bytes=fedit")["hetlora@bytes=fedit"]
    assert control.note == "rank 16 instead of 16 sends at most 100% of 'fedit'"


def test_more_participants_than_the_planned_clients_are_no_reason_to_refuse():
    # Data split by file has its own number of clients, which only the run knows.
    common = RunConfig(clients=2, clients_per_round=5, rounds=4)
    assert configured("fedit", common=common)["fedit"].config.clients == 2

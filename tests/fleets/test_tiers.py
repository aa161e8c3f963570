"""Fleets drawn from tiers: reproducible, independent of the other clients, in the shares asked for."""

import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.fleets.drawn import drawn_fleet
from devft_jax.fleets.tiers import MIXED, TIERS, parse_shares

IDS = np.arange(400, dtype=np.uint32) * 7 + 1


def figures(fleet):
    return np.stack([fleet.tier, fleet.flops_per_second, fleet.memory, fleet.down, fleet.up, fleet.failure])


def test_a_client_keeps_its_device_whoever_else_there_is():
    whole, some = drawn_fleet(MIXED, 3, IDS), np.array([250, 3, 77])
    assert np.array_equal(figures(drawn_fleet(MIXED, 3, IDS[some])), figures(whole.take(some)))
    assert not np.array_equal(figures(drawn_fleet(MIXED, 4, IDS)), figures(whole))


def test_tiers_have_their_shares_and_their_figures():
    fleet = drawn_fleet({"phone": 3, "workstation": 1}, 0, IDS)
    counts = fleet.by_tier()
    assert counts.keys() == {"phone", "workstation"}
    assert 0.65 < counts["phone"] / len(IDS) < 0.85
    phones = fleet.tier == 0
    tier = TIERS["phone"]
    assert set(fleet.memory[phones]) == {size * 1e9 * tier.memory_share for size in tier.memory}
    assert np.median(fleet.flops_per_second[phones]) == pytest.approx(tier.flops_per_second, rel=0.15)
    assert np.median(fleet.down[phones]) == pytest.approx(tier.down * 1e6 / 8, rel=0.15)
    assert (figures(fleet)[1:5] > 0).all()


def test_phones_are_present_at_night_and_workstations_always():
    fleet = drawn_fleet({"phone": 1, "workstation": 1}, 0, IDS)
    phones, others = np.flatnonzero(fleet.tier == 0), np.flatnonzero(fleet.tier == 1)
    assert fleet.presence.present(2 * 3600.0, phones).all()
    assert not fleet.presence.present(14 * 3600.0, phones).any()
    assert fleet.presence.present(14 * 3600.0, others).all()


def test_shares_are_parsed():
    assert parse_shares("Mixed") == MIXED
    assert parse_shares("phone") == {"phone": 1.0}
    assert parse_shares("phone=0.7, laptop=3") == {"phone": 0.7, "laptop": 3.0}
    assert parse_shares("devices.csv") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fone=1", r"fleet 'fone=1': the tier 'fone' is unknown; did you mean 'phone'\?"),
        ("phone=1,phone=2", "fleet 'phone=1,phone=2' names phone twice; name it once."),
        ("phone=lots", "the share 'lots' of phone is not a positive number"),
        ("phone=0", "the share '0' of phone is not a positive number"),
        ("phone=inf", "the share 'inf' of phone is not a positive number"),
    ],
)
def test_shares_that_cannot_be_used_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_shares(text)

"""A replay tells what the round told, and where it broke."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from devft_jax.federated.local import Passes
from tests.federated.harness import (
    BASE,
    BUCKETS,
    DROPOUT,
    FIVE,
    LONG,
    RATE,
    RESERVED,
    SGD,
    STEPS,
    TWO,
    assemble,
    client,
    engine,
    fedit_with,
    keys_of_round,
    plain_gradient,
    poisoned_base,
    replay,
    run_round,
    server_with,
)
from tests.tiny import CONFIG


def test_a_replay_has_the_losses_of_the_round():
    member = FIVE[1]
    result = run_round(engine(fedit_with()), server_with(), FIVE)
    reports = replay(member)
    assert [report.step for report in reports] == [1, 2, 3]
    np.testing.assert_allclose([report.loss for report in reports], result.losses[1], rtol=1e-5)
    assert all(report.nonfinite == () for report in reports)
    # Clipped to norm 1, a gradient moves the factors by the rate or less.
    for report in reports:
        assert report.update_norm == pytest.approx(RATE * min(report.gradient_norm, 1), rel=1e-4)


def test_a_replay_repeats_dropout_though_its_chunk_was_padded_further():
    # In the round the first client shares its passes' lengths with the second; alone they are shorter.
    members, passes = [client(0), client(1, pool=LONG)], Passes(1, BUCKETS)
    result = run_round(engine(fedit_with(DROPOUT), SGD, 1, 2, passes), server_with(DROPOUT), members)
    assert members[0].lengths.max() <= BUCKETS[0] < members[1].lengths.min()
    losses = [report.loss for report in replay(members[0], DROPOUT, passes=passes)]
    np.testing.assert_allclose(losses, result.losses[0], rtol=1e-5)


def test_a_replay_stops_at_the_first_step_that_breaks_and_names_what_did():
    examples = FIVE[3].examples.copy()
    examples[1] = client(4, pool=RESERVED).examples[1]
    member = dataclasses.replace(FIVE[3], examples=examples)
    reports = replay(member, base=poisoned_base())
    assert len(reports) == 2 < STEPS
    assert reports[0].nonfinite == ()
    assert np.isnan(reports[1].loss)
    assert reports[1].nonfinite[0] == "loss"
    leaves = jax.tree_util.tree_leaves_with_path(server_with().lora)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert {f"gradient{name}" for name in names} <= set(reports[1].nonfinite)
    assert {f"adapter{name}" for name in names} <= set(reports[1].nonfinite)
    result = run_round(engine(fedit_with()), server_with(), [member], base=poisoned_base())
    np.testing.assert_allclose([report.loss for report in reports], result.losses[0, :2], rtol=1e-5)
    assert not result.finite[0]


def test_a_replay_respects_the_rows_that_learn():
    nothing = replay(FIVE[0], train_rows=np.zeros(CONFIG.layers, bool))
    assert [report.update_norm for report in nothing] == [0.0] * STEPS
    assert all(report.gradient_norm > 0 for report in nothing)


def test_gradient_norms_are_those_of_the_whole_gradient():
    # At rate zero every step sees the same factors, so the norms are those of three independent gradients.
    reports = replay(FIVE[2], lr=0.0)
    key = keys_of_round(np.array([FIVE[2].id], np.uint32))[0]
    for step, report in enumerate(reports):
        batch = assemble(FIVE[2].examples[step])
        _, gradient = plain_gradient(TWO, server_with().lora, BASE, *batch, jax.random.fold_in(key, step))
        assert report.gradient_norm == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
        assert report.update_norm == 0

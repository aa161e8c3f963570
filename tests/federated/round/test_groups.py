"""A round whose participants began from different states of the server: FedBuff's step, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.cohort import Cohort
from devft_jax.federated.round.results import Group
from devft_jax.models.llama import Compute
from devft_jax.runtime.compiled import CompiledPrograms
from tests.federated.harness import (
    BASE,
    CONFIG,
    FIVE,
    RATE,
    SGD,
    WHOLE,
    all_rows,
    assemble,
    assert_close,
    assert_identical,
    engine,
    fedit_with,
    keys_of_round,
    rows_of,
    run_round,
    server_with,
)


def scaling():
    """An engine whose participants' messages have factors."""
    return Cohort(
        LocalTraining(fedit_with(), CONFIG, Compute(), SGD, WHOLE),
        devices=jax.local_devices()[:1],
        clients_per_step=2,
        scaled=True,
        assemble=assemble,
        programs=CompiledPrograms(),
    )


def test_changes_are_added_to_the_newest_state_and_old_ones_count_less():
    alone = engine(fedit_with(), clients_per_step=1)
    old = server_with()
    new = run_round(alone, old, FIVE[4:]).server
    scales = [0.5, 0.5, 1.0]
    members = [dataclasses.replace(member, scale=scale) for member, scale in zip(FIVE[:3], scales, strict=True)]
    groups = [Group(old, members[:2], RATE, keys_of_round), Group(new, members[2:], RATE / 2, keys_of_round)]
    result = scaling().run_groups(BASE, new, rows_of({}), groups, all_rows())

    def change(server, member, lr):
        after = run_round(alone, server, [member], lr=lr).server
        return jax.tree.map(jnp.subtract, after.lora, server.lora)

    changes = [change(old, FIVE[0], RATE), change(old, FIVE[1], RATE), change(new, FIVE[2], RATE / 2)]
    weights = np.array([member.weight for member in members])
    shares = weights * scales / weights.sum()
    wanted = jax.tree.map(
        lambda leaf, *parts: leaf + sum(share * part for share, part in zip(shares, parts, strict=True)), new.lora, *changes
    )
    assert_close(result.server.lora, wanted)
    assert result.losses.shape[0] == 3


def test_one_group_is_a_round():
    server = server_with()
    usual = run_round(engine(fedit_with(), clients_per_step=2), server, FIVE)
    groups = [Group(server, FIVE, RATE, keys_of_round)]
    unscaled = engine(fedit_with(), clients_per_step=2).run_groups(BASE, server, rows_of({}), groups, all_rows())
    assert_identical(unscaled.server.lora, usual.server.lora)
    assert_close(scaling().run_groups(BASE, server, rows_of({}), groups, all_rows()).server.lora, usual.server.lora)

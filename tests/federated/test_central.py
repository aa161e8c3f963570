"""Central training: one long client."""

import pytest

from devft_jax.federated.algorithms.central import central
from tests.federated.harness import (
    DROPOUT,
    SGD,
    assert_close,
    client,
    engine,
    largest_change,
    plain_client,
    plain_sgd,
    run_round,
    server_with,
)


def test_a_round_is_a_plain_loop_over_its_steps():
    member = client(3, steps=7, weight=53.0)
    lora, losses = plain_client(member, server_with(DROPOUT).lora, plain_sgd(), DROPOUT)
    result = run_round(engine(central(DROPOUT), SGD, 1, 1), server_with(DROPOUT), [member])
    assert_close(result.server.lora, lora)
    assert result.losses[0] == pytest.approx(losses, rel=1e-5)
    assert set(result.metrics) == {"update_norm"}
    # The client is the server itself.
    assert result.bytes_up == result.bytes_down == 0
    assert largest_change(lora, server_with(DROPOUT).lora) > 1e-2

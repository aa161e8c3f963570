"""One client's local training: a scan over optimiser steps, as every FedAvg-style method repeats it.

The optimiser is rebuilt in every round (its moments do not survive), the protocol of OpenFedLLM that the paper follows;
the learning rate is constant within a round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.errors import InputError

PyTree = Any
Batch = tuple[jax.Array, ...]
"""Tokens and mask [..., B, T], and where they are stored the hidden states [..., B, T, D] that the layers below make."""
Loss = Callable[[PyTree, Batch, jax.Array], tuple[jax.Array, jax.Array]]
"""(trained leaves, batch, key) -> (what is reduced f32[], the mean loss that is reported f32[])."""

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The optimiser that every client runs, rebuilt in every round."""

    optimizer: str = "adamw"
    """adamw or sgd."""
    weight_decay: float = 0.0
    """Decoupled weight decay of adamw."""
    clip_norm: float = 1.0
    """Global norm to which a step's gradient is clipped; 0 leaves it as it is."""
    beta1: float = 0.9
    """Decay of adamw's first moment."""
    beta2: float = 0.999
    """Decay of adamw's second moment."""
    epsilon: float = 1e-8
    """Term added to adamw's denominator."""


def validate_optimizer(options: OptimizerOptions) -> None:
    """Raise `InputError` unless the options describe an optimiser."""
    if options.optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer '{options.optimizer}' is unknown; choose from {', '.join(OPTIMIZERS)}.")
    for name in ("weight_decay", "clip_norm"):
        if getattr(options, name) < 0:
            raise InputError(f"{name} {getattr(options, name)} is negative; use 0 or more.")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(options, name) < 1:
            raise InputError(
                f"{name} {getattr(options, name)} is outside [0, 1); 0.9 for beta1 and 0.999 for beta2 are usual."
            )
    if options.epsilon <= 0:
        raise InputError(f"epsilon {options.epsilon} is not positive; 1e-8 is usual.")


def make_optimizer(options: OptimizerOptions, learning_rate: jax.Array | float) -> optax.GradientTransformation:
    """The optax transform of one round at a learning rate that may be traced."""
    if options.optimizer == "sgd":
        rule = optax.sgd(learning_rate)
    else:
        rule = optax.adamw(
            learning_rate,
            b1=options.beta1,
            b2=options.beta2,
            eps=options.epsilon,
            weight_decay=options.weight_decay,
        )
    if options.clip_norm == 0:
        return rule
    return optax.chain(optax.clip_by_global_norm(options.clip_norm), rule)


class LocalStatistics(struct.PyTreeNode):
    """What a client reports besides its message.

    Attributes:
      loss: f32[S], the loss before each step, in nats per completion token.
      update_norm: f32[], norm of the change of all trained leaves together.
      finite: bool[], whether every loss and every trained value is finite.
    """

    loss: jax.Array
    update_norm: jax.Array
    finite: jax.Array


def _keep_rows(updates: PyTree, train_rows: jax.Array) -> PyTree:
    """Zero the updates of layers that do not learn in this stage (leaves lead with G)."""

    def one(leaf: jax.Array) -> jax.Array:
        # Chosen, not multiplied: zero times infinity is NaN.
        return jnp.where(train_rows.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0.0)

    return jax.tree.map(one, updates)


def local_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train_rows: jax.Array | None,
    carry: tuple[PyTree, PyTree],
    batch: Batch,
    key: jax.Array,
) -> tuple[tuple[PyTree, PyTree], jax.Array]:
    """One optimiser step; `carry` is (trained leaves, optimiser state). Returns the carry and the loss before the step."""
    train, state = carry
    (_, value), gradients = jax.value_and_grad(loss, has_aux=True)(train, batch, key)
    if train_rows is None:
        updates, state = optimizer.update(gradients, state, train)
        return (optax.apply_updates(train, updates), state), value
    # Masked before and after the optimiser: neither clipping nor weight decay may see or move a frozen row.
    updates, state = optimizer.update(_keep_rows(gradients, train_rows), state, train)
    return (optax.apply_updates(train, _keep_rows(updates, train_rows)), state), value


def local_train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train: PyTree,
    batches: Batch,
    key: jax.Array,
    train_rows: jax.Array | None,
) -> tuple[PyTree, LocalStatistics]:
    """Train one client for S steps.

    Args:
      loss: what is reduced, and the mean loss that is reported.
      optimizer: built for this round.
      train: the leaves to optimise.
      batches: tokens i32[S, B, T], mask bool[S, B, T] and, where they are stored, hidden states [S, B, T, D].
      key: the client's key for this round; step s uses fold_in(key, s).
      train_rows: bool[G], the layers that learn, where every leaf leads with the stage's layers; None lets everything learn.
    """

    def step(carry, inputs):
        index, batch = inputs
        return local_step(loss, optimizer, train_rows, carry, batch, jax.random.fold_in(key, index))

    steps = jnp.arange(batches[0].shape[0])
    (trained, _), losses = jax.lax.scan(step, (train, optimizer.init(train)), (steps, batches))
    change = jax.tree.map(jnp.subtract, trained, train)
    norm = optax.tree.norm(change)
    # The norm of the change is finite exactly when every trained value is.
    finite = jnp.all(jnp.isfinite(losses)) & jnp.isfinite(norm)
    return trained, LocalStatistics(loss=losses, update_norm=norm, finite=finite)

"""One client's local training: a scan over optimiser steps, as in every FedAvg-style method.

The optimiser is rebuilt in every round (its moments are not kept), as in the protocol of OpenFedLLM that the paper follows;
the learning rate is constant within a round.

A step is run in passes: its examples are sorted by length and run a few at a time, and each pass is padded to the
shortest of a few fixed lengths that holds it. The passes' losses and gradients add up to the step's, so the result changes
only by rounding; but the lengths of real texts differ many times over, and a step padded to
its longest example mostly computes padding. All clients of a chunk share the choice of a pass's length, which makes it a
branch of which only one side runs, instead of a selection that computes all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from devft_jax.data import fitted_lengths
from devft_jax.federated.options import OptimizerOptions
from devft_jax.models.loss import completion_tokens
from devft_jax.typing import PyTree

Batch = tuple[jax.Array, ...]
"""Tokens and mask [..., B, T]; with stored hidden states also those of the layers below the adapters [..., B, T, D]."""
Loss = Callable[[PyTree, Batch, jax.Array, jax.Array, float], tuple[jax.Array, jax.Array]]
"""(trained leaves, rows of a batch, their keys, the batch's completion tokens i32[], the rows' share of the step) -> (the
loss that is minimised f32[], the part of the mean loss that is reported f32[]); both add up over the rows of a batch."""


def make_optimizer(options: OptimizerOptions, learning_rate: jax.Array | float) -> optax.GradientTransformation:
    """The optax transform of one round, at a learning rate that may be traced.

    With `lora_plus_ratio` lambda, b learns at lambda times the rate of a (LoRA+, Hayou et al., ICML 2024): its updates,
    weight decay included, are multiplied by lambda. Gradients are clipped before that, by their common norm.
    """
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
    parts = [] if options.clip_norm == 0 else [optax.clip_by_global_norm(options.clip_norm)]
    parts.append(rule)
    if options.lora_plus_ratio != 1:
        parts.append(_faster_b(options.lora_plus_ratio))
    return rule if len(parts) == 1 else optax.chain(*parts)


def _faster_b(ratio: float) -> optax.GradientTransformation:
    """Multiplies the updates of the factors b of `LoraFactors`."""

    def one(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        return ratio * update if path[-1:] == (jax.tree_util.GetAttrKey("b"),) else update

    return optax.stateless(lambda updates, train: jax.tree_util.tree_map_with_path(one, updates))


@dataclass(frozen=True)
class Passes:
    """How a step's examples are run; see the module's docstring.

    Attributes:
      examples: examples of one pass.
      lengths: lengths to which a pass may be padded, ascending; the last is that of the batches.
      axis: name of the `vmap` over the clients of a chunk, which share the choice of a length; None without one.
      group: mesh axis of the devices that gather the base's weights together, and so must choose the same length; None if
        each device has the whole base.
    """

    examples: int
    lengths: tuple[int, ...]
    axis: str | None = None
    group: str | None = None


# Tokens of a pass on a CPU: enough to fill its matrix units, few enough for its caches.
PASS_TOKENS = 256


# Operations in the time in which a core compiles one more length: two seconds, measured for the bundled base.
LENGTH_FLOPS = 1e11


def choose_passes(
    lengths: np.ndarray,
    *,
    batch_size: int,
    examples: int | None,
    most_lengths: int,
    platform: str,
    token_flops: float = math.inf,
) -> Passes:
    """The passes of a run.

    On a CPU, where compiling takes time from training, a length is compiled only if it saves `LENGTH_FLOPS` operations of
    padding: a run of seconds compiles one. Nothing is measured, so that equal runs have equal lengths.

    Args:
      lengths: tokens of the training examples, integers [N].
      batch_size: examples of a step.
      examples: examples of a pass; None chooses: all of a step on accelerators, for which large products are fast, and on a
        CPU as many as have about `PASS_TOKENS` tokens.
      most_lengths: largest number of padded lengths.
      platform: platform of the devices: "cpu", "gpu" or "tpu".
      token_flops: operations that one more token in every example costs the whole run, for each program in which the lengths
        are compiled.
    """
    if examples is None:
        examples = batch_size if platform != "cpu" else max(1, round(PASS_TOKENS / float(np.mean(lengths))))
    least = LENGTH_FLOPS / token_flops if platform == "cpu" else 0.0
    return Passes(min(examples, batch_size), fitted_lengths(lengths, most_lengths, least=least))


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
    """Zero the updates of layers that do not learn in this stage (leaves begin with axis G)."""

    def one(leaf: jax.Array) -> jax.Array:
        # Selected, not multiplied: zero times infinity is NaN.
        return jnp.where(train_rows.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0.0)

    return jax.tree.map(one, updates)


def step_gradients(loss: Loss, passes: Passes, train: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, PyTree]:
    """The loss of a step and its gradients.

    Args:
      loss: see `Loss`.
      passes: how the step's examples are run.
      train: the trained leaves.
      batch: tokens i32[B, T], mask bool[B, T] and, where they are stored, hidden states [B, T, D].
      key: random key of the step; its example b uses fold_in(key, b), in whatever pass it is run.

    Returns:
      The reported mean loss, f32[], and the gradients of the loss that is minimised.
    """
    mask = batch[1]
    size, length = mask.shape
    count = completion_tokens(mask)
    # Tokens after the last counted one change nothing.
    ends = jnp.max(jnp.where(mask, jnp.arange(1, length + 1, dtype=jnp.int32), 0), axis=-1)
    rows = (*batch, ends, jnp.arange(size, dtype=jnp.int32))
    number = -(-size // passes.examples)
    if number > 1:
        order = jnp.argsort(-ends)
        # The last pass is filled up with rows that do not count.
        order = jnp.concatenate([order, jnp.full(-size % passes.examples, size, order.dtype)])
        rows = jax.tree.map(lambda leaf: leaf.at[order].get(mode="fill", fill_value=0), rows)

    def padded_to(length: int) -> Callable[[PyTree, Batch, jax.Array], tuple[jax.Array, PyTree]]:
        def run(train: PyTree, part: Batch, keys: jax.Array) -> tuple[jax.Array, PyTree]:
            part = tuple(leaf[:, :length] for leaf in part)
            (_, value), gradients = jax.value_and_grad(loss, has_aux=True)(train, part, keys, count, 1 / number)
            return value, gradients

        return run

    branches = [padded_to(length) for length in passes.lengths]
    choosing = tuple(axis for axis in (passes.axis, passes.group) if axis is not None)

    def one(rows: tuple[jax.Array, ...]) -> tuple[jax.Array, PyTree]:
        *part, ends, places = rows
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        if len(branches) == 1:
            return branches[0](train, tuple(part), keys)
        longest = jnp.max(ends)
        if choosing:
            longest = jax.lax.pmax(longest, choosing)
        return jax.lax.switch(jnp.searchsorted(jnp.array(passes.lengths), longest), branches, train, tuple(part), keys)

    if number == 1:
        return one(rows)

    def add(total: PyTree, rows: tuple[jax.Array, ...]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, one(rows)), None

    parts = jax.tree.map(lambda leaf: leaf.reshape(number, passes.examples, *leaf.shape[1:]), rows)
    zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, train))
    return jax.lax.scan(add, zero, parts)[0]


def local_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train_rows: jax.Array | None,
    passes: Passes,
    carry: tuple[PyTree, PyTree],
    batch: Batch,
    key: jax.Array,
) -> tuple[tuple[PyTree, PyTree], jax.Array]:
    """One optimiser step.

    Args:
      loss: see `Loss`.
      optimizer: the optax rule.
      train_rows: as in `local_train`.
      passes: how the step's examples are run.
      carry: trained leaves and the optimiser's state.
      batch: as in `step_gradients`.
      key: as in `step_gradients`.

    Returns:
      The new carry, and the loss before the step, f32[].
    """
    train, state = carry
    value, gradients = step_gradients(loss, passes, train, batch, key)
    if train_rows is None:
        updates, state = optimizer.update(gradients, state, train)
        return (optax.apply_updates(train, updates), state), value
    # Masked before and after the optimiser: neither clipping nor weight decay may use or change a frozen row.
    updates, state = optimizer.update(_keep_rows(gradients, train_rows), state, train)
    return (optax.apply_updates(train, _keep_rows(updates, train_rows)), state), value


def local_train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    train: PyTree,
    batches: Batch,
    key: jax.Array,
    train_rows: jax.Array | None,
    passes: Passes,
    *,
    steps: jax.Array | None = None,
) -> tuple[PyTree, LocalStatistics]:
    """Train one client for S steps.

    Args:
      loss: see `Loss`.
      optimizer: built for this round.
      train: the leaves to optimise.
      batches: tokens i32[S, B, T], mask bool[S, B, T] and, where they are stored, hidden states [S, B, T, D].
      key: the client's key for this round; step s uses fold_in(key, s).
      train_rows: bool[G], which layers learn, if the first axis of every leaf is the stage's layers; None for all.
      passes: how a step's examples are run.
      steps: i32[], how many of the S steps are taken; the others change nothing and report a loss of 0. None for all.

    Returns:
      The trained leaves, and the statistics to report.
    """

    def step(carry: tuple[PyTree, PyTree], inputs: tuple[jax.Array, Batch]) -> tuple[tuple[PyTree, PyTree], jax.Array]:
        index, batch = inputs
        after, value = local_step(loss, optimizer, train_rows, passes, carry, batch, jax.random.fold_in(key, index))
        if steps is None:
            return after, value
        taken = index < steps
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, carry), jnp.where(taken, value, 0.0)

    numbers = jnp.arange(batches[0].shape[0], dtype=jnp.int32)
    (trained, _), losses = jax.lax.scan(step, (train, optimizer.init(train)), (numbers, batches))
    change = jax.tree.map(jnp.subtract, trained, train)
    norm = optax.tree.norm(change)
    # The norm of the change is finite exactly when every trained value is.
    finite = jnp.all(jnp.isfinite(losses)) & jnp.isfinite(norm)
    return trained, LocalStatistics(loss=losses, update_norm=norm, finite=finite)

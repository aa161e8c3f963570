"""Replays one client's local training step by step, to find where its values stop being finite."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from devft_jax.config.files import stored_config
from devft_jax.config.validation import validate
from devft_jax.errors import InputError
from devft_jax.federated.local import local_step, make_optimizer, step_gradients
from devft_jax.federated.round.client import LocalTraining, client_loss, frozen_rows, participant_of
from devft_jax.federated.round.server import broadcast_of
from devft_jax.federated.sampling import client_keys
from devft_jax.files import existing_folder
from devft_jax.models.base import Base
from devft_jax.models.sharding import partition_specs, place
from devft_jax.reporting import Progress
from devft_jax.runtime.devices import usual_arithmetic
from devft_jax.runtime.processes import refuse_several
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.fleet import next_round
from devft_jax.training.parts import build_parts
from devft_jax.training.round import next_rate, prepare_client
from devft_jax.training.trainer import Trainer
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class StepReport:
    """One replayed step: the loss before it, the norms of gradient and update, and what is not finite.

    Attributes:
      step: number of the step, from 1.
      loss: loss before the step, nats per token.
      gradient_norm: norm of the gradient.
      update_norm: norm of the optimiser's update.
      nonfinite: names of the values that are not finite.
    """

    step: int
    loss: float
    gradient_norm: float
    update_norm: float
    nonfinite: tuple[str, ...]


def _nonfinite_leaves(tree: PyTree) -> tuple[str, ...]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple(jax.tree_util.keystr(path) for path, leaf in leaves if not np.isfinite(leaf).all())


def _report(step: int, loss: jax.Array, gradients: PyTree, change: PyTree, trained: PyTree) -> StepReport:
    """The report of a step from the loss before it, its gradients, its change, and the trained leaves after it."""
    broken = (
        *(() if np.isfinite(loss) else ("loss",)),
        *(f"gradient{name}" for name in _nonfinite_leaves(gradients)),
        *(f"adapter{name}" for name in _nonfinite_leaves(trained)),
    )
    return StepReport(
        step=step,
        loss=float(loss),
        gradient_norm=float(optax.tree.norm(gradients)),
        update_norm=float(optax.tree.norm(change)),
        nonfinite=broken,
    )


def replay_client(
    training: LocalTraining,
    *,
    base: Base,
    server: PyTree,
    row: PyTree,
    batches: tuple[np.ndarray, ...],
    lr: float,
    key: jax.Array,
    train_rows: np.ndarray,
    mesh: Mesh,
) -> list[StepReport]:
    """Train one client in a plain loop exactly as a chunk would, and report every step up to the first that is not finite.

    Args:
      training: as in the round.
      base: the stage's frozen weights.
      server: the algorithm's state at the beginning of the round.
      row: the client's bank row.
      batches: tokens i32[S, B, T], mask bool[S, B, T] and, if they are stored, hidden states [S, B, T, D].
      lr: learning rate of the round.
      key: the client's random key in this round.
      train_rows: bool[G], which rows learn.
      mesh: the devices that hold `base`.
    """
    algorithm = training.algorithm
    participant = participant_of(algorithm, broadcast_of(algorithm, server), row, key, jnp.float32(lr), len(batches[0]))
    train, frozen = place(algorithm.start(participant), mesh)
    key = place(key, mesh)
    compute = dataclasses.replace(training.compute, frozen_layers=frozen_rows(algorithm, train_rows))
    training = dataclasses.replace(training, compute=compute)
    learning = jnp.asarray(train_rows) if algorithm.layered else None

    def rule_of(frozen: PyTree) -> optax.GradientTransformation:
        return algorithm.optimizer(make_optimizer(training.optimizer, lr), frozen, jnp.float32(lr))

    def gradients_on_device(base: Base, frozen: PyTree, *arguments: Any) -> PyTree:
        return step_gradients(client_loss(training, base, frozen), training.passes, *arguments)[1]

    def step_on_device(base: Base, frozen: PyTree, *arguments: Any) -> PyTree:
        loss = client_loss(training, base, frozen)
        return local_step(loss, rule_of(frozen), learning, training.passes, *arguments)

    # Every device computes the same, because a device may hold only a part of the base.
    def on_all_devices(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        specs = (partition_specs(base), *[PartitionSpec()] * 4)
        run = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return partial(jax.jit(run), base, frozen)

    gradients_of, advance = (on_all_devices(each) for each in (gradients_on_device, step_on_device))
    carry = (train, rule_of(frozen).init(train))
    reports = []
    for index, batch in enumerate(zip(*batches, strict=True)):
        step_key = jax.random.fold_in(key, index)
        before = carry[0]
        gradients = jax.device_get(gradients_of(before, batch, step_key))
        carry, value = advance(carry, batch, step_key)
        change = jax.tree.map(jnp.subtract, carry[0], before)
        reports.append(_report(index + 1, value, gradients, change, jax.device_get(carry[0])))
        if reports[-1].nonfinite:
            break
    return reports


@dataclass(frozen=True)
class Replay:
    """A client's round, trained again: its steps, up to the first that is not finite. Stage and round are counted from 1.

    Attributes:
      client: name of the client.
      stage: stage of the round.
      round: number of the round, over all stages.
      steps: the steps of the client's training.
      took_part: whether it was a participant of the round; if not, the steps are those that it would have made.
    """

    client: str
    stage: int
    round: int
    steps: list[StepReport]
    took_part: bool

    @property
    def first_break(self) -> str | None:
        """Where the first NaN or infinity appeared, in one sentence; None if everything is finite."""
        last = self.steps[-1]
        if not last.nonfinite:
            return None
        place = f"client '{self.client}', stage {self.stage}, round {self.round}, step {last.step}"
        return f"{place}: the first values that are not finite are in {', '.join(last.nonfinite)}"


@usual_arithmetic()
def replay(path: str | Path, *, client: str, round: int, progress: Progress | None = None) -> Replay:
    """Replay one client of one round of a run, step by step, from the checkpoint before the round.

    Rounds between that checkpoint (or the start of the run) and the requested one are run again; the folder is not changed.

    Args:
      path: the run's folder.
      client: the client's name, as in the table of the split.
      round: from 1.
      progress: the progress output; standard error by default.

    Raises:
      InputError: the folder holds no run, or the run has no such client or round.
    """
    refuse_several("a replay")
    progress = progress or Progress()
    with RunFolder(existing_folder(path, "name one that `devft run` wrote")).reading() as folder:
        stored = folder.read_json("config.json")
        if stored is None:
            raise InputError(f"{folder.path} holds no run; name a folder that `devft run` wrote.")
        config, objects = stored_config(stored, folder.path)
        if objects:
            raise InputError(
                f"the {', '.join(objects)} of the run in {folder.path} were passed as objects in "
                "Python, so it cannot be replayed from its folder alone."
            )
        validate(config)
        if config.fleet is not None and config.aggregation == "buffered":
            raise InputError(
                f"the run in {folder.path} has the aggregation buffered, in which clients begin from earlier states of the "
                "server; only synchronous rounds can be replayed."
            )
        # Compiling ahead does not pay, because no later stage is reached.
        config = dataclasses.replace(config, compile_ahead="off")
        scratch = folder.path if os.access(folder.path, os.W_OK) else None
        trainer = Trainer(build_parts(config, progress=progress, scratch=scratch))
        names = [item.name for item in trainer.parts.data.clients]
        _check_asked(trainer, folder, client, round)
        checkpoint = folder.checkpoints.before(round)
        state = trainer.begin() if checkpoint is None else trainer.resume(folder, checkpoint)
        history = [row for row in folder.metrics.read() if row.round <= state.round]
    while trainer.advance(state, history) and state.round < round - 1:
        trainer.step(state, history)
    parts = trainer.parts
    member, batches = prepare_client(parts, state, names.index(client))
    keys = client_keys(config.seed, np.uint32(state.round), np.array([member.id], np.uint32))
    steps = replay_client(
        parts.training,
        base=state.base,
        server=state.server,
        row=jax.tree.map(lambda leaf: leaf[0], state.bank.take(np.array([member.position]))),
        batches=batches,
        lr=next_rate(parts, state),
        key=keys[0],
        train_rows=np.asarray(state.layer_map.train),
        mesh=parts.cohort.mesh,
    )
    took_part = member.position in next_round(parts.fleet_rounds, parts.rounds, state).members.positions
    return Replay(client, state.stage + 1, round, steps, bool(took_part))


def _check_asked(trainer: Trainer, folder: RunFolder, client: str, round: int) -> None:
    """Raise `InputError` for a client or a round that the run does not have, or a run that cannot be replayed."""
    if trainer.parts.classes is not None:
        raise InputError(
            f"the clients of the run in {folder.path} hold different layers; only rounds in which all hold the same can be "
            "replayed."
        )
    names = [item.name for item in trainer.parts.data.clients]
    latest = folder.checkpoints.latest_round()
    totals = None if latest is None else folder.checkpoints.read_record(latest).totals
    ended_early = totals is not None and totals.best is not None and totals.best.planned_rounds is not None
    total = sum(totals.stage_rounds if totals is not None and ended_early else trainer.parts.stage_rounds)
    if client not in names:
        shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
        raise InputError(f"client '{client}' is not one of the run's: {shown}.")
    if not 1 <= round <= total:
        raise InputError(f"round {round} is outside 1 to {total}.")
    lengthened = 0 if totals is None else totals.lengthened_after
    if round <= lengthened:
        raise InputError(
            f"round {round} belongs to the run before it was lengthened after round {lengthened}; "
            "only later rounds can be replayed."
        )

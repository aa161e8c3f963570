"""What rounds and evaluations run on, and the parts of a run that train and evaluate there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from devft_jax.accounting.flops import layer_flops
from devft_jax.config.execution import resolve_clients_per_step
from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples, FederatedData, gather_batch, length_buckets
from devft_jax.evaluation.held_out import HeldOut
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.round.chunk_size import SizeSearch
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.cohort import Cohort
from devft_jax.federated.work import Rounds
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.llama import Compute
from devft_jax.options import option_group
from devft_jax.reporting import Progress
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import client_mesh, device_memory
from devft_jax.runtime.processes import Processes
from devft_jax.training.hidden_states import HiddenStates
from devft_jax.training.passes import passes_of_run

SEARCHED_ON = ("gpu", "tpu")
"""Platforms on which the number of clients trained at once is measured."""


@dataclass(frozen=True)
class Machine:
    """What rounds and evaluations run on.

    Attributes:
      devices: local devices.
      compute: how forward and backward passes are computed.
      processes: that share the run.
      programs: keeps and counts compiled programs.
      progress: the progress output.
      scratch: folder for data too large for memory; None for the system's temporary folder.
    """

    devices: list[jax.Device]
    compute: Compute
    processes: Processes
    programs: CompiledPrograms
    progress: Progress
    scratch: Path | None


def assemble(examples: Examples, hidden_states: HiddenStates, length: int, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Tokens and mask of training examples, with stored hidden states if the stage has them.

    Args:
      examples: the examples of all clients.
      hidden_states: the run's hidden states.
      length: T, the length of every row.
      index: i64[...], example numbers, -1 for padding.
    """
    return *gather_batch(examples, index, length), *hidden_states.gather(index, length)


def open_cohort(
    config: RunConfig,
    model: ModelConfig,
    algorithm: Algorithm,
    rounds: Rounds,
    stage_rounds: Sequence[int],
    depths: Sequence[int] | None,
    machine: Machine,
) -> tuple[Cohort, HiddenStates, SizeSearch | None]:
    """The cohort that trains participants, the hidden states that it may read, and the search for the size of chunks.

    Args:
      config: a valid configuration.
      model: the base's architecture.
      algorithm: what clients train and send.
      rounds: who takes part in which round, with which examples.
      stage_rounds: rounds of every stage.
      depths: layers of every stage; None if they are not known in advance.
      machine: what the rounds run on.
    """
    shards, participants, count = config.model_shards, rounds.participants, machine.processes.count
    training_devices = machine.devices[: -(-participants // (shards * count)) * shards]
    passes = passes_of_run(config, model, rounds, stage_rounds, depths, training_devices[0].platform)
    tokens = max(1, round(passes.examples * float(np.mean(rounds.data.train.lengths))))
    everywhere = training_devices * count
    at_once = resolve_clients_per_step(config, everywhere, participants, layer_flops(model, tokens))
    hidden_states = HiddenStates(
        config,
        model,
        machine.compute,
        rounds.data.train,
        rounds,
        rows=at_once * config.batch_size,
        buckets=length_buckets(config.max_length),
        mesh=client_mesh(training_devices, shards),
        programs=machine.programs,
        progress=machine.progress,
        folder=machine.scratch,
    )
    cohort = Cohort(
        LocalTraining(algorithm, model, machine.compute, option_group(OptimizerOptions, config), passes),
        devices=training_devices,
        processes=machine.processes,
        model_shards=shards,
        clients_per_step=at_once,
        partial_work=config.late_work == "partial" and config.fleet is not None,
        scaled=config.aggregation == "buffered" and config.fleet is not None,
        assemble=partial(assemble, rounds.data.train, hidden_states, passes.lengths[-1]),
        programs=machine.programs,
    )
    most = -(-participants // len(training_devices)) * len(training_devices)
    # Several processes would choose by different times.
    searched = config.clients_per_step == "auto" and training_devices[0].platform in SEARCHED_ON and count == 1
    return cohort, hidden_states, SizeSearch(most, device_memory(training_devices)) if searched else None


def open_held_out(
    config: RunConfig,
    model: ModelConfig,
    data: FederatedData,
    machine: Machine,
) -> HeldOut | None:
    """The evaluator of held-out data; None without such data.

    Args:
      config: a valid configuration.
      model: the base's architecture.
      data: the data, with or without held-out examples.
      machine: what the evaluations run on.
    """
    if data.test is None:
        return None
    return HeldOut(
        model,
        machine.compute,
        data.test,
        buckets=length_buckets(config.max_length),
        batch_size=config.evaluation_batch,
        devices=machine.devices,
        processes=machine.processes,
        model_shards=config.model_shards,
        programs=machine.programs,
    )

"""A round: the participants train, their messages are aggregated, and its costs go into its record.

If chunks do not fit into memory, their size is halved unless it was set. An update that is not finite is dropped and its
client named. On accelerators the first rounds of a run also try how many clients are best trained at once.
"""

import time
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from devft_jax.accounting.flops import Adaptation, training_flops
from devft_jax.errors import RunError
from devft_jax.federated.round.chunk_size import SizeSearch, Trial, next_smaller
from devft_jax.federated.round.classes import GroupCost
from devft_jax.federated.round.client import frozen_rows
from devft_jax.federated.round.in_flight import ChunkTooLargeError
from devft_jax.federated.round.results import Group, RoundResult
from devft_jax.federated.sampling import client_keys
from devft_jax.federated.work import ClientWork, Participants
from devft_jax.storage.records import RoundRecord
from devft_jax.training.class_rounds import class_flops, rounds_before, train_classes
from devft_jax.training.compile_ahead import compile_stage_ahead
from devft_jax.training.fleet import NextRound, next_round, round_record, set_course
from devft_jax.training.parts import Parts
from devft_jax.training.rates import rate_of
from devft_jax.training.state import State, add_round, missed_bytes
from devft_jax.training.together import check_equal_state, joules_of_all


def next_rate(parts: Parts, state: State) -> float:
    """The learning rate of the next round."""
    return rate_of(parts.config, state.totals, state.stage, state.rounds_in_stage)


def prepare_client(parts: Parts, state: State, position: int) -> tuple[ClientWork, tuple[np.ndarray, ...]]:
    """What one client does in the next round, and the batches on which it trains.

    Args:
      parts: the run's parts.
      state: the state before the round.
      position: index of the client, which need not be a participant.
    """
    cohort = next_round(parts.fleet_rounds, parts.rounds, state).members
    took_part = np.flatnonzero(cohort.positions == position)
    member = cohort[int(took_part[0])] if len(took_part) else parts.rounds.work(position, state.round)
    parts.hidden_states.restore(state.base, state)
    # The round's own batches are filled first, so that the client has the same hidden states as in the round.
    for members in (cohort, [member]):
        parts.hidden_states.fill(state.base, members)
    return member, parts.cohort.assemble(member.examples[: member.steps])


def run_round(parts: Parts, state: State) -> RoundRecord:
    """One round.

    Args:
      parts: the run's parts.
      state: a state within a stage; advanced.

    Returns:
      The round's record.

    Raises:
      RunError: a single client does not fit into memory, or too many updates are not finite.
    """
    programs = parts.programs
    parts.hidden_states.restore(state.base, state)
    programs.peak_bytes = 0
    counters = parts.energy.read()
    rate = next_rate(parts, state)
    planned = next_round(parts.fleet_rounds, parts.rounds, state)
    members = planned.members
    with programs.timed() as whole:
        with programs.timed() as training:
            fill_flops = parts.hidden_states.fill(state.base, members)
            result, costs = _train(parts, state, planned, rate)
            _report_nonfinite(parts, state, members, result)
            state.server = jax.block_until_ready(result.server)
        program_bytes = programs.peak_bytes
        norms = _adapter_norms(parts, state, members.positions)
    state.round += 1
    state.rounds_in_stage += 1
    row = _record(parts, state, members, result, norms, rate)
    if parts.classes is not None:
        state.totals.bytes_stage += _submodel_bytes(parts, state, row, planned)
    if planned.simulated is not None:
        _add_simulated(parts, state, row, planned, result)
    row.seconds, row.tokens_per_second = training.running, row.tokens / training.running
    row.train_flops = fill_flops + (_flops(parts, state, result) if costs is None else class_flops(parts, costs))
    row.program_bytes = program_bytes
    add_round(state, row, whole.compiling)
    if parts.classes is None and parts.size_search is not None and not state.totals.clients_per_step_settled:
        _search_size(parts, state, parts.size_search, row)
    elif parts.classes is None:
        # Of the sizes that were tried, the chosen one is called last.
        programs.drop("chunk", but_newest=True)
    if state.compiled_ahead_in != state.stage:
        state.compiled_ahead_in = state.stage
        began = time.perf_counter()
        compile_stage_ahead(parts, state, state.stage + 1)
        state.totals.seconds.build += time.perf_counter() - began
    source, joules = joules_of_all(parts.processes, *parts.energy.spent_since(counters, row.train_flops))
    check_equal_state(parts.processes, state, row)
    state.totals.joules[source] = state.totals.joules.get(source, 0.0) + joules
    return row


def _record(
    parts: Parts, state: State, members: Participants, result: RoundResult, norms: np.ndarray, rate: float
) -> RoundRecord:
    """The record of what a round produced; the caller adds what it cost."""
    kept, missed = result.finite, 0
    if parts.algorithm.cumulative is not None and parts.fleet_rounds is None:
        missed = missed_bytes(state, members.positions, result.bytes_cumulative)
    return RoundRecord(
        round=state.round,
        stage=state.stage,
        layers=state.layer_map.num_groups,
        loss=float(result.losses[kept].mean()),
        learning_rate=rate,
        metrics={name: value if np.isfinite(value) else None for name, value in result.metrics.items()},
        client_update_norm=float(result.update_norms[kept].mean()),
        tokens=sum(length * examples for length, examples in result.examples_by_length.items()),
        seconds=0.0,
        tokens_per_second=0.0,
        bytes_up=result.bytes_up,
        bytes_down=result.bytes_down,
        bytes_missed=missed,
        train_flops=0,
        program_bytes=0,
        adapter_norms=[float(f"{norm:.6g}") if np.isfinite(norm) else None for norm in norms],
        dropped=int(np.count_nonzero(~kept)),
        clients=members.positions.tolist(),
        classes=None if parts.classes is None else parts.classes.of[members.positions].tolist(),
    )


def _add_simulated(parts: Parts, state: State, row: RoundRecord, planned: NextRound, result: RoundResult) -> None:
    """Add to a round's record what a fleet changes: losses of the steps taken, and messages to clients that were lost."""
    simulated = planned.simulated
    assert parts.fleet_rounds is not None
    assert simulated is not None
    row.simulated = round_record(simulated, parts.rounds.steps, planned.buffer, state.round - 1)
    if planned.course is not None:
        set_course(state, planned.course)
    kept = result.finite
    if row.simulated.steps is not None:
        row.loss = float((result.losses[kept].sum(axis=1) / simulated.steps[kept]).mean())
    row.bytes_down += parts.fleet_rounds.lost_bytes(state, simulated)
    if parts.algorithm.cumulative is not None:
        row.bytes_missed = missed_bytes(state, np.unique(np.array(simulated.selected, np.int64)), result.bytes_cumulative)


def _submodel_bytes(parts: Parts, state: State, row: RoundRecord, planned: NextRound) -> int:
    """Bytes of frozen layers that clients of a round received, where classes hold different ones; before it is counted."""
    assert parts.classes is not None
    received = np.array(row.clients if planned.simulated is None else np.unique(planned.simulated.selected), np.int64)
    return int(parts.classes.submodels(received, state.last_round, state.stage, rounds_before(state)).sum())


def _train(parts: Parts, state: State, planned: NextRound, rate: float) -> tuple[RoundResult, list[GroupCost] | None]:
    """Train a round's cohort; if its chunks do not fit into memory and their size was not set, in smaller chunks.

    Returns:
      The round's result, and the costs of its groups where clients hold different layers.
    """
    cohort = parts.cohort
    while True:
        try:
            if parts.classes is not None:
                return train_classes(parts, state, planned.members, rate)
            groups = _groups(parts, state, planned, rate)
            learning = np.asarray(state.layer_map.train)
            return cohort.run_groups(state.base, state.server, state.bank, groups, learning), None
        except ChunkTooLargeError as error:
            before = None if parts.size_search is None else parts.size_search.before(error.size)
            smaller = before or next_smaller(error.size, cohort.devices)
            if smaller is None:
                raise RunError(
                    "one client at a time on each device does not fit into memory; lower batch_size or max_length, set "
                    "remat to full, or use a quantised base."
                ) from error
            if parts.config.clients_per_step != "auto" or parts.classes is not None or error.begun:
                raise RunError(
                    f"clients_per_step {error.size} does not fit into memory; run again with clients_per_step {smaller}."
                ) from error
            parts.progress.warn(f"{error.size} clients at once do not fit into memory; continuing with {smaller}")
            _settle(parts, state, smaller)


def _groups(parts: Parts, state: State, planned: NextRound, rate: float) -> list[Group]:
    """The participants by the state of the server from which they begin, with the rate and the draws of that round."""
    seed = parts.config.seed
    if planned.buffer is None:
        return [Group(state.server, planned.members, rate, partial(client_keys, seed, np.uint32(state.round)))]
    state.versions[state.round] = state.server
    first_of_stage, groups = state.round - state.rounds_in_stage, []
    for version in sorted({flight.version for flight in planned.buffer}):
        places = [place for place, flight in enumerate(planned.buffer) if flight.version == version]
        groups.append(
            Group(
                state.versions[version],
                planned.members[places[0] : places[-1] + 1],
                rate_of(parts.config, state.totals, state.stage, version - first_of_stage),
                partial(client_keys, seed, np.uint32(version)),
            )
        )
    return groups


def _settle(parts: Parts, state: State, size: int) -> None:
    """Set the number of clients that are trained at once from now on."""
    parts.cohort.clients_per_step = size
    state.totals.clients_per_step, state.totals.clients_per_step_settled = size, True


def _search_size(parts: Parts, state: State, search: SizeSearch, row: RoundRecord) -> None:
    """Choose how many clients are trained at once in the next round; a stage's end also ends the search.

    Args:
      parts: the run's parts.
      state: the state after the round.
      search: the search so far.
      row: the round's record.
    """
    cohort, stage_rounds = parts.cohort, state.totals.stage_rounds
    # Also if nobody has waited for this program: one for a larger size would be waited for.
    compile_seconds = parts.programs.compile_seconds["chunk"]
    found = Trial(cohort.clients_per_step, row.seconds / row.tokens, compile_seconds, row.program_bytes)
    following = search.after(found, row.seconds * (sum(stage_rounds) - state.round))
    if following is not None and state.rounds_in_stage < stage_rounds[state.stage]:
        cohort.clients_per_step = following
        return
    assert search.best is not None
    best = search.best.size
    if best != search.start:
        parts.progress.say(f"  {best} clients are trained at once from now on: faster than {search.start}")
    _settle(parts, state, best)


def _adapter_norms(parts: Parts, state: State, positions: np.ndarray) -> np.ndarray:
    """Norms f64[G] of the global model's update, or their means over the participants' own models."""
    if parts.algorithm.personal is None:
        return np.asarray(parts.programs.call("adapter_norms", parts.norms, state.server), float)
    total, at_once = np.zeros(state.layer_map.num_groups), parts.cohort.clients_per_step
    for first in range(0, len(positions), at_once):
        some = positions[first : first + at_once]
        padded = np.pad(some, (0, at_once - len(some)), "edge")
        norms = parts.programs.call("adapter_norms", parts.norms, state.server, state.bank.take(padded))
        total += np.asarray(norms, float)[: len(some)].sum(axis=0)
    return total / len(positions)


def _flops(parts: Parts, state: State, result: RoundResult) -> int:
    """Operations of a round's training, over all participants, without layers whose hidden states were stored before."""
    layers = state.layer_map.depth - parts.hidden_states.layers
    return sum(
        examples
        * length
        * training_flops(
            parts.model.config,
            layers=layers,
            adaptation=Adaptation.of(result.adapter, result.train, layers),
            frozen=frozen_rows(parts.algorithm, np.asarray(state.layer_map.train)),
            length=length,
        )
        for length, examples in result.examples_by_length.items()
    )


def _report_nonfinite(parts: Parts, state: State, members: Sequence[ClientWork], result: RoundResult) -> None:
    """Report every participant whose update was dropped; too many of them end the run."""
    broken = [
        _broken_client(parts, state, members[index], result.losses[index])
        for index in np.flatnonzero(~result.finite).tolist()
    ]
    for sentence in broken:
        parts.progress.warn(f"{sentence}; its update is dropped")
    config = parts.config
    if len(broken) / len(members) > config.max_nonfinite:
        name = parts.data.clients[members[int(np.argmin(result.finite))].position].name
        raise RunError(
            f"{len(broken)} of {len(members)} updates are not finite, more than max_nonfinite "
            f"{config.max_nonfinite} allows ({broken[0]}); lower learning_rate in a new folder, or inspect "
            f"it: devft replay {config.out} --client {name} --round {state.round + 1}"
        )


def _broken_client(parts: Parts, state: State, member: ClientWork, losses: np.ndarray) -> str:
    bad = np.flatnonzero(~np.isfinite(losses))
    step = int(bad[0]) + 1 if len(bad) else len(losses)
    what = f"the loss is {losses[bad[0]]}" if len(bad) else "the update is not finite"
    name = parts.data.clients[member.position].name
    return f"client '{name}', stage {state.stage + 1}, round {state.round + 1}, step {step}: {what}"

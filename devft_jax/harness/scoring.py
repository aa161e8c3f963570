"""Log-likelihoods of many requests: planned over the trie of their inputs and computed pass by pass on all devices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from devft_jax.errors import InputError
from devft_jax.harness.packing import SMALLEST_BUCKET, Group, Packed, bucket, plan
from devft_jax.harness.passes import Scores, Sequences, jit_extended, jit_scores
from devft_jax.harness.rows import Rows, ScoringRequest
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute
from devft_jax.models.packed_attention import Prefix
from devft_jax.models.sharding import place_frozen
from devft_jax.runtime.devices import OVER_DEVICES, client_mesh

SEQUENCE_TOKENS = 512
"""Most tokens of a packed sequence of several rows."""


@dataclass(frozen=True)
class LogLikelihood:
    """The answer to a request.

    Attributes:
      value: log p(continuation | context) in nats.
      greedy: whether greedy decoding would give the continuation.
    """

    value: float
    greedy: bool


@dataclass(frozen=True)
class Step:
    """What one pass has finished.

    Attributes:
      answers: to requests, by their numbers.
      tokens: that it computed.
      total: tokens of all passes.
    """

    answers: dict[int, LogLikelihood]
    tokens: int
    total: int


@dataclass(frozen=True)
class _Pending:
    """A pass that a device computes: its scores, and for each device the sequences' requests for them."""

    scores: Scores
    parts: list[list[Packed]]
    tokens: int


class Scorer:
    """Scores continuations with one model, on all of some devices.

    Args:
      config: the architecture.
      base: frozen weights.
      adapter: low-rank updates of it, or None.
      compute: execution choices.
      devices: that divide the passes among them; each holds the whole model. By default all local ones.
      sequence_tokens: most tokens of a packed sequence of several rows; by default `SEQUENCE_TOKENS`.
      sequences: packed sequences of a device in one pass; by default 1 on CPUs and 8 elsewhere.

    Raises:
      InputError: the adapter is made by a hypernetwork.
    """

    def __init__(
        self,
        config: ModelConfig,
        base: Base,
        adapter: Adapter | None = None,
        *,
        compute: Compute = DEFAULT_COMPUTE,
        devices: Sequence[jax.Device] | None = None,
        sequence_tokens: int | None = None,
        sequences: int | None = None,
    ) -> None:
        if adapter is not None and adapter.hyper is not None:
            raise InputError(
                "texts cannot be scored with an adapter that a hypernetwork makes; give a low-rank one, or none."
            )
        devices = jax.local_devices() if devices is None else devices
        self.config, self.compute = config, compute
        self.sequence_tokens = sequence_tokens or SEQUENCE_TOKENS
        self.sequences = sequences or (1 if devices[0].platform == "cpu" else 8)
        self.mesh = client_mesh(devices)
        self.base, self.adapter = place_frozen((base, adapter), self.mesh)
        self.divided = NamedSharding(self.mesh, OVER_DEVICES)

    def score(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """The answers to requests, in their order.

        Args:
          requests: any number.
        """
        found: dict[int, LogLikelihood] = {}
        for step in self.steps(requests):
            found |= step.answers
        return [found[number] for number in range(len(requests))]

    def prefix_of(self, tokens: np.ndarray) -> Prefix:
        """The cache of a beginning, behind which texts are generated.

        Args:
          tokens: i32[n], ids.
        """
        packed = Packed(len(tokens))
        packed.tokens[:], packed.positions[:] = tokens, np.arange(len(tokens))
        return self.extend(None, packed, len(tokens))[0]

    def extend(self, prefix: Prefix | None, packed: Packed, length: int) -> tuple[Prefix, Scores]:
        """A cache with a sequence behind it, and what is scored in the sequence.

        Args:
          prefix: keys and values of the tokens before the sequence; None where there are none.
          packed: the sequence, without branches.
          length: tokens of the new cache.
        """
        size = len(packed.tokens)
        extended = jit_extended(self.config, self.compute, self.mesh, bucket(length))
        return extended(self.base, self.adapter, prefix, arrays_of([[packed]], 1, bucket(size)), np.int32(size))

    def steps(self, requests: Sequence[ScoringRequest]) -> Iterator[Step]:
        """The answers to requests as passes finish them, each once.

        Args:
          requests: any number.

        Yields:
          What a pass has finished; the first step may be one without a pass.
        """
        rows = Rows.of(requests)
        outermost = plan(rows, self.sequence_tokens)
        total = outermost.tokens
        empty = {number: LogLikelihood(0.0, True) for number, request in enumerate(requests) if not request.scored}
        yield Step(empty, 0, total)
        run = _Run(self, rows, list(requests))
        # The device computes a pass while the host packs the next and reads the one before.
        waiting: list[_Pending] = []
        for pending in run.passes(outermost, None):
            waiting.append(pending)
            if len(waiting) > 1:
                yield run.finish(waiting.pop(0), total)
        for pending in waiting:
            yield run.finish(pending, total)


class _Run:
    """The passes of one call of `Scorer.steps`, and the sums of what they have scored so far."""

    def __init__(self, scorer: Scorer, rows: Rows, requests: list[ScoringRequest]) -> None:
        self.scorer, self.rows, self.requests = scorer, rows, requests
        self.values = np.zeros(len(requests))
        self.greedy = np.ones(len(requests), bool)
        self.lanes = scorer.mesh.size * scorer.sequences
        self._scores = jit_scores(scorer.config, scorer.compute, scorer.mesh)

    def passes(self, group: Group, prefix: Prefix | None) -> Iterator[_Pending]:
        """Start the passes of a group, one at a time; `prefix` is the cache of the group around it."""
        if group.length > group.start:
            prefix, pending = self._extend(group, prefix)
            yield pending
        # The longest first, so that sequences of one pass are about equally long.
        bins = sorted(group.bins, key=lambda packed: -packed.tokens)
        for first in range(0, len(bins), self.lanes):
            packed = [
                Packed.of_bin(self.rows, self.requests, each, group.length) for each in bins[first : first + self.lanes]
            ]
            yield self._start(packed, prefix)
        for inner in group.groups:
            yield from self.passes(inner, prefix)

    def _extend(self, group: Group, prefix: Prefix | None) -> tuple[Prefix, _Pending]:
        packed = Packed.of_prefix(self.rows, self.requests, group)
        longer, scores = self.scorer.extend(prefix, packed, group.length)
        return longer, _Pending(scores, [[packed]], len(packed.tokens))

    def _start(self, packed: list[Packed], prefix: Prefix | None) -> _Pending:
        scorer = self.scorer
        longest = max(len(each.tokens) for each in packed)
        length = bucket(longest) if longest > scorer.sequence_tokens else _power_of_two(longest)
        # Dealt out in turn, so that all devices have about as much to score.
        devices = scorer.mesh.size
        parts = [packed[device::devices] for device in range(devices)]
        rows = min(scorer.sequences, _power_of_two(len(parts[0]), 1))
        sequences = jax.device_put(arrays_of(parts, rows, length), scorer.divided)
        scores = self._scores(scorer.base, scorer.adapter, prefix, sequences)
        return _Pending(scores, parts, sum(len(each.tokens) for each in packed))

    def finish(self, pending: _Pending, total: int) -> Step:
        """Wait for a pass, add what it scored, and give the answers that are complete."""
        scores: Scores = jax.device_get(pending.scores)
        places = len(scores.log_likelihoods) // len(pending.parts)
        answers: dict[int, LogLikelihood] = {}
        for device, parts in enumerate(pending.parts):
            offset = device * places
            for packed in parts:
                if packed.asked:
                    number, place, target = np.array(packed.asked).T
                    np.add.at(self.values, number, scores.log_likelihoods[offset + place, target].astype(np.float64))
                    np.logical_and.at(self.greedy, number, scores.likeliest[offset + place, target])
                offset += len(packed.places)
                for done in packed.finished:
                    answers[done] = LogLikelihood(float(self.values[done]), bool(self.greedy[done]))
        return Step(answers, pending.tokens, total)


def _power_of_two(count: int, least: int = SMALLEST_BUCKET) -> int:
    """The smallest one that is not below `count`, nor below `least`."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def arrays_of(parts: Sequence[Sequence[Packed]], rows: int, length: int) -> Sequences:
    """Packed sequences as the arrays of a pass.

    Args:
      parts: of each device.
      rows: sequences of each device, of which the last may be empty.
      length: T, to which they are padded.
    """
    devices = len(parts)
    alone = np.arange(1, length + 1, dtype=np.int32)
    asked = max((len(targets) for part in parts for packed in part for targets in packed.targets), default=1)
    total = devices * rows * length
    tokens, positions = (np.zeros((devices * rows, length), np.int32) for _ in range(2))
    # Padding is seen by itself alone.
    ends = np.tile(alone, (devices * rows, 1))
    places, targets = np.zeros(total, np.int32), np.zeros((total, _power_of_two(asked, 1)), np.int32)
    count = np.zeros(devices, np.int32)
    for device, part in enumerate(parts):
        first = used = device * rows * length
        for row, packed in enumerate(part):
            index, size = device * rows + row, len(packed.tokens)
            tokens[index, :size], positions[index, :size], ends[index, :size] = packed.tokens, packed.positions, packed.ends
            last = used + len(packed.places)
            places[used:last] = np.array(packed.places, np.int32) + row * length
            for number, wanted in enumerate(packed.targets, used):
                targets[number, : len(wanted)] = wanted
            used = last
        count[device] = used - first
    arrays: tuple[Any, ...] = (tokens, positions, ends, places, targets, count)
    return Sequences(*arrays)

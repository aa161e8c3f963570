"""When clients are present: intervals of a repeating period, such as the hours of a day.

A client is present in the half-open intervals [start, end) of its period, counted from the beginning of the run, and again
in every later period. All queries are for many clients at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

HOUR = 3600.0
DAY = 24 * HOUR
SLACK = 1e-3
"""Seconds after an arrival at which a client counts as present, so that rounding cannot hide it."""


@dataclass(frozen=True)
class Presence:
    """The intervals of N clients, M in all.

    Attributes:
      period: f64[N], seconds after which a client's intervals repeat, positive.
      offsets: i64[N + 1]; the intervals of client n are those from `offsets[n]` to `offsets[n + 1]`.
      starts: f64[M], seconds from the beginning of a period; ascending for each client.
      ends: f64[M], at most the client's period, and at most its next start.
    """

    period: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, intervals: Sequence[Sequence[tuple[float, float]]], periods: Sequence[float]) -> Self:
        """Presence from every client's intervals.

        Args:
          intervals: of each client, ascending, without overlap.
          periods: of each client.
        """
        flat = np.array([pair for each in intervals for pair in each], float).reshape(-1, 2)
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in intervals])]).astype(np.int64)
        return cls(np.asarray(periods, float), offsets, flat[:, 0], flat[:, 1])

    @classmethod
    def daily(cls, hour: np.ndarray, hours: np.ndarray) -> Self:
        """Presence at the same hours of every day.

        Args:
          hour: f64[N], hour of the day from which a client is present, in [0, 24).
          hours: f64[N], for how long; 24 or more for always.
        """
        intervals: list[list[tuple[float, float]]] = []
        for first, count in zip(hour.tolist(), hours.tolist(), strict=True):
            last = first + count
            if count >= 24:
                intervals.append([(0.0, DAY)])
            elif last <= 24:
                intervals.append([(first * HOUR, last * HOUR)])
            else:
                intervals.append([(0.0, (last - 24) * HOUR), (first * HOUR, DAY)])
        return cls.of(intervals, [DAY] * len(intervals))

    def take(self, clients: np.ndarray) -> "Presence":
        """The presence of some clients, in this order.

        Args:
          clients: i64[K], their indices.
        """
        pairs = [list(zip(self.starts[part], self.ends[part], strict=True)) for part in map(self._part, clients.tolist())]
        return Presence.of(pairs, self.period[clients].tolist())

    def present(self, time: float, clients: np.ndarray) -> np.ndarray:
        """Whether each of the clients is present, bool[K].

        Args:
          time: seconds since the beginning of the run.
          clients: i64[K], their indices.
        """
        return self._interval(time, clients)[2]

    def leaves(self, time: float, clients: np.ndarray) -> np.ndarray:
        """When each of the clients leaves next, f64[K], in seconds since the beginning of the run.

        Infinity for a client that never leaves, and `time` itself for one that is absent.

        Args:
          time: seconds since the beginning of the run.
          clients: i64[K], their indices.
        """
        within, interval, inside = self._interval(time, clients)
        if not len(self.ends):
            return np.full(len(clients), time)
        period, first = self.period[clients], np.minimum(self.offsets[clients], len(self.starts) - 1)
        began, end = time - within, self.ends[interval]
        # An interval up to the end of a period goes on in one from the beginning of the next.
        goes_on = (end >= period) & (self.starts[first] == 0)
        following = np.where(self.ends[first] >= period, np.inf, period + self.ends[first])
        return np.where(inside, began + np.where(goes_on, following, end), time)

    def first_time(self, time: float, clients: np.ndarray, wanted: int) -> float | None:
        """The earliest time from `time` on at which at least `wanted` of the clients are present.

        If they are never so many at once, the earliest time at which most are present; None if none ever is.

        Args:
          time: seconds since the beginning of the run.
          clients: i64[K], their indices.
          wanted: number of clients.
        """
        if np.count_nonzero(self.present(time, clients)) >= wanted:
            return time
        begin, end = self._absolute(time, clients)
        if not len(begin):
            return None
        moments, places = np.unique(np.concatenate([begin, end]), return_inverse=True)
        changes = np.zeros(len(moments), np.int64)
        np.add.at(changes, places[: len(begin)], 1)
        np.add.at(changes, places[len(begin) :], -1)
        counts = np.cumsum(changes)
        enough = np.flatnonzero(counts >= min(wanted, counts.max()))
        return max(time, float(moments[enough[0]]) + SLACK)

    def _part(self, client: int) -> slice:
        return slice(int(self.offsets[client]), int(self.offsets[client + 1]))

    @cached_property
    def _scale(self) -> float:
        """More than any time within a period: places each client's intervals on a stretch of one long line."""
        return 2 * float(self.period.max(initial=1.0))

    @cached_property
    def _line(self) -> np.ndarray:
        """f64[M], the starts on that line, ascending."""
        owner = np.repeat(np.arange(len(self.period)), np.diff(self.offsets))
        return owner * self._scale + self.starts

    def _interval(self, time: float, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each client's time within its period, the last interval that began before, and whether the client is in it."""
        within = np.mod(time, self.period[clients])
        last = np.searchsorted(self._line, clients * self._scale + within, side="right") - 1
        if not len(self.ends):
            return within, last, np.zeros(len(clients), bool)
        inside = (last >= self.offsets[clients]) & (within < self.ends[last])
        return within, np.maximum(last, 0), inside

    def _absolute(self, time: float, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Begin and end of all intervals of the clients that end after `time`, over two of the longest periods."""
        owner = np.repeat(np.arange(len(clients)), np.diff(self.offsets)[clients])
        pieces = [np.arange(self.offsets[client], self.offsets[client + 1]) for client in clients.tolist()]
        which = np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64)
        period = self.period[clients][owner]
        # The longest period decides: a client with a shorter one repeats more often.
        times = 2 + int(np.ceil(2 * self.period[clients].max(initial=1.0) / self.period[clients].min(initial=np.inf)))
        shift = np.floor(time / period) * period + np.arange(times)[:, None] * period
        begin, end = (shift + self.starts[which]).ravel(), (shift + self.ends[which]).ravel()
        later = end > time
        return np.maximum(begin[later], time), end[later]

"""Estimates how long a run will still take, assuming that everything costs what it has cost so far.

training      a typical round of this stage; later stages in proportion to the layers that they run, including the output
head compiling     for every later stage the average of the stages so far, without the programs that evaluated the untuned
base building      for every later stage with a submodel the average of those so far
evaluating    by layers run: the base, beginnings and ends of stages, and evaluations between rounds
saving        checkpoints and records, per round
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low

from devft_jax.models.architecture import PROJECTIONS
from devft_jax.storage.records import RunTotals
from devft_jax.training.parts import Parts


@dataclass(frozen=True)
class Course:
    """What a run does from beginning to end, as far as it is known.

    Attributes:
      rounds: rounds of every stage.
      depths: layers of every stage.
      layers: layers of the full model.
      head: cost of the product with the vocabulary, in layers.
      every: rounds between evaluations within a stage, 0 for none.
      full: whether these also evaluate the full model.
      models: (rounds so far, whether it is the run's last evaluation) -> number of models evaluated then.
    """

    rounds: Sequence[int]
    depths: Sequence[int]
    layers: int
    head: float = 0.0
    every: int = 0
    full: bool = False
    models: Callable[[int, bool], float] = lambda rounds, last: 1.0

    def evaluations(self) -> Iterator[tuple[float, float]]:
        """(after how many rounds, layers run) of every evaluation; the end and the beginning of stages come between two
        rounds."""
        whole = self.layers + self.head
        yield 0, whole
        before = 0
        for stage, (rounds, layers) in enumerate(zip(self.rounds, self.depths, strict=True)):
            grows, depth = layers < self.layers, layers + self.head
            yield before and before + 0.5, depth * self.models(before, False)
            for number in range(before + 1, before + rounds):
                if self.every and number % self.every == 0:
                    yield number, (depth + whole * (self.full and grows)) * self.models(number, False)
            before += rounds
            last = stage + 1 == len(self.rounds)
            yield before + 0.5, (depth + whole * grows) * self.models(before, last)


def seconds_left(course: Course, totals: RunTotals, rounds: Sequence[float], round_index: int, saving: float = 0.0) -> float:
    """Seconds from a round to the end of the run; if the round was its stage's last, the stage's end is still to come.

    Args:
      course: the run's course.
      totals: the run's totals so far.
      rounds: seconds of training in each round of the current stage. With two rounds the shorter one counts as typical,
        because a first round waits for threads and memory.
      round_index: rounds of the run so far, from 1.
      saving: average seconds per round for everything else.
    """
    spent, begun = totals.seconds, len(totals.stages)
    each, depth = median_low(rounds), course.depths[begun - 1] + course.head
    left = each * (course.rounds[begun - 1] - len(rounds))
    later = zip(course.rounds[begun:], course.depths[begun:], strict=True)
    left += sum(each * count * (deeper + course.head) / depth for count, deeper in later)
    left += (spent.compile - totals.compile_before) / begun * (len(course.rounds) - begun)
    built = [layers < course.layers for layers in course.depths]
    left += spent.build / max(1, sum(built[:begun])) * sum(built[begun:])
    run = {True: 0.0, False: 0.0}
    for when, layers in course.evaluations():
        run[when <= round_index] += layers
    left += spent.evaluate * run[False] / run[True]
    return left + saving * (sum(course.rounds) - round_index)


def course_of(parts: Parts, totals: RunTotals) -> Course:
    """A run's stages and evaluations, from its first round on; unknown depths are taken to be the last stage's.

    Args:
      parts: the run's parts.
      totals: the run's totals so far.
    """
    known = [stage.layers for stage in totals.stages]
    planned = list(parts.depths or ())[len(known) :] or known[-1:] * len(totals.stage_rounds)
    config, clients, algorithm = parts.config, len(parts.data.clients), parts.algorithm

    def models(rounds: int, last: bool) -> float:
        # Clients that have trained, if each round draws them independently; all others share one model.
        own = 1 + clients * (1 - (1 - min(1.0, config.clients_per_round / clients)) ** rounds)
        if algorithm.has_global_model:
            return 1 + own * (last and algorithm.consensus is not None)
        return own

    model = parts.model.config
    of_layer = sum(math.prod(model.projection_shape(name)) for name in PROJECTIONS)
    return Course(
        rounds=totals.stage_rounds,
        depths=[*known, *planned][: len(totals.stage_rounds)],
        layers=model.layers,
        head=model.vocabulary * model.width / of_layer,
        every=config.evaluate_every,
        full=config.evaluate_full,
        models=models,
    )

"""How long a run will still take, if what is to come costs what the same things have cost so far.

training      a usual round of this stage, and of later ones by the layers that they run, the output head among them
compiling     as much for every later stage as for those begun, on average, without what evaluated the untuned base
building      as much for every later stage that has a submodel as for those begun, on average
evaluating    by the layers that are run: the base, stages' beginnings and ends, and evaluations between rounds
saving        checkpoints and records, by rounds
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
      rounds: of every stage.
      depths: layers of every stage.
      layers: of the full model.
      head: what the product with the vocabulary takes, in layers.
      every: rounds between evaluations within a stage, 0 for none.
      full: whether they evaluate the full model, too.
      models: (rounds so far, whether it is the run's last evaluation) -> models that are then evaluated.
    """

    rounds: Sequence[int]
    depths: Sequence[int]
    layers: int
    head: float = 0.0
    every: int = 0
    full: bool = False
    models: Callable[[int, bool], float] = lambda rounds, last: 1.0

    def evaluations(self) -> Iterator[tuple[float, float]]:
        """(after how many rounds, layers run) of every evaluation; a stage's end and beginning come between two rounds."""
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
    """Seconds to the end after a round, before the stage's end where it was the stage's last.

    Args:
      course: of the run.
      totals: so far.
      rounds: seconds of training in each round of the stage under way. Of two the shorter one is usual: a first round
        waits for threads and memory.
      round_index: rounds of the run so far, from 1.
      saving: seconds that a round has taken beside all that, on average.
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
    """A run's stages and evaluations, from its first round on; depths that are not known are taken for the last one's.

    Args:
      parts: of the run.
      totals: so far.
    """
    known = [stage.layers for stage in totals.stages]
    planned = list(parts.depths or ())[len(known) :] or known[-1:] * len(totals.stage_rounds)
    config, clients, algorithm = parts.config, len(parts.data.clients), parts.algorithm

    def models(rounds: int, last: bool) -> float:
        # Clients that have trained, if each round draws them anew; all others are one model.
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

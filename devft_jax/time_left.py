"""How long a run will still take, if what is to come costs what the same things have cost so far.

training      a round of this stage, and of later ones by their depth
compiling     as much for every later stage as for those begun, on average
building      a stage's beginning and a stage's end, on average
evaluating    by the layers that are run: the base, stages' beginnings and ends, and what is judged between rounds
saving        checkpoints and records, by rounds
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Course:
    """What a run does from beginning to end, as far as it is known.

    Attributes:
      rounds: of every stage. depths: layers of every stage. layers: of the full model.
      every: rounds between evaluations within a stage, 0 for none. full: whether they judge the full model, too.
      models: (rounds so far, whether it is the run's last evaluation) -> models that an evaluation then judges.
    """

    rounds: Sequence[int]
    depths: Sequence[int]
    layers: int
    every: int = 0
    full: bool = False
    models: Callable[[int, bool], float] = lambda rounds, last: 1.0

    def evaluations(self) -> Iterator[tuple[float, float]]:
        """(after how many rounds, layers run) of every evaluation; a stage's end and beginning come between two rounds."""
        yield 0, self.layers
        before = 0
        for stage, (rounds, depth) in enumerate(zip(self.rounds, self.depths, strict=True)):
            grows = depth < self.layers
            yield before and before + 0.5, depth * self.models(before, False)
            for number in range(before + 1, before + rounds):
                if self.every and number % self.every == 0:
                    yield number, (depth + self.layers * (self.full and grows)) * self.models(number, False)
            before += rounds
            last = stage + 1 == len(self.rounds)
            yield before + 0.5, (depth + self.layers * grows) * self.models(before, last)


def seconds_left(course: Course, record: Mapping[str, Any], round_index: int, saving: float = 0.0) -> float:
    """Seconds to the end after a round, before the stage's end where it was the stage's last.

    Args:
      record: of the state: `seconds` by kind, and of every stage begun its `rounds` and the `seconds` of their training.
      round_index: rounds of the run so far, from 1. saving: seconds that a round has taken beside all that, on average.
    """
    stages, spent = record["stages"], record["seconds"]
    begun, all_ = len(stages), len(course.rounds)
    now, depth = stages[-1], course.depths[begun - 1]
    each = now["seconds"] / now["rounds"]
    left = each * (course.rounds[begun - 1] - now["rounds"])
    later = zip(course.rounds[begun:], course.depths[begun:], strict=True)
    left += sum(each * rounds * deeper / depth for rounds, deeper in later)
    left += spent["compile"] / begun * (all_ - begun)
    left += spent["build"] / (2 * begun - 1) * (2 * (all_ - begun) + 1)
    run = {True: 0.0, False: 0.0}
    for when, layers in course.evaluations():
        run[when <= round_index] += layers
    left += spent["evaluate"] * run[False] / run[True]
    return left + saving * (sum(course.rounds) - round_index)

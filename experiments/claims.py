"""Claims of the paper and questions of our own, and how each is decided from the runs' figures.

A figure of an arm is one value per seed. Two arms are compared seed by seed, because runs with the same seed have the same
clients, cohorts and examples; a claim holds if the 95 % interval of the difference (or of the ratio) over the seeds says so.
Held-out loss stands for the paper's benchmark scores: lower for higher. A verdict is one of

    reproduced         every comparison of the claim is on the side that the paper reports
    not reproduced     one is on the other side, or the paper's number is not reached
    not shown          an interval contains both sides, or there is one seed and so no interval
    not testable here  what the claim is about was not measured at this scale

and for a question of our own, `answered` or `not shown`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scipy.stats import spearmanr

from devft_jax.comparing.measures import FINAL_LOSS, LOSS, MEASURES, Form
from devft_jax.comparing.statistics import ANYWHERE, POSITIVE, Bounds, Estimate, estimate, paired_difference
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS

REPRODUCED, NOT_REPRODUCED, NOT_SHOWN = "reproduced", "not reproduced", "not shown"
NOT_TESTABLE, ANSWERED = "not testable here", "answered"

LOSS_MEASURE = FINAL_LOSS.name
OF_A_ROUND = {
    "layers": ("layers", Form(digits=0)),
    "loss_start": ("loss at start", LOSS),
    "loss_end": ("at end", LOSS),
    "loss_full_after_transfer": ("full model after", LOSS),
    "seconds_of_a_round": ("seconds of a round", Form(SECONDS)),
    "bytes_of_a_round": ("sent up in a round", Form(BYTES)),
    "flops_of_a_step": ("work of a client's step", Form(FLOPS)),
    "client_memory": ("memory of a client", Form(BYTES)),
}
"""Title and format of the figures of a stage; its costs are those of a round."""
OF_A_PROBE = {
    "alignment": ("alignment before training", Form(digits=2)),
    "untrained_loss": ("loss before training", LOSS),
    "gain": ("gain", LOSS),
}
"""Title and format of the figures of a submodel that is probed and then trained."""
TITLES = {each.name: (each.title, each.form) for each in MEASURES} | OF_A_ROUND | OF_A_PROBE
TOLERANCE = 0.02
"""Relative error that a factor printed with two or three digits, or depths rounded to whole layers, may have."""

Arms = Mapping[str, Mapping[str, Any]]
"""The arms of a result by name, as in its JSON file."""


@dataclass(frozen=True)
class Verdict:
    """What was found about a claim.

    Attributes:
      status: one of the words above.
      sentence: the figures behind it.
    """

    status: str
    sentence: str


class Claim(Protocol):
    """Something that runs can decide."""

    @property
    def paper(self) -> str:
        """What the paper says, or our question."""

    def judged(self, arms: Arms) -> Verdict:
        """The verdict.

        Args:
          arms: the arms of a result, with their stages.
        """


def by_seed(arms: Arms, name: str, measure: str) -> dict[int, float]:
    """A figure of an arm by seed; empty if there is no such arm or figure.

    Args:
      arms: the arms of a result.
      name: name of the arm.
      measure: name of the figure.
    """
    runs = arms[name]["runs"] if name in arms else []
    found = {run["seed"]: run["measures"].get(measure) for run in runs}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def mean_of(arms: Arms, name: str, measure: str) -> Estimate | None:
    """The mean of a figure over an arm's seeds, with its interval; None if no run has it.

    Args:
      arms: the arms of a result.
      name: name of the arm.
      measure: name of the figure.
    """
    return estimate(list(by_seed(arms, name, measure).values()), _bounds(measure))


def difference_of(arms: Arms, name: str, other: str, measure: str) -> Estimate | None:
    """The mean over common seeds of an arm's figure minus another arm's; None without a common seed.

    Args:
      arms: the arms of a result.
      name: name of the arm.
      other: name of the other arm.
      measure: name of the figure.
    """
    return paired_difference(by_seed(arms, name, measure), by_seed(arms, other, measure), _bounds(measure))


def ratio_of(arms: Arms, name: str, other: str, measure: str) -> Estimate | None:
    """The mean over common seeds of another arm's figure divided by an arm's: how many times less the arm has.

    Args:
      arms: the arms of a result.
      name: name of the arm.
      other: name of the other arm.
      measure: name of the figure.
    """
    mine, theirs = by_seed(arms, name, measure), by_seed(arms, other, measure)
    return estimate([theirs[seed] / mine[seed] for seed in mine if seed in theirs and mine[seed]], POSITIVE)


def _bounds(measure: str) -> Bounds:
    return next((each.bounds for each in MEASURES if each.name == measure), ANYWHERE)


def with_stages(arms: Arms) -> dict[str, Mapping[str, Any]]:
    """The arms, and after each one its stages as arms of their own, "DevFT, stage 1", with figures of a round.

    Args:
      arms: the arms of a result.
    """
    found: dict[str, Mapping[str, Any]] = dict(arms)
    for name, arm in arms.items():
        for index in range(max((len(run["stages"]) for run in arm["runs"]), default=0)):
            runs = [
                {"seed": run["seed"], "measures": _of_a_round(run["stages"][index])}
                for run in arm["runs"]
                if index < len(run["stages"])
            ]
            found[f"{name}, stage {index + 1}"] = {"runs": runs}
    return found


def _of_a_round(stage: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a stage, with its costs per round."""
    rounds = stage["rounds"]
    own = {name: stage.get(name) for name in OF_A_ROUND}
    for name, total in (("seconds_of_a_round", "seconds"), ("bytes_of_a_round", "bytes_up")):
        own[name] = stage[total] / rounds if stage.get(total) and rounds else None
    return own


def side(found: Estimate) -> int:
    """-1 or 1 if a difference is shown to be below or above zero, else 0; one without spread over seeds is exact.

    Args:
      found: the difference.
    """
    if found.interval is None and found.count > 1:
        return (found.mean > 0) - (found.mean < 0)
    return found.sign


@dataclass(frozen=True)
class Lower:
    """An arm has a lower held-out loss than other arms.

    Attributes:
      arm: the arm.
      than: the others; those that a scale does not have are left out.
      paper: what the paper says.
    """

    arm: str
    than: Sequence[str]
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        own = mean_of(arms, self.arm, LOSS_MEASURE)
        apart = {name: difference_of(arms, name, self.arm, LOSS_MEASURE) for name in self.than}
        known = {name: found for name, found in apart.items() if found is not None}
        if own is None or not known:
            return Verdict(NOT_TESTABLE, "no model was trained at this scale.")
        sides = [side(found) for found in known.values()]
        status = NOT_REPRODUCED if -1 in sides else REPRODUCED if 0 not in sides else NOT_SHOWN
        return Verdict(status, f"{self.arm} ends at {LOSS.shown(own.mean, own.interval)}; {_against(known)}.")


@dataclass(frozen=True)
class AsLow:
    """The mean held-out loss of an arm is within or below the interval of another arm's, and it is not shown to be higher.

    The interval of a mean over seeds is wide where seeds have their own held-out examples, so that the paired difference
    has to agree.

    Attributes:
      arm: the arm.
      than: the other arm.
      paper: what is claimed.
    """

    arm: str
    than: str
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        own, other = (mean_of(arms, name, LOSS_MEASURE) for name in (self.arm, self.than))
        apart = difference_of(arms, self.arm, self.than, LOSS_MEASURE)
        if own is None or other is None or apart is None:
            return Verdict(NOT_TESTABLE, "no model was trained at this scale.")
        sentence = (
            f"{self.arm} ends at {LOSS.shown(own.mean, own.interval)}, {self.than} at "
            f"{LOSS.shown(other.mean, other.interval)}; paired by seed, the difference is "
            f"{LOSS.shown(apart.mean, apart.interval, sign=True)}."
        )
        if other.interval is None:
            return Verdict(NOT_SHOWN, sentence)
        reached = own.mean <= other.interval[1] and side(apart) <= 0
        return Verdict(REPRODUCED if reached else NOT_REPRODUCED, sentence)


@dataclass(frozen=True)
class Question:
    """How arms differ in held-out loss from one of them.

    Attributes:
      arm: the arm to which the others are compared.
      others: the others; those that a scale does not have are left out.
      paper: the question.
    """

    arm: str
    others: Sequence[str]
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        found = Lower(self.arm, self.others, self.paper).judged(arms)
        if found.status == NOT_TESTABLE:
            return found
        apart = [difference_of(arms, name, self.arm, LOSS_MEASURE) for name in self.others]
        shown = any(side(each) for each in apart if each is not None)
        return Verdict(ANSWERED if shown else NOT_SHOWN, found.sentence)


@dataclass(frozen=True)
class Room:
    """How far training lowers the held-out loss of the untuned model.

    Attributes:
      arm: the arm that is trained.
      paper: the question.
    """

    arm: str
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        runs = arms[self.arm]["runs"] if self.arm in arms else []
        starts = {run["seed"]: run["base_loss"] for run in runs if run.get("base_loss") is not None}
        found = paired_difference(starts, by_seed(arms, self.arm, LOSS_MEASURE), ANYWHERE)
        if found is None:
            return Verdict(NOT_TESTABLE, "no model was trained at this scale.")
        before = LOSS.shown(sum(starts.values()) / len(starts))
        sentence = f"{self.arm} lowers the untuned model's {before} by {LOSS.shown(found.mean, found.interval)}."
        return Verdict(ANSWERED if found.count > 1 and side(found) else NOT_SHOWN, sentence)


def _against(apart: Mapping[str, Estimate]) -> str:
    """Differences to the arm of a claim, in words."""
    words = {1: "higher", -1: "lower", 0: "no difference shown"}
    parts = []
    for name, found in apart.items():
        word = words[side(found)] if found.count > 1 else "one seed"
        parts.append(f"{name} {LOSS.shown(found.mean, found.interval, sign=True)} ({word})")
    return "; ".join(parts)


@dataclass(frozen=True)
class Factor:
    """An arm needs so many times less of something than another.

    Attributes:
      arm: the arm that needs less.
      than: the other arm.
      measure: name of the figure.
      factor: the paper's factor.
      paper: what the paper says.
    """

    arm: str
    than: str
    measure: str
    factor: float
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        title, form = TITLES[self.measure]
        mine, theirs = (mean_of(arms, name, self.measure) for name in (self.arm, self.than))
        found = ratio_of(arms, self.arm, self.than, self.measure)
        if found is None or mine is None or theirs is None:
            if self.measure.endswith("_to_target") and theirs is not None:
                return Verdict(NOT_REPRODUCED, f"{self.arm} reaches the final loss of {self.than} with no seed.")
            return Verdict(NOT_TESTABLE, f"{title} is not measured for both at this scale.")
        sentence = (
            f"{title}: {self.than} {form.shown(theirs.mean, theirs.interval)}, {self.arm} "
            f"{form.shown(mine.mean, mine.interval)}, {Form(digits=2).shown(found.mean, found.interval)} times less."
        )
        low, high = found.interval or (found.mean, found.mean)
        needed = self.factor * (1 - TOLERANCE)
        if high < needed:
            return Verdict(NOT_REPRODUCED, sentence)
        return Verdict(REPRODUCED if found.mean >= needed and low > 1 else NOT_SHOWN, sentence)


@dataclass(frozen=True)
class Value:
    """A figure of an arm has the paper's value.

    Attributes:
      arm: the arm.
      measure: name of the figure.
      value: the paper's value.
      paper: what the paper says.
    """

    arm: str
    measure: str
    value: float
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        title, form = TITLES[self.measure]
        found = mean_of(arms, self.arm, self.measure)
        if found is None:
            return Verdict(NOT_TESTABLE, f"{title} is not measured for {self.arm} at this scale.")
        agrees = abs(found.mean / self.value - 1) <= TOLERANCE
        apart = f"{found.mean / self.value:.3f} times the paper's"
        return Verdict(REPRODUCED if agrees else NOT_REPRODUCED, f"{title}: {form.shown(found.mean)}, {apart}.")


@dataclass(frozen=True)
class Predicts:
    """A figure known before training orders the arms by what training gains.

    Attributes:
      measure: name of the figure.
      least: rank correlation (Spearman) with the gain that counts as a prediction; below zero if lower figures are better.
      paper: the question.
    """

    measure: str
    least: float
    paper: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        figures = {name: (by_seed(arms, name, self.measure), by_seed(arms, name, "gain")) for name in arms}
        seeds = sorted({seed for _, gains in figures.values() for seed in gains})
        found, count = [], 0
        for seed in seeds:
            pairs = [(before[seed], gain[seed]) for before, gain in figures.values() if seed in before and seed in gain]
            count = max(count, len(pairs))
            if len(pairs) > 2:
                found.append(float(spearmanr(pairs).statistic))
        if not found:
            return Verdict(NOT_TESTABLE, f"{TITLES[self.measure][0]} or the gain is not measured at this scale.")
        mean, shown = sum(found) / len(found), ", ".join(f"{each:.2f}" for each in found)
        word = "yes" if mean / self.least >= 1 else "no"
        return Verdict(ANSWERED, f"{word}: {mean:.2f} on average over seeds ({shown}), {count} submodels.")


@dataclass(frozen=True)
class Beyond:
    """A claim that this study cannot test at any scale.

    Attributes:
      paper: what the paper says.
      why: why it cannot be tested.
    """

    paper: str
    why: str

    def judged(self, arms: Arms) -> Verdict:
        """The verdict; see `Claim`."""
        return Verdict(NOT_TESTABLE, self.why)

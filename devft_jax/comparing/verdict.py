"""A comparison in sentences: the conclusions, and what is equal between the arms and what is not."""

from collections.abc import Iterator, Sequence
from typing import Any

from devft_jax.comparing.measures import (
    BYTES_UP,
    FINAL_LOSS,
    LOSS,
    OWN_LOSS,
    TRAIN_FLOPS,
    by_seed,
    difference,
    fronts,
    mean_of,
)
from devft_jax.comparing.results import Budget, Comparison
from devft_jax.comparing.tables import cell, rate_of, seeds_in_words


def verdict(comparison: Comparison) -> list[str]:
    """The conclusions in sentences, budget by budget, and how much chance is in them.

    Args:
      comparison: the comparison.
    """
    sentences = [sentence for budget in comparison.budgets for sentence in _verdict(comparison, budget)]
    if len(comparison.seeds) == 1:
        return [*sentences, "This is one seed, so nothing is known about the variation between seeds."]
    others = sum(len(budget.arms) - 1 for budget in comparison.budgets)
    caution = (
        f"Intervals are Student's over {len(comparison.seeds)} seeds, computed for bounded quantities (losses, costs, "
        "shares and their differences) on an unbounded scale, at 95 % for each difference by itself; seeds that all give "
        "the same value have none"
    ) + (f": of {others} differences some may exclude zero by chance." if others > 1 else ".")
    return [*sentences, caution]


def _verdict(comparison: Comparison, budget: Budget) -> list[str]:
    reference = budget.arm(comparison.reference)
    standard = mean_of(reference, FINAL_LOSS)
    where = f"At equal {budget.kind}"
    if standard is None:
        why = "its runs failed" if not reference.finished else "there is no held-out data"
        return [f"{where} nothing can be compared with {reference.name}: {why}."]
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "the same": [], "open": []}
    for arm in budget.arms:
        found = difference(comparison, budget, arm, FINAL_LOSS)
        if found is None:
            continue
        shown = f"{arm.name} ({LOSS.shown(found.mean, found.interval, sign=True)})"
        if found.mean == 0 and found.interval is None:
            groups["the same"].append(arm.name)
        elif found.count == 1:
            groups["lower" if found.mean < 0 else "higher"].append(shown)
        else:
            groups[{-1: "lower", 1: "higher", 0: "open"}[found.sign]].append(shown)
    parts = [f"{name} with {_listed(arms)}" for name, arms in groups.items() if arms and name != "open"]
    said = []
    if parts:
        said.append(f"{where}, against {reference.name} at {cell(standard, LOSS)}, held-out loss is {'; '.join(parts)}.")
    if groups["open"]:
        said.append(
            f"{where} the seeds show no difference in held-out loss between {reference.name} and "
            f"{_listed(groups['open'])}: the intervals include zero, or there are none."
        )
    return [*said, *_best(comparison, budget), *_fronts(budget)]


def _best(comparison: Comparison, budget: Budget) -> Iterator[str]:
    """The arm with the lowest mean loss, and its costs relative to the reference."""
    means = {arm.name: mean_of(arm, FINAL_LOSS) for arm in budget.arms}
    known = {name: found for name, found in means.items() if found is not None and not budget.arm(name).pools}
    if len(known) < 2:
        return
    name = min(known, key=lambda each: known[each].mean)
    shares = []
    for measure, what in ((BYTES_UP, "bytes up"), (TRAIN_FLOPS, "FLOPs")):
        mine, theirs = (mean_of(budget.arm(each), measure) for each in (name, comparison.reference))
        if mine is not None and theirs is not None and theirs.mean and name != comparison.reference:
            shares.append(f"{mine.mean / theirs.mean:.0%} of {comparison.reference}'s {what}")
    cost = f", with {' and '.join(shares)}" if shares else ""
    among = "" if len(known) == len(budget.arms) else " of the arms that do not pool data"
    yield f"The lowest mean at equal {budget.kind}{among} is that of {name}, {cell(known[name], FINAL_LOSS.form)}{cost}."


def _fronts(budget: Budget) -> Iterator[str]:
    for measure, what in ((BYTES_UP, "bytes sent up"), (TRAIN_FLOPS, "training work")):
        front = fronts(budget, measure)
        if len(budget.arms) > 2 and front:
            yield f"On the Pareto front of mean loss and {what} at equal {budget.kind}: {_listed(front)}."


def _listed(names: Sequence[str]) -> str:
    """Names joined for a sentence.

    Args:
      names: one or more.
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


WORK = ("clients_per_round", "local_steps", "batch_size")
"""Options that change the number of examples in a round."""


def fairness(comparison: Comparison) -> list[str]:
    """What is equal between the arms and what is not, in sentences.

    Args:
      comparison: the comparison.
    """
    first, common = comparison.budgets[0], comparison.common
    seeds = ", ".join(map(str, comparison.seeds))
    said = [
        f"Seed{'s' if len(comparison.seeds) > 1 else ''} {seeds}: of the split, the cohorts, the order of examples and the "
        "initialisation. All arms of a seed have the same clients, cohorts and examples; their splits were compared.",
        _rates(comparison),
    ]
    for arm in first.arms:
        if arm.changes:
            shown = ", ".join(f"{name} {as_text(value)}" for name, value in arm.changes.items())
            said.append(f"{arm.name} has options of its own: {shown}.")
        changed = [name for name in WORK if name in arm.changes]
        if changed:
            said.append(f"Its {' and '.join(changed)} give {arm.name} other numbers of examples in a round.")
    shorter = sorted({arm.name for budget in comparison.budgets for arm in budget.arms if arm.rounds != common.rounds})
    if shorter:
        said.append(f"Runs of other lengths have their own schedules over their rounds: {_listed(shorter)}.")
    personal = [arm.name for arm in first.arms if arm.personal]
    if personal:
        said.append(f"Every client has its own model in {_listed(personal)}; figures are means over the clients' models.")
    both = [arm.name for arm in first.arms if by_seed(arm, OWN_LOSS, None)]
    if both:
        said.append(f"In {_listed(both)} figures are those of the one global model; the clients' own are given beside it.")
    said += _judging(comparison)
    if comparison.scores is not None:
        said.append(
            "Scores on tasks are those of the final full model of each run, computed as by `devft evaluate`; the untuned "
            "base is scored once."
        )
    said.append(
        "Runs were made one at a time, each in a process of its own. Training time excludes compiling, evaluation and stage "
        "changes; 'with compiling' includes compiling and stage changes. Programs that were compiled before are read from a "
        "cache, so first runs compile longer and need more memory than later ones. On a CPU, rounds during which the "
        "next stage is compiled (--compile-ahead on) take longer."
    )
    records = [record for budget in comparison.budgets for arm in budget.arms for record in arm.records.values()]
    sources = sorted({record.peak_memory_source for record in records})
    said.append(f"Peak memory: {_listed(sources)}." if sources else "")
    versions = {str(sorted(record.versions.items())) for record in records}
    if len(versions) > 1:
        said.append("The runs were not all made with the same versions or on the same device: see runs.csv.")
    return [sentence for sentence in said if sentence]


def _judging(comparison: Comparison) -> Iterator[str]:
    """When the full model was evaluated, and which arms were not evaluated at the common rounds."""
    every = comparison.common.evaluate_every
    if not every:
        yield (
            "The full model was evaluated only at the ends of stages (evaluate_every 0), so at different rounds in each "
            "arm; the costs to reach a loss are exact only to a stage."
        )
        return
    apart = comparison.judged_apart
    but = f" in all arms but {_listed(apart)}, evaluated only at the ends of stages" if apart else " in all arms"
    yield (
        f"The full model was evaluated every {f'{every} rounds' if every > 1 else 'round'}{but}; the costs to reach a loss "
        "are exact to this interval, and counted at these rounds and at the end of a run."
    )


def _rates(comparison: Comparison) -> str:
    if comparison.rates:
        grid = ", ".join(f"{rate:g}" for rate in comparison.rates)
        ends = {min(comparison.rates), max(comparison.rates)}
        edge = sorted(
            {arm.name for budget in comparison.budgets for arm in budget.arms if ends & {*arm.config.learning_rate}}
        )
        said = (
            f"Every arm's learning rate is the best of {grid} by held-out loss in one run on {seeds_in_words(comparison)}, "
            "not among the seeds above; the held-out examples are the same as in the results."
        )
        return said + (
            f" The rate of {_listed(edge)} is at an end of these rates: a better one may lie beyond." if edge else ""
        )
    rates = {arm.name: rate_of(arm) for arm in comparison.budgets[0].arms}
    if len(set(rates.values())) == 1:
        return f"All arms have the learning rate {next(iter(rates.values()))}; it was not tuned for each of them here."
    return f"Learning rates were given, not tuned here: {', '.join(f'{name} {rate}' for name, rate in rates.items())}."


def as_text(value: Any) -> str:
    """An option's value as text.

    Args:
      value: the value; the items of a list are joined by commas.
    """
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def notes(budget: Budget) -> list[str]:
    """How the arms' rounds or ranks were chosen, and which runs failed and why, in sentences.

    Args:
      budget: the budget with these arms.
    """
    own = [f"{arm.name}: {arm.note}." for arm in budget.arms if arm.note]
    failed = [
        f"{arm.name}, seed {outcome.seed}, failed: {outcome.error}"
        for arm in budget.arms
        for outcome in arm.outcomes
        if not outcome.finished
    ]
    return [*own, *budget.left_out, *failed]

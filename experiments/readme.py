"""The results in experiments/README.md, written from the committed JSON files alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from devft_jax.comparing.measures import LOSS
from devft_jax.files import as_markdown
from experiments.claims import (
    LOSS_MEASURE,
    NOT_TESTABLE,
    OF_A_PROBE,
    OF_A_ROUND,
    TITLES,
    Arms,
    Beyond,
    Claim,
    Verdict,
    by_seed,
    difference_of,
    mean_of,
    with_stages,
)
from experiments.study import RESULTS, Experiment, read_results

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
SCALES = ("demo", "real", "paper")
SHOWN = (
    LOSS_MEASURE,
    *OF_A_PROBE,
    "accuracy",
    "bytes_up",
    "bytes_stage",
    "train_flops",
    "seconds_train",
    "peak_memory_bytes",
    "simulated_seconds",
    "could_join",
)
"""The figures of an arm in a table, where they are known."""

Results = Mapping[str, Any]
"""The results of an experiment at a scale, as in its JSON file."""
Scores = Mapping[str, Any]
"""By task and metric, a score and its standard error over the task's items."""


def regenerated(text: str, experiments: Sequence[Experiment], folder: Path = RESULTS) -> str:
    """The README with its results written anew.

    Args:
      text: the README.
      experiments: all experiments, in order.
      folder: folder of the results of all scales.
    """
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = {experiment.name: results_of(experiment, folder) for experiment in experiments}
    lines = [BEGIN, "", *_summary(experiments, found)]
    for experiment in experiments:
        lines += ["", *_section(experiment, found[experiment.name])]
    return f"{before}{chr(10).join(lines)}\n\n{END}{after}"


def results_of(experiment: Experiment, folder: Path = RESULTS) -> dict[str, Results]:
    """An experiment's results by scale, as far as it was run.

    Args:
      experiment: the experiment.
      folder: folder of the results of all scales.
    """
    known = {scale: read_results(experiment.name, scale, folder) for scale in SCALES}
    return {scale: results for scale, results in known.items() if results is not None}


def verdicts(claim: Claim, results: Results) -> Iterator[tuple[str, Verdict]]:
    """The verdict on a claim for every model of a result.

    Args:
      claim: the claim.
      results: the results at a scale.
    """
    for model in results["models"]:
        yield model["model"], claim.judged(with_stages(model["arms"]))


def _shown(claim: Claim, results: Results) -> list[tuple[str, Verdict]]:
    """The verdicts that are shown: at the scale paper, where nothing is trained, only those on costs."""
    found = [] if isinstance(claim, Beyond) else list(verdicts(claim, results))
    return [each for each in found if results["scale"] != "paper" or each[1].status != NOT_TESTABLE]


def _summary(experiments: Sequence[Experiment], found: Mapping[str, Mapping[str, Results]]) -> Iterator[str]:
    """A table of all verdicts."""
    yield "## Verdicts"
    yield ""
    yield "| | demo | real | paper, planned |"
    yield "|---|---|---|---|"
    for experiment in experiments:
        cells = []
        for scale in SCALES:
            results = found[experiment.name].get(scale)
            if results is None:
                cells.append("not run yet" if scale in experiment.scales and scale != "paper" else "")
                continue
            counts: dict[str, int] = {}
            for claim in experiment.claims:
                for _, verdict in _shown(claim, results):
                    counts[verdict.status] = counts.get(verdict.status, 0) + 1
            cells.append(", ".join(f"{count} {status}" for status, count in counts.items()))
        yield f"| [{experiment.title}](#{anchor(experiment.title)}) | {' | '.join(cells)} |"


def anchor(title: str) -> str:
    """The name under which GitHub links a heading.

    Args:
      title: the heading.
    """
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def _section(experiment: Experiment, found: Mapping[str, Results]) -> Iterator[str]:
    """An experiment's claims with their verdicts, pictures and tables."""
    yield f"### {experiment.title}"
    yield ""
    yield experiment.about
    yield ""
    for claim in experiment.claims:
        yield f"- {claim.paper}"
        if isinstance(claim, Beyond):
            yield f"    - **{NOT_TESTABLE}**: {claim.why}"
        for scale, results in found.items():
            for model, verdict in _shown(claim, results):
                where = scale if scale != "paper" else f"{model}, planned"
                yield f"    - {where}: **{verdict.status}**. {as_markdown(_capital(verdict.sentence))}"
    for scale, results in found.items():
        name = f"results/{scale}/{experiment.name}"
        seeds = len(results["seeds"])
        of = f"{seeds} seed{'s' if seeds > 1 else ''}" if scale != "paper" else "planned"
        yield ""
        if (README.parent / f"{name}.svg").exists():
            yield f"![{experiment.title}, {scale}]({name}.svg)"
            yield ""
        yield f"<details><summary>Figures at the scale {scale}, {of}</summary>"
        for model in results["models"]:
            yield ""
            yield f"{model['model']}, {model['data']} ([{experiment.name}.json]({name}.json))"
            yield ""
            yield from _table(experiment, model["arms"], model.get("base_scores", {}))
        yield ""
        yield "</details>"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(experiment: Experiment, own: Arms, scores_of_base: Scores) -> Iterator[str]:
    """The figures of all arms, or of their stages."""
    arms, measures = own, [*SHOWN, *experiment.columns]
    if experiment.by_stage:
        arms = {name: arm for name, arm in with_stages(own).items() if name not in own}
        measures = list(OF_A_ROUND)
    known = [each for each in measures if any(by_seed(arms, name, each) for name in arms)]
    apart = LOSS_MEASURE in known
    heads = [*(TITLES[each][0] for each in known)]
    scores = list(dict.fromkeys(name for arm in arms.values() for run in arm["runs"] for name in run.get("scores", {})))
    if apart:
        heads.insert(1, f"against {experiment.reference}")
    yield "| | " + " | ".join([*heads, *scores]) + " |"
    yield "|---" + "|---:" * (len(heads) + len(scores)) + "|"
    if scores_of_base:
        cells = [""] * len(heads) + [_score([scores_of_base], score) for score in scores]
        yield f"| the untuned base | {' | '.join(cells)} |"
    for name, arm in arms.items():
        cells = [_cell(arms, name, each) for each in known]
        if apart:
            cells.insert(1, _difference(arms, name, experiment.reference))
        cells += [_score([run.get("scores", {}) for run in arm["runs"]], score) for score in scores]
        yield f"| {as_markdown(name)} | {' | '.join(cells)} |"
    for name, arm in arms.items():
        for run in arm["runs"]:
            if run.get("error"):
                yield ""
                yield f"{as_markdown(name)}, seed {run['seed']}, failed: {as_markdown(run['error'])}"


def _cell(arms: Arms, name: str, measure: str) -> str:
    found, form = mean_of(arms, name, measure), TITLES[measure][1]
    return "" if found is None else form.shown(found.mean, found.interval)


def _difference(arms: Arms, name: str, reference: str) -> str:
    if name == reference:
        return ""
    found = difference_of(arms, name, reference, LOSS_MEASURE)
    return "" if found is None else LOSS.shown(found.mean, found.interval, sign=True)


def _score(runs: Sequence[Scores], name: str) -> str:
    """The mean over seeds; with a single seed it has the 95 % interval over the task's items."""
    found = [scores[name] for scores in runs if scores.get(name) is not None]
    if len(found) == 1 and found[0][1] is not None:
        return f"{100 * found[0][0]:.1f} ± {100 * 1.96 * found[0][1]:.1f}%"
    return f"{100 * sum(value for value, _ in found) / len(found):.1f}%" if found else ""

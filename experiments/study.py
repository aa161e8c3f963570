"""An experiment is a declaration: arms, what they share, and claims. This file runs declarations and keeps their results.

    declaration -> `devft compare` of its arms over the seeds (or `devft plan` of each) -> results/SCALE/NAME.json

All experiments of a scale have one folder of runs, in which a run has a name derived from its configuration: one that two
experiments share is made once, a finished run is read, and a stopped one is resumed.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.comparing.compare import compare
from devft_jax.comparing.measures import MEASURES
from devft_jax.comparing.options import CompareOptions
from devft_jax.comparing.request import check_request
from devft_jax.comparing.results import ArmResult, Comparison, Outcome
from devft_jax.comparing.scores import scores_by_seed
from devft_jax.config.files import config_from_mapping
from devft_jax.config.files import to_plain as config_to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.files import write_atomically
from devft_jax.harness.results import TaskScore
from devft_jax.planning.plan import Plan
from devft_jax.planning.planner import make_plan
from devft_jax.probing.options import ProbeOptions
from devft_jax.probing.probe import probe
from devft_jax.reporting import Progress
from devft_jax.storage.records import StageRecord
from experiments.claims import LOSS_MEASURE, Claim
from experiments.scales import Base, Options, Scale

RESULTS = Path(__file__).parent / "results"
SOURCES = ("model", "data", "test_data", "category_field")
"""Options that say where something is on this machine, or what it is called there."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Arms on the same data and protocol: one comparison.

    Attributes:
      arms: options of every arm by its name, as in a file of arms of `devft compare`.
      name: name of the part, if an experiment has several.
      options: options of all arms that differ from the base's.
      tuned: whether every arm has the best of the scale's learning rates.
      probed: plan and layers of the submodel that an arm trains, for arms that are probed before they are trained.
    """

    arms: Mapping[str, Options]
    name: str = ""
    options: Options = field(default_factory=dict)
    tuned: bool = False
    probed: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def full_name(self, arm: str) -> str:
        """The name of an arm among those of all parts.

        Args:
          arm: its name in this part.
        """
        return f"{self.name}: {arm}" if self.name else arm


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure of the paper, or a question.

    Attributes:
      name: name of its results and for `--only`.
      title: its title.
      about: what is compared, and how it differs from the paper.
      parts: the comparisons that it consists of, for a model.
      claims: what is decided from them.
      reference: the arm to which the table's differences are computed.
      shown: the figure of the picture.
      models: the models of the scale paper that it is about.
      scales: the scales at which it is run.
      scored: whether final models are scored on benchmark tasks, if tasks are named.
      by_stage: whether the picture and the table show stages.
      seeds: the seeds at the scale real; None for the scale's own.
      columns: figures that its table shows beside the usual ones.
      data: name of its data, if that is not the base's.
    """

    name: str
    title: str
    about: str
    parts: Callable[[Base], Sequence[Part]]
    claims: Sequence[Claim]
    reference: str
    shown: str = LOSS_MEASURE
    models: Sequence[str] = ("LLaMA2-7B",)
    scales: Sequence[str] = ("demo", "real", "paper")
    scored: bool = False
    by_stage: bool = False
    seeds: Sequence[int] | None = None
    columns: Sequence[str] = ()
    data: str | None = None

    def seeds_at(self, scale: Scale) -> tuple[int, ...]:
        """The seeds of its runs at a scale.

        Args:
          scale: the scale.
        """
        return scale.seeds if self.seeds is None or scale.name != "real" else tuple(self.seeds)

    def bases(self, scale: Scale) -> list[Base]:
        """The models on which it is run at a scale.

        Args:
          scale: the scale.
        """
        if scale.name not in self.scales:
            return []
        return [base for base in scale.bases if scale.trains or base.name in self.models]


def request_of(
    experiment: Experiment, scale: Scale, base: Base, part: Part, folder: Path
) -> tuple[RunConfig, CompareOptions]:
    """What `devft compare` is asked for a part of an experiment; the arms are written to a file.

    Args:
      experiment: the experiment.
      scale: gives seeds and learning rates.
      base: the model with its data and protocol.
      part: one of the experiment's parts for this model.
      folder: folder of the scale's work.
    """
    tuned = bool(part.tuned and scale.tuning)
    rate = {} if tuned else {"learning_rate": base.rate}
    common = config_from_mapping({**base.options, **rate, **part.options})
    file = folder / "arms" / f"{'-'.join(filter(None, (experiment.name, part.name, base.name)))}.yaml".replace(" ", "_")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(dict(part.arms), indent=1) + "\n")
    options = CompareOptions(
        arms_file=str(file),
        seeds=experiment.seeds_at(scale),
        reference=experiment.reference if experiment.reference in part.arms else None,
        learning_rates=scale.tuning if tuned else None,
        evaluations=scale.evaluations,
        out=str(folder / "comparison"),
    )
    return common, options


def run_experiment(
    experiment: Experiment,
    scale: Scale,
    folder: Path,
    *,
    tasks: BenchmarkOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an experiment, or plan it at a scale that is not run.

    Args:
      experiment: the experiment.
      scale: the scale.
      folder: folder of the scale's work.
      tasks: tasks that the final models of an experiment that is scored are scored on.
      progress: the progress output.

    Returns:
      Its results, JSON-ready.

    Raises:
      SystemExit: it was asked to stop; what is finished is kept.
      InputError: the experiment cannot be run.
    """
    models = []
    for base in experiment.bases(scale):
        arms: dict[str, Any] = {}
        scores_of_base: dict[str, list[float | None]] = {}
        for part in experiment.parts(base):
            common, options = request_of(experiment, scale, base, part, folder)
            if not scale.trains:
                arms |= {part.full_name(name): values for name, values in _planned(common, options, part)}
                continue
            made = compare(common, options, tasks if experiment.scored else None, progress=progress)
            if made.comparison is None:
                raise SystemExit(128 + (made.stopped_by or 0))
            arms |= {part.full_name(name): values for name, values in _measured(made.comparison, part)}
            scores_of_base |= _scores_of_base(made.comparison)
            if part.probed:
                _probe(part, common, experiment.seeds_at(scale), arms, progress)
        model = {"model": base.name, "data": experiment.data or base.data, "options": _shared(base), "arms": arms}
        models.append({**model, "base_scores": scores_of_base} if scores_of_base else model)
    return {"experiment": experiment.name, "scale": scale.name, "seeds": list(experiment.seeds_at(scale)), "models": models}


def _probe(part: Part, common: RunConfig, seeds: Sequence[int], arms: Mapping[str, Any], progress: Progress | None) -> None:
    """Add what a probe says of the submodels of the arms, and what training them has gained."""
    plans, depths = zip(*part.probed.values(), strict=True)
    options = ProbeOptions(plans=tuple(dict.fromkeys(plans)), depths=tuple(sorted(set(depths))))
    for seed in seeds:
        config = dataclasses.replace(common, seed=seed, algorithm="fedit")
        rows = {(row.plan, row.layers): row for row in probe(config, options, progress=progress).rows}
        for name, plan in part.probed.items():
            for run in arms[part.full_name(name)]["runs"]:
                if run["seed"] == seed and run["error"] is None:
                    run["measures"] |= {
                        "alignment": _rounded(rows[plan].alignment),
                        "untrained_loss": _rounded(rows[plan].loss),
                        "gain": _rounded(run["base_loss"] - run["measures"][LOSS_MEASURE]),
                    }


def _shared(base: Base) -> dict[str, Any]:
    """The base's own options, without the places of model and data."""
    return _without_places(base.options) | {"learning_rate": base.rate}


def _without_places(options: Options) -> dict[str, Any]:
    """Options as they are on any machine: without the names of model and data, and files of the study from its root."""
    root = f"{Path(__file__).parents[1]}/"
    plain = {name: value for name, value in options.items() if name not in SOURCES}
    return {name: value.removeprefix(root) if isinstance(value, str) else value for name, value in plain.items()}


def _measured(comparison: Comparison, part: Part) -> Iterator[tuple[str, dict[str, Any]]]:
    for arm in comparison.budgets[0].arms:
        yield (
            arm.name,
            {
                **_described(arm.config, part, arm.changes),
                "tuning": None if arm.tuning is None else {f"{rate:g}": loss for rate, loss in arm.tuning.items()},
                "runs": [_run(comparison, arm, outcome) for outcome in arm.outcomes],
            },
        )


def _described(config: RunConfig, part: Part, changes: Options) -> dict[str, Any]:
    plain = config_to_plain(config)
    names = ("algorithm", "growth", "rounds", "rank", "learning_rate")
    return {name: plain[name] for name in names} | {"options": _without_places({**part.options, **changes})}


def _run(comparison: Comparison, arm: ArmResult, outcome: Outcome) -> dict[str, Any]:
    """The figures of one run."""
    record = outcome.record
    measures = {each.name: _rounded(each.of(outcome, comparison.target)) for each in MEASURES}
    scores = {}
    if comparison.scores is not None:
        for score in comparison.scores.shown:
            scores[_name(score)] = _value(scores_by_seed(comparison.scores, arm, score).get(outcome.seed))
    return {
        "seed": outcome.seed,
        "run": Path(outcome.folder).name,
        "error": outcome.error and outcome.error.replace(f"{Path(outcome.folder).parent}/", ""),
        "base_loss": None if record is None else _rounded(record.base_loss),
        "measures": {name: value for name, value in measures.items() if value is not None},
        "scores": scores,
        "curve": _curve(outcome),
        "stages": [] if record is None else [_stage(each) for each in record.stages],
    }


def _name(score: TaskScore) -> str:
    return f"{score.task} {score.metric}"


def _value(score: TaskScore | None) -> list[float | None] | None:
    """A score and its standard error over the task's items."""
    return None if score is None else [_rounded(score.value), _rounded(score.standard_error)]


def _scores_of_base(comparison: Comparison) -> dict[str, list[float | None]]:
    """The untuned base's scores; nothing if there are none."""
    scores = comparison.scores
    if scores is None or scores.base is None:
        return {}
    found = ((each, scores.base.find(each.task, each.metric, each.filter)) for each in scores.shown)
    return {_name(each): value for each, own in found if (value := _value(own)) is not None}


def _curve(outcome: Outcome) -> list[list[float | None]]:
    """Round, seconds, bytes, simulated seconds if there is a fleet, and loss of every evaluation of the full model."""
    fleet = outcome.record is not None and outcome.record.fleet is not None
    costs = [(at.round, at.seconds, at.bytes_up, *((at.simulated,) if fleet else ())) for at in outcome.curve]
    return [[_rounded(each) for each in (*cost, at.loss)] for cost, at in zip(costs, outcome.curve, strict=True)]


def _stage(stage: StageRecord) -> dict[str, Any]:
    names = ("layers", "rounds", "seconds", "bytes_up", "loss_start", "loss_end", "loss_full_after_transfer")
    return {name: _rounded(getattr(stage, name)) for name in names} | {"group_sizes": stage.group_sizes}


def _rounded(value: float | None) -> float | None:
    """Seven significant digits of a number that is not whole."""
    return value if value is None or isinstance(value, int) else float(f"{value:.7g}")


def _planned(common: RunConfig, options: CompareOptions, part: Part) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in check_request(common, options).budgets[0].arms:
        plan = make_plan(each.config)
        names = ("bytes_up", "bytes_down", "bytes_stage", "train_flops")
        stages = [
            {
                "layers": stage.layers,
                "rounds": stage.rounds,
                "bytes_up": stage.bytes_up,
                "flops_of_a_step": stage.train_flops // _steps(plan, stage.rounds),
                "client_memory": stage.client.total,
            }
            for stage in plan.stages
        ]
        run = {"seed": common.seed, "measures": {name: plan.total(name) for name in names}, "curve": [], "stages": stages}
        yield each.arm.name, {**_described(each.config, part, each.arm.overrides), "runs": [run]}


def _steps(plan: Plan, rounds: int) -> int:
    """Steps of all clients in so many rounds."""
    return rounds * plan.config.clients_per_round * plan.config.local_steps


def write_results(results: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write an experiment's results to its file.

    Args:
      results: what `run_experiment` returned.
      folder: folder of the results of all scales.

    Returns:
      The file.
    """
    path = folder / results["scale"] / f"{results['experiment']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Innermost lists on one line.
    text = re.sub(r"\[([^\[\]{}]*)\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(results, indent=1))
    write_atomically(path, text + "\n")
    return path


def read_results(name: str, scale: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """An experiment's results; None if it was not run at this scale.

    Args:
      name: name of the experiment.
      scale: name of the scale.
      folder: folder of the results of all scales.
    """
    path = folder / scale / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def only_on_the_cpu() -> None:
    """Let this process, which only plans, use no accelerator, so that the runs' own processes have all of it."""
    jax.config.update("jax_platforms", "cpu")

"""What a run's folder tells: its records, checked to fit together, and running totals over all of its rounds.

Within a stage of a growing run what is evaluated is the submodel. The full model is known before the first round, where a
stage ended, after transfer, and with `evaluate_full` within the stages; in a stage at full depth the two are one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

from devft_jax.errors import InputError
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, unit_for

Kinds = dict[str, Any]
_NUMBER, _KNOWN = (int, float), (int, float, type(None))

# What the report reads of each record, besides what may be absent, and the types that it has in JSON.
_ROW: Kinds = {
    **dict.fromkeys(("round", "stage", "layers", "bytes_up", "bytes_down", "train_flops", "program_bytes", "tokens"), int),
    **dict.fromkeys(("loss", "seconds"), _NUMBER),
    **dict.fromkeys(("adapter_norms", "clients"), list),
}
_RECORD: Kinds = {
    **dict.fromkeys(("base_loss", "base_accuracy"), _KNOWN),
    **dict.fromkeys(("bytes_stage", "held_out_examples", "peak_memory_bytes"), int),
    **dict.fromkeys(("stages", "stage_rounds", "resumed_after"), list),
    **dict.fromkeys(("seconds", "versions"), dict),
    "peak_memory_source": str,
}
_STAGE: Kinds = {
    "layers": int,
    "transition_gap": _NUMBER,
    "loss_start": _KNOWN,
    **dict.fromkeys(("assign", "group_sizes"), list),
    **dict.fromkeys(("anchor_coefficients", "similarity", "spectrum"), (list, type(None))),
}
_CLIENT: Kinds = {"name": str, "examples": int, "tokens": int, "groups": dict}
# What a finished run's record has besides, which a repeated command and comparisons tell.
_SUMMARY: Kinds = {
    **dict.fromkeys(("rounds", "clients", "bytes_up", "bytes_down", "train_flops"), int),
    **dict.fromkeys(("final_loss", "accuracy"), _KNOWN),
    "personal_models": bool,
    **dict.fromkeys(("personal", "energy"), (dict, type(None))),
}
_PERSONAL: Kinds = {
    **dict.fromkeys(("losses", "accuracies"), list),
    **dict.fromkeys(("loss", "accuracy", "loss_spread", "accuracy_spread"), _NUMBER),
}
# What lists and objects hold, by the name under which they stand.
_WITHIN: Kinds = {
    **dict.fromkeys(("clients", "assign", "group_sizes", "stage_rounds", "resumed_after"), int),
    **dict.fromkeys(("adapter_norms", "anchor_coefficients"), _KNOWN),
    **dict.fromkeys(("spectrum", "seconds", "losses", "accuracies"), _NUMBER),
    "groups": int,
    "similarity": list,
    "versions": str,
    "stages": dict,
}


@dataclass(frozen=True)
class Axis:
    """A running total, in a unit that suits it: `values[k]` after k rounds, from 0."""

    name: str
    unit: str
    values: Sequence[float]

    @property
    def label(self) -> str:
        """The axis's label."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Stage:
    """A stage: its record and the lines of its rounds so far."""

    number: int
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    first: int
    """Rounds of the run before it."""

    @property
    def layers(self) -> int:
        """Depth of its submodel."""
        return self.record["layers"]

    @property
    def is_full(self) -> bool:
        """Whether the submodel is the model itself."""
        return self.record["anchor_coefficients"] is None

    @property
    def is_fused(self) -> bool:
        """Whether any of its layers stands for several of the model's; else each is one of them, and others are absent."""
        return any(size > 1 for size in self.record["group_sizes"])

    @property
    def last(self) -> int:
        """Rounds of the run up to its end, or so far."""
        return self.first + len(self.rows)

    @property
    def groups(self) -> list[list[int]]:
        """The layers of each group."""
        assign = self.record["assign"]
        return [[layer for layer, group in enumerate(assign) if group == own] for own in range(self.layers)]


@dataclass(frozen=True)
class Evaluated:
    """A held-out measurement after `round` rounds; `stage` from 1, 0 before the first."""

    round: int
    stage: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Story:
    """A run as its folder tells it.

    Attributes:
      name: of the folder. config: `config.json`. record: `summary.json`, or `record.json` while unfinished.
      rows: the lines of `metrics.jsonl`, at least one. split: `split.json`.
      finished: whether all rounds are done. cut_off: whether the last line of `metrics.jsonl` is incomplete.
    """

    name: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    split: Mapping[str, Any]
    finished: bool
    cut_off: bool

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.rows)

    @property
    def planned(self) -> int:
        """Rounds of the whole run."""
        return sum(self.record["stage_rounds"])

    @property
    def depth(self) -> int:
        """Layers of the full model."""
        return len(self.record["stages"][0]["assign"])

    @property
    def objects(self) -> Mapping[str, str]:
        """What was given as objects in Python, by name."""
        return self.config.get("objects", {})

    @property
    def participants(self) -> int:
        """Clients in a round; one where it holds the examples of all."""
        return len(self.rows[0]["clients"])

    @property
    def personal(self) -> Mapping[str, Any] | None:
        """Held-out `losses` and `accuracies` of the clients' own models and their spreads, as of the last stage's end."""
        return self.record.get("personal")

    @property
    def is_personal(self) -> bool:
        """Whether every client has a model of its own, whose means are the held-out figures."""
        return bool(self.record.get("personal_models"))

    @property
    def lengthened_after(self) -> int:
        """The last round of the run as it was planned before it was lengthened; 0 if it was not."""
        return self.record.get("lengthened_after", 0)

    @property
    def resumes(self) -> list[int]:
        """After which rounds the run was resumed."""
        return [after for after in self.record["resumed_after"] if after <= self.rounds]

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages begun, in order."""
        rows = {number: list(part) for number, part in groupby(self.rows, key=lambda row: row["stage"])}
        firsts = accumulate((len(rows.get(number, ())) for number in range(len(self.record["stages"]))), initial=0)
        records = zip(self.record["stages"], firsts, strict=False)
        return [Stage(number + 1, record, rows.get(number, ()), first) for number, (record, first) in enumerate(records)]

    @property
    def is_grown(self) -> bool:
        """Whether any stage trains a submodel."""
        return any(not stage.is_full for stage in self.stages)

    @property
    def is_fused(self) -> bool:
        """Whether submodels are made of groups of layers, not of some of the layers as they are."""
        return any(stage.is_fused for stage in self.stages)

    def total(self, *names: str) -> list[float]:
        """The running total of these columns: [rounds + 1], from 0."""
        return list(accumulate((sum(row[name] for name in names) for row in self.rows), initial=0))

    @cached_property
    def axes(self) -> list[Axis]:
        """What learning is drawn against: rounds, seconds of training, bytes of messages, if any, and operations."""
        drawn = [Axis("rounds", "", list(range(self.rounds + 1)))]
        for name, columns, units in (
            ("training time", ("seconds",), SECONDS),
            ("messages up and down", ("bytes_up", "bytes_down"), BYTES),
            ("training operations", ("train_flops",), FLOPS),
        ):
            totals = self.total(*columns)
            if not totals[-1]:
                continue
            size, unit = unit_for(totals[-1], units)
            drawn.append(Axis(name, unit, [value / size for value in totals]))
        return drawn

    @cached_property
    def full_model(self) -> list[list[Evaluated]]:
        """Measurements of the full model, in pieces that a line may join: base and borders, and each stage at full depth."""
        points = []
        if self.record["base_loss"] is not None:
            points.append(Evaluated(0, 0, self.record["base_loss"], self.record["base_accuracy"]))
        for stage in self.stages:
            points += _within(stage, "held_out" if stage.is_full else "full")
            if stage.record.get("loss_full_after_transfer") is not None:
                accuracy = stage.record["accuracy_full_after_transfer"]
                points.append(Evaluated(stage.last, stage.number, stage.record["loss_full_after_transfer"], accuracy))
        return [points] if points else []

    @cached_property
    def submodels(self) -> list[list[Evaluated]]:
        """Measurements of the submodels, a piece for each stage that has any."""
        pieces = []
        for stage in self.stages:
            if stage.is_full:
                continue
            piece = [] if stage.record["loss_start"] is None else [_start(stage)]
            piece += _within(stage, "held_out")
            if stage.record.get("loss_end") is not None:
                piece.append(Evaluated(stage.last, stage.number, stage.record["loss_end"], None))
            pieces.append(piece)
        return [piece for piece in pieces if piece]

    @property
    def deepest(self) -> Stage:
        """The deepest stage that has rounds, the last one of several."""
        return max((stage for stage in self.stages if stage.rows), key=lambda stage: (stage.layers, stage.number))


def _start(stage: Stage) -> Evaluated:
    return Evaluated(stage.first, stage.number, stage.record["loss_start"], None)


def _within(stage: Stage, model: str) -> Iterator[Evaluated]:
    """What was evaluated between the stage's rounds: its own model (`held_out`) or the `full` one, where it was."""
    for row in stage.rows:
        if row.get(f"{model}_loss") is not None:
            yield Evaluated(row["round"], stage.number, row[f"{model}_loss"], row[f"{model}_accuracy"])


def check(story: Story, path: str) -> None:
    """Raise `InputError` unless the records have what the report reads and fit together.

    Args:
      path: of the folder, for the sentence.
    """
    clients: Any = story.split.get("clients")
    for row in story.rows:
        _check_kinds(row, _ROW, "metrics.jsonl", path)
    check_record(story.record, path)
    stages = story.record["stages"]
    for client in clients if isinstance(clients, list) else []:
        _check_kinds(client, _CLIENT, "a client of its split", path)
    rounds = [row["round"] for row in story.rows]
    problems = {
        "metrics.jsonl is not one line for each round": rounds != list(range(1, len(rounds) + 1)),
        "metrics.jsonl has rounds of stages that its record lacks": any(
            row["stage"] not in range(len(stages)) or row["layers"] != stages[row["stage"]]["layers"] for row in story.rows
        ),
        "its stages are of models of different depths": len({len(stage["assign"]) for stage in stages}) > 1,
        "metrics.jsonl names clients that split.json lacks": not isinstance(clients, list)
        or any(max(row["clients"], default=0) >= len(clients) for row in story.rows),
        "metrics.jsonl has norms for another number of layers": any(
            len(row["adapter_norms"]) != row["layers"] for row in story.rows
        ),
    }
    for problem, found in problems.items():
        if found:
            raise InputError(f"the records in {path} do not fit together ({problem}); run it again in another folder.")


def check_record(record: Mapping[str, Any], path: str, *, finished: bool = False) -> None:
    """Raise `InputError` unless a run's record, of a `finished` one its summary, has what is read of it.

    Args:
      path: of the folder, for the sentence.
    """
    _check_kinds(record, _RECORD, "its record", path)
    # An unfinished run's record lacks some of it.
    _check_kinds(record, _SUMMARY if finished else _there(_SUMMARY, record), "its record", path)
    if own := record.get("personal"):
        _check_kinds(own, _PERSONAL if finished else _there(_PERSONAL, own), "its record of clients' own models", path)
    for stage in record["stages"]:
        _check_kinds(stage, _STAGE, "a stage of its record", path)
    if finished and not record["stages"]:
        raise _unusable("its record", "stages", path)
    if not {"train", "compile", "build", "evaluate"} <= record["seconds"].keys():
        raise _unusable("its record", "seconds", path)


def _there(kinds: Kinds, record: Mapping[str, Any]) -> Kinds:
    return {name: kind for name, kind in kinds.items() if name in record}


def _check_kinds(record: Any, kinds: Kinds, where: str, path: str) -> None:
    if not isinstance(record, dict):
        raise _unusable(where, "object", path)
    for name, kind in kinds.items():
        value = record.get(name, ...)
        if not isinstance(value, kind):
            raise _unusable(where, name, path)
        held = value.values() if isinstance(value, dict) else value
        if name in _WITHIN and isinstance(value, dict | list) and not all(isinstance(one, _WITHIN[name]) for one in held):
            raise _unusable(where, name, path)


def _unusable(where: str, name: str, path: str) -> InputError:
    return InputError(
        f"the run in {path} was written by another version of devft or is damaged ({where} lacks a usable {name}); run it "
        "again in another folder to report on it."
    )

"""Opens a run's folder: whether it holds this run, where to resume, and whether anything is left to do."""

import dataclasses
from typing import Any

from devft_jax.config.effects import unread
from devft_jax.config.files import stored_config, to_plain
from devft_jax.config.identity import anchored, identity
from devft_jax.config.run_config import RunConfig
from devft_jax.data import FederatedData
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.reporting.units import counted
from devft_jax.storage.records import RunRecord
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.trainer import Trainer


def describe_object(item: Any) -> str:
    """How a given object is named in `config.json`: an algorithm's name, a growth's fields, otherwise the class."""
    if isinstance(item, Algorithm):
        return item.name
    shown = repr(item) if dataclasses.is_dataclass(item) and not isinstance(item, FederatedData) else ""
    # A representation with a memory address would differ in every process.
    return shown if shown and " at 0x" not in shown else type(item).__qualname__


def open_run(config: RunConfig, folder: RunFolder, objects: dict[str, str]) -> int | None:
    """The round to resume from, or None for a new run.

    Raises:
      InputError: the folder holds another run.
    """
    without_effect = unread(config, objects)
    mine = {name: value for name, value in identity(config).items() if name not in without_effect}
    # Also compared where only one of the two begins with an adapter.
    mine["adapter_digest"] = config.adapter_digest
    mine |= {"objects": objects} if objects else {}
    stored = folder.read_json("config.json")
    if stored is not None:
        seen_from_here = {**stored, **_anchored_paths(stored)}
        theirs = {name: value for name, value in seen_from_here.items() if name in mine or name == "objects"}
        different = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
        if different:
            name = different[0]
            where = "" if theirs.get(name) == stored.get(name) else ", from the folder where it was started,"
            raise InputError(
                f"out {folder.path} holds another run: its {name} is {stored.get(name)!r}, not "
                f"{mine.get(name)!r}; name another folder, or give the same options{where} to resume."
            )
    return folder.checkpoints.latest_round()


def _anchored_paths(stored: dict[str, Any]) -> dict[str, Any]:
    """The paths in a config.json, which are relative to the folder where its run was started, as seen from here."""
    paths: dict[str, Any] = {}
    for name in ("model", "data", "test_data", "probe_data"):
        value = stored.get(name)
        value = tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        if isinstance(value, str | tuple) and value:
            paths[name] = value
    plain = to_plain(anchored(dataclasses.replace(RunConfig(), **paths)))
    return {name: plain[name] for name in paths}


def refuse_lost_checkpoints(folder: RunFolder) -> None:
    """Raise `InputError` if a run has lost its checkpoints, because starting again would overwrite what it learned."""
    rounds = max((row.round for row in folder.metrics.read()), default=0)
    stored = folder.read_json("config.json")
    # A run that was stopped before its first checkpoint may have trained as many rounds.
    unsaved = rounds if stored is None else stored_config(stored, folder.path)[0].checkpoint_every
    if rounds > unsaved or (folder.path / "summary.json").exists():
        raise InputError(
            f"the run in {folder.path} has trained {counted(rounds, 'round')}, but no checkpoint is left to resume it "
            "from; restore its checkpoints, or name another folder to start again."
        )


def finished_summary(trainer: Trainer, folder: RunFolder, checkpoint: int | None) -> RunRecord | None:
    """The summary of a run that has reached the requested number of rounds or ended early; None for any other run.

    A run whose last checkpoint was removed is resumed from an earlier one.
    """
    # A record next to the summary means that the run continues.
    if (folder.path / "record.json").exists():
        return None
    summary = folder.read_summary()
    if summary is None:
        return None
    planned = sum(summary.stage_rounds)
    if summary.best is not None and summary.best.planned_rounds is not None:
        planned = summary.best.planned_rounds
    at_its_end = planned == sum(trainer.parts.stage_rounds) and checkpoint in (None, summary.rounds)
    return summary if at_its_end else None

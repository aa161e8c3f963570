"""A run: the trainer's rounds, written to a folder, that can be stopped at any point and goes on from there.

`train(config)` is what `devft run` calls. All that it computes lies in the trainer's `State`, written as one checkpoint
every few rounds, so a run that stops goes on from the last one and ends with the same adapter, bit for bit on the same
devices, chunk size and versions. While it goes on, `record.json` holds what `summary.json` will hold, as it stands after
the last round; `report.html` shows it where the run ends or is stopped, and `devft report` at any time.
"""

import contextlib
import dataclasses
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from devft_jax.config.effects import check_effects, unread
from devft_jax.config.files import stored_config, to_plain
from devft_jax.config.identity import anchored, identity, identity_hash
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import FederatedData, describe, split_record
from devft_jax.data.answer_ends import ends_of_data
from devft_jax.developmental import Growth
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.sampling import client_keys
from devft_jax.files import existing_folder
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.lora import as_low_rank
from devft_jax.reporting import Progress, split_chart
from devft_jax.reporting.report_file import write_report
from devft_jax.reporting.units import counted
from devft_jax.runtime.devices import usual_arithmetic
from devft_jax.runtime.stopping import Stopped, StopRequest
from devft_jax.storage import RUN, RunFolder
from devft_jax.storage.records import RoundRecord, RunRecord
from devft_jax.training.replay import StepReport, replay_client
from devft_jax.training.time_left import Course, seconds_left
from devft_jax.training.trainer import State, Trainer

# Clients up to which split.json is laid out to be read.
MOST_INDENTED = 1000


@dataclass(frozen=True)
class Run:
    """A finished or stopped run.

    Attributes:
      config: resolved. folder: where it lies.
      adapter: the global model at full depth; None where every client has its own, which `export` takes from the folder.
      summary: what `summary.json` holds; None while unfinished.
      stopped_by: the signal that stopped the run before its last round; None when it finished.
      history: the lines of `metrics.jsonl`, a round each.
    """

    config: RunConfig
    folder: Path
    adapter: Adapter | None
    summary: RunRecord | None
    stopped_by: int | None = None
    history: list[RoundRecord] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.stopped_by is None


def default_folder(config: RunConfig) -> Path:
    """runs/<growth>-<algorithm>-<hash of the configuration>."""
    return Path("runs") / f"{config.growth}-{config.algorithm}-{identity_hash(config)}".replace(":", ".")


def _course(trainer: Trainer, state: State) -> Course:
    """The run's stages and evaluations, from its first round on; depths that are not known are taken for the last one's."""
    known = [stage.layers for stage in state.totals.stages]
    planned = list(trainer.depths or ())[len(known) :] or known[-1:] * len(trainer.stage_rounds)
    config, clients, algorithm = trainer.config, len(trainer.data.clients), trainer.algorithm

    def models(rounds: int, last: bool) -> float:
        # Clients that have trained, if each round draws them anew; all others are one model.
        own = 1 + clients * (1 - (1 - min(1.0, config.clients_per_round / clients)) ** rounds)
        if algorithm.has_global_model:
            return 1 + own * (last and algorithm.consensus is not None)
        return own

    model = trainer.model.config
    of_layer = sum(math.prod(model.projection_shape(name)) for name in PROJECTIONS)
    return Course(
        rounds=trainer.stage_rounds,
        depths=[*known, *planned][: len(trainer.stage_rounds)],
        layers=model.layers,
        head=model.vocabulary * model.width / of_layer,
        every=config.evaluate_every,
        full=config.evaluate_full,
        models=models,
    )


def _advance(trainer: Trainer, state: State, history: list[RoundRecord]) -> bool:
    """Bring the state to where a round can run, crossing a stage border if one is due; False at the run's end."""
    if state.stage >= 0:
        if state.rounds_in_stage < trainer.stage_rounds[state.stage]:
            return True
        trainer.end_stage(state)
    return trainer.begin_stage(state, history)


def _round(trainer: Trainer, state: State, history: list[RoundRecord]) -> RoundRecord:
    """One round, put into the history, after which the stage may be over early."""
    row = trainer.round(state)
    history.append(row)
    trainer.shorten_stage(state, history)
    return row


def _work(
    trainer: Trainer,
    state: State,
    folder: RunFolder,
    history: list[RoundRecord],
    stop: StopRequest,
) -> bool:
    """Rounds until the run ends (True) or is asked to stop (False)."""
    config, progress = trainer.config, trainer.progress
    total, stages = sum(trainer.stage_rounds), len(trainer.stage_rounds)
    saving, began_at = 0.0, state.round
    saved = state.round
    while _advance(trainer, state, history):
        if stop.signal is not None:
            if saved < state.round:
                trainer.save(folder, state)
            return False
        # From here on something would be lost.
        stop.doing = f"round {state.round + 1}"
        if not state.rounds_in_stage:
            folder.write_under_way(trainer.summary(state))
        row = _round(trainer, state, history)
        last_of_stage = state.rounds_in_stage == trainer.stage_rounds[state.stage]
        due = config.evaluate_every and state.round % config.evaluate_every == 0
        if due and not last_of_stage:
            _evaluate(trainer, state, row)
        began = time.perf_counter()
        folder.metrics.append(row)
        folder.write_under_way(trainer.summary(state))
        rounds = [each.seconds for each in history if each.stage == state.stage]
        others = saving / max(1, state.round - 1 - began_at)
        left = seconds_left(_course(trainer, state), state.totals, rounds, state.round, others)
        progress.round(row, total, stages, left)
        stopping = stop.signal is not None and state.round < total
        # A stage's last round is always saved: from it the stage can be exported.
        if state.round % config.checkpoint_every == 0 or last_of_stage or stopping:
            trainer.save(folder, state)
            saved = state.round
        saving += time.perf_counter() - began
        if stopping:
            return False
        stop.doing = "the change of stages" if last_of_stage else "the round"
    return True


def _evaluate(trainer: Trainer, state: State, row: RoundRecord) -> None:
    """Add to a round within a stage what held-out data says of its model and, where that is asked for, of the full one."""
    judged = trainer.judge_stage(state)
    if judged is not None:
        row.held_out_loss, row.held_out_accuracy = judged.loss, judged.accuracy
    if trainer.config.evaluate_full:
        full = judged if state.layer_map.is_identity else trainer.judge_transferred(state)
        if full is not None:
            row.full_loss, row.full_accuracy = full.loss, full.accuracy


def _describe_object(item: Any) -> str:
    """What tells one given object from another in `config.json`: an algorithm's name, a growth's fields, else the class."""
    if isinstance(item, Algorithm):
        return item.name
    shown = repr(item) if dataclasses.is_dataclass(item) and not isinstance(item, FederatedData) else ""
    # A representation with an address in it would differ in every process.
    return shown if shown and " at 0x" not in shown else type(item).__qualname__


def _open_run(config: RunConfig, folder: RunFolder, objects: dict[str, str]) -> int | None:
    """The round to resume from, or None for a new run.

    Raises:
      InputError: the folder holds another run.
    """
    without_effect = unread(config, objects)
    mine = {name: value for name, value in identity(config).items() if name not in without_effect}
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
    """The files and folders of a config.json that names them from where its run was started, as they are from here."""
    paths: dict[str, Any] = {}
    for name in ("model", "data", "test_data", "probe_data"):
        value = stored.get(name)
        value = tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        if isinstance(value, str | tuple) and value:
            paths[name] = value
    plain = to_plain(anchored(dataclasses.replace(RunConfig(), **paths)))
    return {name: plain[name] for name in paths}


def _refuse_lost_checkpoints(folder: RunFolder) -> None:
    """Raise `InputError` where a run without a checkpoint had one, so that beginning anew would lose what it learned."""
    rounds = max((row.round for row in folder.metrics.read()), default=0)
    every = (folder.read_json("config.json") or {}).get("checkpoint_every")
    # As many a run may have trained that was stopped before its first checkpoint.
    unsaved = every if type(every) is int else rounds
    if rounds > unsaved or (folder.path / "summary.json").exists():
        raise InputError(
            f"the run in {folder.path} has trained {counted(rounds, 'round')}, but no checkpoint that it could go on from "
            "is left; restore its checkpoints, or name another folder to begin anew."
        )


def _final_adapter(trainer: Trainer, state: State) -> Adapter | None:
    """The adapter of all clients after the last stage has ended; None where each only has its own."""
    algorithm = trainer.algorithm
    return (
        algorithm.global_model(state.full, state.bank.view(full=True).of_trained()) if algorithm.has_global_model else None
    )


def _finish(trainer: Trainer, state: State, folder: RunFolder) -> RunRecord:
    """Write the adapter, where there is a low-rank one for all clients, and the summary, which takes the record's place."""
    adapter = _final_adapter(trainer, state)
    if not trainer.algorithm.low_rank:
        trainer.progress.say(
            f"{trainer.algorithm.name} has no adapter that PEFT loads: what it learned is in the checkpoint"
        )
    elif adapter is not None:
        _write_adapter(trainer, folder, adapter)
    summary = trainer.summary(state)
    folder.write_summary(summary)
    return summary


def _write_adapter(trainer: Trainer, folder: RunFolder, adapter: Adapter) -> None:
    ends = ends_of_data(trainer.data, trainer.model)
    with folder.replacing("adapter") as exported:
        export_peft(as_low_rank(adapter), exported, base_model=trainer.model.path, answer_ends=ends)


@usual_arithmetic()
def train(
    config: RunConfig,
    *,
    model: Model | None = None,
    data: FederatedData | None = None,
    algorithm: Algorithm | None = None,
    growth: Growth | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a federated fine-tuning, or resume the one that its folder holds.

    Args:
      config: what to run; `config.out` is the folder, by default one named after the configuration.
      model, data, algorithm, growth: objects that take the place of what the configuration names.
      progress: where progress is told; standard error by default.

    Returns:
      The run; `finished` is False when Ctrl-C or SIGTERM stopped it after a round, with a checkpoint from which the same
      call goes on.

    Raises:
      InputError: the request cannot work. RunError: the run could not go on; its checkpoints stay.
    """
    progress = progress or Progress()
    stop = StopRequest(progress.say, may_exit=True)
    try:
        with stop.listening():
            return _trained(config, stop, progress, model=model, data=data, algorithm=algorithm, growth=growth)
    except Stopped:
        progress.say("stopped before a round was trained: the same command goes on from there.")
        return Run(config, Path(config.out or default_folder(config)).absolute(), None, None, stop.signal)


def _trained(config: RunConfig, stop: StopRequest, progress: Progress, **given: Any) -> Run:
    """`train`, that raises `Stopped` where it is asked to stop before it has trained anything."""
    validate(config)
    objects = {name: _describe_object(item) for name, item in given.items() if item is not None}
    check_effects(config, objects)
    config = anchored(dataclasses.replace(config, out=config.out or str(default_folder(config))))
    out = str(config.out)
    with RunFolder(out, RUN) as folder, contextlib.ExitStack() as at_end:
        trainer = Trainer(config, **given, progress=progress, scratch=folder.path)
        at_end.callback(trainer.programs.close)
        checkpoint = _open_run(config, folder, objects)
        for empty in folder.checkpoints.empty_rounds():
            progress.warn(f"the checkpoint of round {empty} in {folder.path} is empty and passed over.")
        summary = _finished_summary(trainer, folder, checkpoint)
        if summary is not None:
            return _untouched(trainer, folder, checkpoint, summary)
        if checkpoint is None:
            _refuse_lost_checkpoints(folder)
        progress.say(describe(trainer.data))
        described = {**to_plain(config), **({"objects": objects} if objects else {})}
        if checkpoint is None:
            # What is wrong with a first state is found before anything is written.
            state = trainer.begin()
            folder.write_json("config.json", described)
            history = folder.metrics.cut(0)
            _write_split(trainer, folder, anew=True)
            _say_base(progress, state)
        else:
            state = trainer.resume(folder, checkpoint)
            folder.write_json("config.json", described)
            history = folder.metrics.cut(checkpoint)
            _write_split(trainer, folder, anew=False)
            folder.write_under_way(trainer.summary(state))
            progress.say(f"resuming {folder.path} after round {checkpoint}")
        finished = _work(trainer, state, folder, history, stop)
        if not finished:
            if not state.round:
                raise Stopped
            folder.write_under_way(dataclasses.replace(trainer.summary(state), stopped_by=stop.signal))
            _report(progress, folder)
            progress.say(
                f"stopped after round {state.round} of {sum(trainer.stage_rounds)}; saved in "
                f"{folder.path}: the same command goes on from there."
            )
            return Run(config, folder.path, trainer.global_adapter(state), None, stop.signal, history)
        stop.doing = "the run"
        summary = _finish(trainer, state, folder)
        reported = _report(progress, folder)
        _say_summary(progress, summary)
        shown = ", report.html shows it" if reported else ""
        progress.say(f"finished {counted(summary.rounds, 'round')}; everything is in {folder.path}{shown}")
        return Run(config, folder.path, _final_adapter(trainer, state), summary, None, history)


def _write_split(trainer: Trainer, folder: RunFolder, *, anew: bool) -> None:
    """Write split.json and split.svg; of a run that goes on only what is not there."""
    there = {name for name in ("split.json", "split.svg") if _holds_something(folder.path / name)}
    if not anew and len(there) == 2:
        return
    split = split_record(trainer.data)
    if anew or "split.json" not in there:
        folder.write_json("split.json", split.to_plain(), indented=len(split.clients) <= MOST_INDENTED)
    folder.write_text("split.svg", split_chart(split))


def _finished_summary(trainer: Trainer, folder: RunFolder, checkpoint: int | None) -> RunRecord | None:
    """The summary of a run that has come to the end that is asked for; None of any other.

    One whose last checkpoint was removed, and an earlier one kept, is to go on from there.
    """
    # A record beside the summary is that of a run that goes on.
    if (folder.path / "record.json").exists():
        return None
    summary = folder.read_summary()
    if summary is None:
        return None
    at_its_end = sum(summary.stage_rounds) == sum(trainer.stage_rounds) and checkpoint in (None, summary.rounds)
    return summary if at_its_end else None


def _untouched(trainer: Trainer, folder: RunFolder, checkpoint: int | None, summary: RunRecord) -> Run:
    """A finished run as it lies there; only what is missing of what it wrote is written again."""
    progress, exported = trainer.progress, folder.path / "adapter"
    adapter = None
    if checkpoint is not None:
        adapter = trainer.global_adapter(trainer.resume(folder, checkpoint))
        if adapter is not None and trainer.algorithm.low_rank and not _is_whole(exported):
            _write_adapter(trainer, folder, adapter)
    elif _is_whole(exported):
        adapter = import_peft(exported, trainer.model.config)
    history = folder.metrics.read()
    _write_split(trainer, folder, anew=False)
    if not _holds_something(folder.path / "report.html"):
        _report(progress, folder)
    _say_summary(progress, summary)
    progress.say(
        f"{folder.path} holds this run, finished after {counted(summary.rounds, 'round')}: nothing is left to do; "
        "a larger --rounds lengthens it, another --out begins anew"
    )
    return Run(trainer.config, folder.path, adapter, summary, None, history)


def _is_whole(exported: Path) -> bool:
    """Whether an adapter's folder has the files of one, and something in them."""
    return all(_holds_something(exported / name) for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE))


def _holds_something(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _report(progress: Progress, folder: RunFolder) -> bool:
    """Whether report.html could be written; the run is saved by then, so that one that cannot is no reason to fail it."""
    try:
        write_report(folder.path)
    except InputError as error:
        progress.warn(f"{error} The run itself is saved.")
        return False
    return True


def _say_base(progress: Progress, state: State) -> None:
    if state.totals.base_loss is None:
        progress.warn("no held-out data: give test_data or test_fraction to see what is learned.")
    else:
        progress.say(
            f"untuned base: held-out loss {state.totals.base_loss:.4f}, exact match {state.totals.base_accuracy:.1%}"
        )


def _say_summary(progress: Progress, summary: RunRecord) -> None:
    if summary.final_loss is not None:
        progress.say(
            f"held-out loss {summary.base_loss:.4f} -> {summary.final_loss:.4f}, "
            f"exact match {summary.base_accuracy:.1%} -> {summary.accuracy:.1%}"
        )
    if summary.personal is not None:
        own = summary.personal
        if summary.personal_models:
            whose = f"means over {summary.clients} clients' own models"
        else:
            whose = f"the {summary.clients} clients' own models: on average {own.loss:.4f} and {own.accuracy:.1%}"
        progress.say(f"  {whose}; standard deviations over clients {own.loss_spread:.4f} and {own.accuracy_spread:.1%}")


@dataclass(frozen=True)
class Replay:
    """A client's round, trained again: its steps, up to the first that is not finite. Stage and round count from 1.

    `took_part` tells whether the client was one of the round's participants; of another it is what it would have done.
    """

    client: str
    stage: int
    round: int
    steps: list[StepReport]
    took_part: bool

    @property
    def first_break(self) -> str | None:
        """Where the first NaN or infinity appeared, in one sentence; None where all is finite."""
        last = self.steps[-1]
        if not last.nonfinite:
            return None
        place = f"client '{self.client}', stage {self.stage}, round {self.round}, step {last.step}"
        return f"{place}: not finite first in {', '.join(last.nonfinite)}"


@usual_arithmetic()
def replay(path: str | Path, *, client: str, round: int, progress: Progress | None = None) -> Replay:
    """Replay one client of one round of a run, step by step, from the checkpoint before it.

    Rounds between that checkpoint (or the run's start) and the asked one are run again; nothing in the folder changes.

    Args:
      path: the run's folder. client: its name, as the split's table shows it. round: from 1.

    Raises:
      InputError: the folder holds no run, or the run no such client or round.
    """
    progress = progress or Progress()
    with RunFolder(existing_folder(path, "name one that `devft run` wrote")).reading() as folder:
        stored = folder.read_json("config.json")
        if stored is None:
            raise InputError(f"{folder.path} holds no run; name a folder that `devft run` wrote.")
        config, objects = stored_config(stored, folder.path)
        if objects:
            raise InputError(
                f"the run in {folder.path} was given its {', '.join(objects)} as objects in "
                "Python and cannot be replayed from its folder alone."
            )
        # No later stage is reached for which it would pay.
        config = dataclasses.replace(config, compile_ahead="off")
        scratch = folder.path if os.access(folder.path, os.W_OK) else None
        trainer = Trainer(config, progress=progress, scratch=scratch)
        names = [item.name for item in trainer.data.clients]
        total = sum(trainer.stage_rounds)
        if client not in names:
            raise InputError(f"client '{client}' is not one of the run's: {', '.join(names[:8])}, ...")
        if not 1 <= round <= total:
            raise InputError(f"round {round} is outside 1 to {total}.")
        latest = folder.checkpoints.latest_round()
        lengthened = 0 if latest is None else folder.checkpoints.read_record(latest).totals.lengthened_after
        if round <= lengthened:
            raise InputError(
                f"round {round} belongs to the run as it was before it was lengthened after round {lengthened}; "
                "only later rounds can be replayed."
            )
        checkpoint = folder.checkpoints.before(round)
        state = trainer.begin() if checkpoint is None else trainer.resume(folder, checkpoint)
        history = [row for row in folder.metrics.read() if row.round <= state.round]
    while _advance(trainer, state, history) and state.round < round - 1:
        _round(trainer, state, history)
    member, batches = trainer.prepare_client(state, names.index(client))
    keys = client_keys(trainer.config.seed, np.uint32(state.round), np.array([member.id], np.uint32))
    steps = replay_client(
        trainer.training,
        base=trainer.stage_base,
        server=state.server,
        row=jax.tree.map(lambda leaf: leaf[0], state.bank.take(np.array([member.position]))),
        batches=batches,
        lr=trainer.learning_rate(state),
        key=keys[0],
        train_rows=np.asarray(state.layer_map.train),
        mesh=trainer.cohort.mesh,
    )
    took_part = member.position in trainer.rounds.members(state.round).positions
    return Replay(client, state.stage + 1, round, steps, bool(took_part))

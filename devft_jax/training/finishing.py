"""The end of a run: writes the split, the adapter and the report, and prints the results."""

from pathlib import Path

from devft_jax.data import split_record
from devft_jax.data.answer_ends import ends_of_data
from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.lora import as_low_rank
from devft_jax.reporting import Progress, split_chart
from devft_jax.reporting.report_file import write_report
from devft_jax.storage.records import RunRecord
from devft_jax.storage.result_records import BestRecord
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.state import State
from devft_jax.training.trainer import Trainer

BEST_ADAPTER = "adapter-best"
"""Name of the folder of the best round's adapter."""

# Up to this many clients split.json is indented.
MOST_INDENTED = 1000


def finish(trainer: Trainer, state: State, folder: RunFolder) -> RunRecord:
    """Write the adapter, if all clients share a low-rank one, and the summary, which replaces the run's record."""
    adapter, algorithm = trainer.global_adapter(state, ended=True), trainer.parts.algorithm
    if not algorithm.low_rank:
        trainer.parts.progress.say(f"{algorithm.name} has no adapter in PEFT's format: what it learned is in the checkpoint")
    elif adapter is not None:
        write_adapter(trainer, folder, adapter)
    best = state.totals.best
    if best is not None:
        write_best(trainer, folder, best, adapter if best.round == state.round else None)
    summary = trainer.summary(state)
    folder.write_summary(summary)
    return summary


def write_best(trainer: Trainer, folder: RunFolder, best: BestRecord, adapter: Adapter | None) -> None:
    """Write the best round's adapter, if all clients share a low-rank one.

    Args:
      trainer: the run's trainer.
      folder: the run's folder.
      best: the best round.
      adapter: its adapter if it is the last round; None to read it from its checkpoint.
    """
    if not trainer.parts.algorithm.low_rank:
        return
    if adapter is None:
        adapter = trainer.global_adapter(trainer.state_at(folder, best.round))
    if adapter is not None:
        write_adapter(trainer, folder, adapter, BEST_ADAPTER)


def write_adapter(trainer: Trainer, folder: RunFolder, adapter: Adapter, name: str = "adapter") -> None:
    """Write an adapter in PEFT's format into a subfolder, with the tokens that end answers."""
    if not folder.writes:
        return
    ends = ends_of_data(trainer.parts.data, trainer.parts.model)
    with folder.replacing(name) as exported:
        export_peft(as_low_rank(adapter), exported, base_model=trainer.parts.model.path, answer_ends=ends)


def write_split(trainer: Trainer, folder: RunFolder, *, anew: bool) -> None:
    """Write split.json and split.svg; for a resumed run only the files that are missing."""
    if not folder.writes:
        return
    there = {name for name in ("split.json", "split.svg") if holds_something(folder.path / name)}
    if not anew and len(there) == 2:
        return
    split = split_record(trainer.parts.data)
    if anew or "split.json" not in there:
        folder.write_json("split.json", split.to_plain(), indented=len(split.clients) <= MOST_INDENTED)
    folder.write_text("split.svg", split_chart(split))


def is_whole(exported: Path) -> bool:
    """Whether an adapter's folder has the files of an adapter, and none of them is empty."""
    return all(holds_something(exported / name) for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE))


def holds_something(file: Path) -> bool:
    """Whether there is a file of this name that is not empty."""
    return file.is_file() and file.stat().st_size > 0


def report(progress: Progress, folder: RunFolder) -> bool:
    """Write report.html; returns whether it worked. The run is already saved, so a failure here does not fail the run."""
    try:
        write_report(folder.path)
    except InputError as error:
        progress.warn(f"{error} The run itself is saved.")
        return False
    return True


def say_base(progress: Progress, state: State) -> None:
    """Print the held-out result of the untuned base."""
    if state.totals.base_loss is None:
        progress.warn("no held-out data: give test_data or test_fraction to measure what is learned.")
    else:
        progress.say(
            f"untuned base: held-out loss {state.totals.base_loss:.4f}, exact match {state.totals.base_accuracy:.1%}"
        )
        if state.totals.start_loss is not None:
            progress.say(
                f"with the given adapter: held-out loss {state.totals.start_loss:.4f}, exact match "
                f"{state.totals.start_accuracy:.1%}"
            )


def say_summary(progress: Progress, summary: RunRecord) -> None:
    """Print the held-out result of the run."""
    if summary.best is not None:
        progress.say(f"best round {summary.best.round}: held-out loss {summary.best.loss:.4f}; kept as --round best")
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

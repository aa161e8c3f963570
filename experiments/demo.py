"""The demo: DevFT on the bundled model, compared with FedIT and with two controls.

    python experiments/demo.py --out runs/demo

Every method sees the same non-IID clients, cohorts and number of examples:

    local-only                 every client trains alone (lower control)
    FedIT                      federated, always the full model
    DevFT                      federated, the model grows
    FedIT at DevFT's bytes     FedIT for the rounds in which it sends as many bytes as DevFT
    central                    all examples in one place (upper control)

The options are those of the preset `demo`; central training has its own learning rate. The same command resumes a stopped
demo. Each run is a folder for `devft generate`, `export` and `replay`.
"""

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devft_jax.commands.jax_setup import configure_jax
from devft_jax.comparing.budgets import Costs, nearest
from devft_jax.comparing.runs import full_model_curve
from devft_jax.config.presets import preset
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.files import write_atomically
from devft_jax.reporting.chart import Level, Line, line_chart
from devft_jax.reporting.progress import Progress, readable_bytes
from devft_jax.reporting.report_file import read_story
from devft_jax.reporting.table import table
from devft_jax.reporting.waiting import readable_seconds
from devft_jax.storage.ownership import RUN, Kind, claim
from devft_jax.storage.records import RunRecord
from devft_jax.training.run import Run, train

CENTRAL_LEARNING_RATE = 2e-3
"""Learning rate of central training. Its noisy steps are not averaged over clients, and at the preset's rate it ends at a
higher loss than FedIT."""

LOCAL, FEDIT, DEVFT, EQUAL_BYTES, CENTRAL = "local-only", "FedIT", "DevFT", "FedIT at DevFT's bytes", "central"


@dataclass(frozen=True)
class Method:
    """One run of the demo.

    Attributes:
      what: a description in one line.
      folder: name of its folder within the demo's.
      config: its configuration.
    """

    what: str
    folder: str
    config: RunConfig


def methods(config: RunConfig) -> dict[str, Method]:
    """The demo's runs by name, in the order in which they are run and shown; `config` is DevFT's."""
    full = dataclasses.replace(config, growth="end-to-end")
    # Evaluating twenty clients' models takes twenty times as long as one, so it is done at the end only.
    local = dataclasses.replace(full, algorithm="local-only", evaluate_every=0)
    fewer = dataclasses.replace(full, rounds=equal_byte_rounds(config))
    central = dataclasses.replace(full, algorithm="central", learning_rate=(CENTRAL_LEARNING_RATE,))
    return {
        LOCAL: Method("every client trains alone and keeps what it learns", "local-only", local),
        FEDIT: Method("clients train the full model's adapter and the server averages it", "fedit", full),
        DEVFT: Method("the same on a model that grows from a few fused layers to all", "devft", config),
        EQUAL_BYTES: Method(f"FedIT for the {fewer.rounds} rounds that send what DevFT sends", "fedit-equal-bytes", fewer),
        CENTRAL: Method("the examples of all clients in one place", "central", central),
    }


def _holds_runs(folder: Path) -> bool:
    """Whether the folder contains only runs of the demo's methods and its results."""
    found = {entry.name for entry in folder.iterdir()}
    names = found & DEMO.folders.keys()
    if not names or not found <= {*DEMO.folders, *DEMO.files}:
        return False
    try:
        # A run that was killed early leaves an empty folder, which `claim` accepts.
        for name in names:
            claim(folder / name, RUN)
    except InputError:
        return False
    return True


DEMO = Kind(
    "demo",
    _holds_runs,
    frozenset({"demo.svg", "demo.json"}),
    dict.fromkeys(("local-only", "fedit", "devft", "fedit-equal-bytes", "central")),
)


def equal_byte_rounds(config: RunConfig) -> int:
    """Rounds after which FedIT's bytes are nearest to those of the whole DevFT run `config`."""
    full = dataclasses.replace(config, growth="end-to-end")
    return nearest(Costs(full).by_rounds("bytes_up", config.rounds), Costs(config).of("bytes_up"))


def result_rows(summaries: Mapping[str, RunRecord]) -> list[list[str]]:
    """The table of results, with the untuned base first."""
    heads = ["", "rounds", "held-out loss", "exact match", "sent up", "stages down", "FLOPs", "training", "compiling"]
    base = next(iter(summaries.values()))
    rows = [heads, ["untuned base", "", f"{base.base_loss:.3f}", f"{base.base_accuracy:.1%}", *[""] * 5]]
    for name, summary in summaries.items():
        seconds = summary.seconds
        rows.append(
            [
                name,
                str(summary.rounds),
                f"{summary.final_loss:.3f}",
                f"{summary.accuracy:.1%}",
                readable_bytes(summary.bytes_up),
                readable_bytes(summary.bytes_stage),
                f"{summary.train_flops / 1e12:.2f} T",
                readable_seconds(seconds.train),
                readable_seconds(seconds.compile),
            ]
        )
    return rows


def stage_rows(summary: RunRecord) -> list[list[str]]:
    """The table of held-out losses by stage."""
    rows = [["layers", "groups", "loss at start", "at end", "full model after transfer"]]
    for stage in summary.stages:
        grows = stage.layers < len(stage.assign)
        rows.append(
            [
                str(stage.layers),
                ",".join(map(str, stage.group_sizes)) if grows else "each layer",
                f"{stage.loss_start:.3f}",
                f"{stage.loss_end:.3f}",
                f"{stage.loss_full_after_transfer:.3f}",
            ]
        )
    return rows


def known(figure: float | None) -> float:
    """A value that is not None, since every finished run with held-out data has it."""
    assert figure is not None
    return figure


def comparison(first: str, second: str, summaries: Mapping[str, RunRecord]) -> str:
    """Which of two methods ends at the lower held-out loss, and whether exact match agrees."""
    names = {FEDIT: "FedIT", EQUAL_BYTES: "FedIT"}
    better, worse = sorted((first, second), key=lambda name: known(summaries[name].final_loss))
    low, high = (f"{summaries[name].final_loss:.3f}" for name in (better, worse))
    if low == high:
        return f"{names.get(first, first)} and {names.get(second, second)} end at the same held-out loss, {low}"
    said = f"{names.get(better, better)} ends at a lower held-out loss than {names.get(worse, worse)}, {low} against {high}"
    more, less = known(summaries[better].accuracy), known(summaries[worse].accuracy)
    return f"{said}, {'with' if more >= less else 'but with'} {more:.1%} against {less:.1%} exact match"


def verdict(summaries: Mapping[str, RunRecord]) -> list[str]:
    """The conclusions in sentences, with the caveat that one seed does not show the spread over seeds."""
    devft, fedit = summaries[DEVFT], summaries[FEDIT]
    bytes_share, flops_share = devft.bytes_up / fedit.bytes_up, devft.train_flops / fedit.train_flops
    base, ceiling = known(devft.base_loss), known(summaries[CENTRAL].final_loss)
    sentences = [
        f"At equal rounds {comparison(FEDIT, DEVFT, summaries)}; DevFT sends {bytes_share:.0%} of FedIT's bytes and "
        f"computes {flops_share:.0%} of its FLOPs.",
        f"At equal bytes {comparison(EQUAL_BYTES, DEVFT, summaries)}.",
    ]
    if devft.bytes_stage:
        sentences.append(
            f"These are bytes of adapters, up. DevFT's fused submodels are {readable_bytes(devft.bytes_stage)} more, "
            "down, unless clients keep the base model and fuse it themselves."
        )
    if ceiling < base:
        reached = {name: (base - known(summaries[name].final_loss)) / (base - ceiling) for name in (LOCAL, FEDIT, DEVFT)}
        shown = ", ".join(f"{name} {share:.0%}" for name, share in reached.items())
        sentences.append(f"Of the decrease in loss that central training reaches, they reach: {shown}.")
        if max(reached.values()) > 1:
            sentences.append("At this learning rate central training is not an upper bound.")
    else:
        sentences.append("Central training does not improve on the untuned base here.")
    sentences.append("This is one seed; the spread over seeds is not known.")
    return sentences


def loss_by_megabytes(run: Run) -> list[tuple[float, float]]:
    """Held-out loss of the full model against megabytes sent up, from the untuned base on."""
    return [(point.bytes_up / 1e6, point.loss) for point in full_model_curve(read_story(run.folder))]


def summaries_of(runs: Mapping[str, Run]) -> dict[str, RunRecord]:
    """The summaries of the finished runs, by name."""
    return {name: run.summary for name, run in runs.items() if run.summary is not None}


def picture(runs: Mapping[str, Run]) -> str:
    """A chart of loss against bytes for the methods that send, with levels for those that send nothing.

    The points are not joined, because nothing was measured between them.
    """
    summaries = summaries_of(runs)
    levels = [Level("untuned base", known(summaries[FEDIT].base_loss))]
    levels += [Level(name, known(summaries[name].final_loss)) for name in (LOCAL, CENTRAL)]
    lines = [Line(name, loss_by_megabytes(runs[name]), joined=False) for name in (DEVFT, FEDIT, EQUAL_BYTES)]
    return line_chart(
        "Held-out loss of the full model, demo", "sent up by all clients (MB)", "nats per token", lines, levels=levels
    )


def main() -> None:
    """Run the methods, print the results and write the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the runs")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the split, the cohorts, the data order and the initialisation"
    )
    options = parser.parse_args()
    try:
        claim(options.out, DEMO)
    except InputError as error:
        parser.error(str(error))
    out = options.out
    began = time.perf_counter()
    configure_jax()
    progress = Progress()
    config = dataclasses.replace(preset("demo"), seed=options.seed)
    runs: dict[str, Run] = {}
    for name, method in methods(config).items():
        progress.say(f"\n== {name}: {method.what} ==")
        runs[name] = train(dataclasses.replace(method.config, out=str(out / method.folder)), progress=progress)
        if not runs[name].finished:
            raise SystemExit(128 + (runs[name].stopped_by or 0))
    summaries = summaries_of(runs)
    write_atomically(out / "demo.svg", picture(runs))
    plain = {name: summary.to_plain() for name, summary in summaries.items()}
    write_atomically(out / "demo.json", json.dumps(plain, indent=1) + "\n")
    local, own = summaries[LOCAL], summaries[LOCAL].personal
    assert own is not None
    print(f"\n{local.held_out_examples} held-out items, {local.clients} non-IID clients, seed {options.seed}\n")
    print(*table(result_rows(summaries)), sep="\n")
    print(
        f"\nlocal-only is the mean over the {local.clients} clients' own models; standard deviations over clients are "
        f"{own.loss_spread:.3f} in loss and {own.accuracy_spread:.1%} in exact match"
    )
    print("\nDevFT, stage by stage (held-out loss)\n")
    print(*table(stage_rows(summaries[DEVFT])), sep="\n")
    print("\n" + "\n".join(verdict(summaries)))
    seconds = readable_seconds(time.perf_counter() - began)
    print(f"\n{seconds} in all; picture {out / 'demo.svg'}, details {out / 'demo.json'}")
    reports = [str(run.folder / "report.html") for run in runs.values() if (run.folder / "report.html").exists()]
    if reports:
        print("reports: " + "  ".join(reports))
    print(f"generate answers: {own_command()} generate {shlex.quote(str(out / 'fedit'))} --compare")


def own_command() -> str:
    """The `devft` of this Python as a shell command: its name if the shell finds it, else its path."""
    beside = Path(sys.executable).with_name("devft")
    found = shutil.which("devft")
    if not beside.exists() or (found is not None and Path(found).samefile(beside)):
        return "devft" if found else f"{shlex.quote(sys.executable)} -m devft_jax"
    near = os.path.relpath(beside)
    return shlex.quote(str(beside) if near.startswith("..") else near)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None

"""The measurements as Markdown tables and charts."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from measure import Median, fit_depth, median, paired_ratio

from devft_jax.comparing.statistics import Estimate
from devft_jax.reporting.chart import Frame, Line, plot_lines

Rounds = list[dict[str, float]]

UNITS = ("cpu", "wall")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def column(rounds: Rounds, name: str) -> list[float]:
    """One measurement of every round."""
    return [row[name] for row in rounds]


def shown(found: Median, digits: int = 2) -> str:
    """The text of a median and its interval."""
    interval = "" if found.low is None or found.high is None else f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{found.value:.{digits}f}{interval}"


def shown_mean(found: Estimate, times: float = 1.0, digits: int = 3) -> str:
    """The text of a mean plus or minus half the width of its interval."""
    half = "" if found.high is None else f" ± {times * (found.high - found.mean):.{digits}f}"
    return f"{times * found.mean:.{digits}f}{half}"


def timed(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The programs of a work that passed the gate and were timed."""
    return {name: program for name, program in result["programs"].items() if program.get("rounds")}


def gate_table(result: dict[str, Any]) -> str:
    """The difference of every program's aggregated adapters from the reference's after one round."""
    rows = [
        [
            name,
            f"{program['difference']:.1e}",
            f"{program['relative']:.1e}",
            f"{program['loss']:.6f}",
            "yes" if program["passed"] else "**no**",
        ]
        for name, program in result["programs"].items()
    ]
    work = result["work"]
    text = (
        f"{work['clients']} clients x {work['steps']} steps x {work['batch']} examples, {work['tokens']:,} tokens a round. "
        f"Gate: the largest difference of an element of the aggregated adapters from those of {result['reference']} after "
        f"one round, at most {result['tolerance']:g}."
    )
    return f"{text}\n\n" + markdown(["program", "largest difference", "norm over the update's", "mean loss", "passed"], rows)


def round_table(result: dict[str, Any]) -> str:
    """Seconds, memory and rates of every program."""
    work = result["work"]
    steps = work["clients"] * work["steps"]
    rows = []
    for name, program in timed(result).items():
        walls = column(program["rounds"], "wall")
        wall = statistics.median(walls)
        rows.append(
            [
                name,
                f"{wall:.3f} ({min(walls):.3f} to {max(walls):.3f})",
                shown(median(column(program["rounds"], "cpu")), 3),
                f"{max(column(program['rounds'], 'peak')) / 1e6:,.0f}",
                f"{program['start']:.1f}",
                f"{max(program['first'] - wall, 0):.1f}",
                f"{steps / wall:,.0f}",
                f"{steps * work['batch'] / wall:,.0f}",
                f"{work['tokens'] / wall:,.0f}",
            ]
        )
    header = [
        "program", "wall s (range)", "CPU s", "peak MB", "start s", "first round more s", "client-steps/s", "examples/s",
        "tokens/s",
    ]  # fmt: skip
    return markdown(header, rows)


def ratio_table(result: dict[str, Any], own: str) -> str:
    """Paired medians of this project's seconds over each rival's."""
    programs = timed(result)
    if own not in programs:
        return f"{own} was not timed, so there is nothing to compare."
    mine = programs[own]["rounds"]
    rows = [
        [name, *(shown(paired_ratio(column(mine, unit), column(program["rounds"], unit)), 3) for unit in UNITS)]
        for name, program in programs.items()
        if name != own
    ]
    header = [f"{own} / rival", "CPU seconds [95 %]", "wall seconds [95 %]"]
    return markdown(header, rows)


def per_client(rounds: dict[int, Rounds], unit: str) -> dict[int, float]:
    """Median milliseconds of a client by size of the cohort."""
    return {size: 1e3 * statistics.median(column(timed, unit)) / size for size, timed in rounds.items()}


def scaling_table(result: dict[str, dict[int, Rounds]]) -> str:
    """Time per client and memory of every program by size of the cohort, and their ratios at 4,096 and 256 clients."""
    rows = []
    for name, rounds in result.items():
        walls, cpus = per_client(rounds, "wall"), per_client(rounds, "cpu")
        for size, timed in rounds.items():
            peak = max(column(timed, "peak")) / 1e6
            rows.append([name, f"{size:,}", f"{walls[size]:.3f}", f"{cpus[size]:.3f}", f"{peak:,.0f}"])
    table = markdown(["program", "clients", "wall ms a client", "CPU ms a client", "peak MB"], rows)
    return "\n\n".join([table, *(growth_line(name, rounds) for name, rounds in result.items())])


def growth_line(name: str, rounds: dict[int, Rounds], small: int = 256) -> str:
    """How time per client and memory at the largest cohort compare with those at `small`."""
    large = max(rounds)
    if small not in rounds or large <= small:
        return f"{name}: no cohort beyond {small} was measured."
    ratio = {
        unit: median(
            [
                (more / large) / (less / small)
                for more, less in zip(column(rounds[large], unit), column(rounds[small], unit), strict=True)
            ]
        )
        for unit in ("wall", "cpu")
    }
    peaks = [max(column(rounds[size], "peak")) for size in (large, small)]
    return (
        f"{name}, {large:,} clients against {small}: time per client {shown(ratio['wall'], 3)} times (wall), "
        f"{shown(ratio['cpu'], 3)} times (CPU); peak memory {peaks[0] / peaks[1]:.2f} times."
    )


def scaling_charts(result: dict[str, dict[int, Rounds]]) -> dict[str, str]:
    """Two charts over the size of the cohort, SVG by file name: clients a second, and peak memory."""
    sizes = sorted({size for rounds in result.values() for size in rounds})
    places = {size: float(index) for index, size in enumerate(sizes)}

    def chart(title: str, label: str, of: Callable[[Rounds, int], float]) -> str:
        lines = [
            Line(name, [(places[size], of(timed, size)) for size, timed in sorted(rounds.items())])
            for name, rounds in result.items()
            if rounds
        ]
        frame = Frame(low=0.0, x_names=[f"{size:,}" for size in sizes])
        return plot_lines(title, "clients in the cohort", label, lines, frame).document()

    return {
        "scaling_speed.svg": chart(
            "Clients a second, tiny work",
            "clients a second (wall)",
            lambda timed, size: size / statistics.median(column(timed, "wall")),
        ),
        "scaling_memory.svg": chart(
            "Peak resident memory, tiny work", "MB", lambda timed, size: max(column(timed, "peak")) / 1e6
        ),
    }


def depth_table(result: dict[str, Any]) -> str:
    """Round time over depth, its linear fit, and the parts of the fit's constant."""
    rounds: dict[int, Rounds] = {int(depth): timed for depth, timed in result["rounds"].items()}
    rows = [
        [str(depth), *(shown(median(column(timed, unit)), 3) for unit in ("wall", "cpu"))] for depth, timed in rounds.items()
    ]
    table = markdown(["layers", "wall s [95 %]", "CPU s [95 %]"], rows)
    deepest = max(rounds)
    lines = []
    for unit, word in (("wall", "Wall"), ("cpu", "CPU")):
        fit = fit_depth({depth: column(timed, unit) for depth, timed in rounds.items()}, result["head_layers"])
        lines.append(
            f"{word} seconds = c + k depth: c {shown_mean(fit.constant)}, k {shown_mean(fit.slope, digits=4)}, largest "
            f"deviation {fit.residual:.1%}. The head and the loss are {result['head_layers']:.2f} layers by operations, "
            f"{shown_mean(fit.head)} s; the rest of c is {shown_mean(fit.share, 100, 1)} % of the time at {deepest} layers."
        )
    return "\n\n".join([table, *lines])


def stage_table(result: dict[str, Any]) -> str:
    """Time to enter and to leave each stage, in seconds and in rounds of that stage."""
    rows = []
    for quantization, stages in result.items():
        for stage in stages:
            parts = [stage[part] for part in ("build", "transfer", "round")]
            change = {unit: [sum(pair) for pair in zip(*(part[unit] for part in parts[:2]), strict=True)] for unit in UNITS}
            compiling = sum(part["cold"] - statistics.median(part["wall"]) for part in parts)
            rows.append(
                [
                    quantization,
                    str(stage["layers"]),
                    *(f"{statistics.median(part['wall']):.3f}" for part in parts),
                    *(shown(paired_ratio(change[unit], stage["round"][unit])) for unit in UNITS),
                    f"{max(compiling, 0):.1f}",
                ]
            )
    header = [
        "base", "layers", "build s", "return s", "round s", "change / round, CPU [95 %]", "change / round, wall [95 %]",
        "first time more s",
    ]  # fmt: skip
    return markdown(header, rows)

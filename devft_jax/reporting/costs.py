"""What a round costs at each stage, as in the paper's Figures 5 to 7: raw figures, and ratios to the deepest stage."""

from collections.abc import Callable
from statistics import mean, median
from typing import Any

from devft_jax.reporting import page
from devft_jax.reporting.bars import Bar, ratio_bars
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Stage, Story
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, Units, readable, readable_ratio

Measure = Callable[[Stage], float]


def _column(combine: Callable[[list[Any]], float], *names: str) -> Measure:
    return lambda stage: combine([sum(row[name] for name in names) for row in stage.rows])


MEASURES: tuple[tuple[str, Units, Measure], ...] = (
    ("Time of a round (median)", SECONDS, _column(median, "seconds")),
    ("Messages of a round, up and down", BYTES, _column(mean, "bytes_up", "bytes_down")),
    ("Training operations of a round", FLOPS, _column(mean, "train_flops")),
    ("Memory of its largest program", BYTES, _column(max, "program_bytes")),
)


def costs(story: Story) -> str:
    """The section."""
    stages = [stage for stage in story.stages if stage.rows]
    words = (
        "Compilation and evaluation are not counted. Memory is what XLA's analysis of the largest program gives for one "
        "device: its arguments, the base model among them, its results and its scratch space."
    )
    if len(stages) == 1:
        return page.section(
            "costs", "What a round costs", page.paragraph(words), f'<div class="scroll">{_table(stages)}</div>'
        )
    deepest = story.deepest
    pictures = []
    for name, units, measure in MEASURES:
        bars = [Bar(f"{stage.layers} layers", measure(stage)) for stage in stages]
        picture = ratio_bars(f"{name}, by stage", bars, measure(deepest), units)
        pictures.append(page.figure(picture, name, wide=False))
    words = f"The dashed line is the deepest stage so far, {deepest.layers} layers. " + words
    return page.section(
        "costs",
        "What a round costs at each stage",
        page.paragraph(words),
        page.side_by_side(*pictures, least=400),
        _saving(story, deepest),
        page.folded("Data: costs", _table(stages)),
    )


def _saving(story: Story, deepest: Stage) -> str:
    """What the run's rounds would have cost at full depth, by arithmetic, beside what they did cost."""
    if not (deepest.is_full and story.is_grown):
        return ""
    parts = []
    for (_, units, measure), columns in zip(
        MEASURES[:3], (("seconds",), ("bytes_up", "bytes_down"), ("train_flops",)), strict=True
    ):
        spent, full = story.total(*columns)[-1], measure(deepest) * story.rounds
        parts.append(f"{readable(spent, units)} instead of {readable(full, units)} ({readable_ratio(spent, full)})")
    messages = f"{parts[1]} of messages" if story.total("bytes_up", "bytes_down")[-1] else "no messages"
    dense = story.record["bytes_stage"]
    text = (
        f"The {story.rounds} rounds took {parts[0]} of training, {messages} and {parts[2]}. The second figures are what as "
        "many rounds at full depth would take: arithmetic from those of this run, not a measurement, and tells nothing of "
        "how much each would learn."
    )
    if dense:
        text += (
            f" Sending the fused submodels to the clients that took part would add {readable(dense, BYTES)} of messages, "
            "unless each client keeps the base model and fuses it itself."
        )
    return page.paragraph(text)


def _table(stages: list[Stage]) -> str:
    rows: list[list[Cell]] = [
        [
            f"stage {stage.number}",
            stage.layers,
            len(stage.rows),
            *(readable(measure(stage), units) for _, units, measure in MEASURES),
        ]
        for stage in stages
    ]
    return page.table("Costs of one round", ["stage", "layers", "rounds", *(name for name, _, _ in MEASURES)], rows)

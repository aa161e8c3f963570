"""The cost of training at each stage, as in the paper's Figures 5 to 7: raw figures, and ratios to the deepest stage.

Rounds have examples of different lengths, so time and operations are compared per token, not per round.
"""

from collections.abc import Callable
from statistics import mean, median

from devft_jax.reporting import page
from devft_jax.reporting.bars import Bar, ratio_bars
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Column, Stage, Story, both_ways
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, Units, readable, readable_ratio

Measure = Callable[[Stage], float]


def _over_rounds(combine: Callable[[list[float]], float], column: Column) -> Measure:
    return lambda stage: combine([column(row) for row in stage.rows])


def _for_tokens(combine: Callable[[list[float]], float], column: Column, tokens: float) -> Measure:
    return lambda stage: combine([tokens * column(row) / max(row.tokens, 1) for row in stage.rows])


TIME, MESSAGES, WORK = (
    ("Time for 1,000 tokens (median over rounds)", SECONDS, _for_tokens(median, lambda row: row.seconds, 1000)),
    ("Messages of a round, up and down", BYTES, _over_rounds(mean, both_ways)),
    ("Training operations for a token", FLOPS, _for_tokens(mean, lambda row: row.train_flops, 1)),
)

COMPARED: tuple[tuple[str, Units, Measure], ...] = (
    TIME,
    MESSAGES,
    WORK,
    ("Memory of its largest program", BYTES, _over_rounds(max, lambda row: row.program_bytes)),
)

OF_A_ROUND: tuple[tuple[str, Units, Measure], ...] = (
    ("Tokens of a round", ((1.0, ""),), _over_rounds(mean, lambda row: row.tokens)),
    ("Time of a round (median)", SECONDS, _over_rounds(median, lambda row: row.seconds)),
    ("Training operations of a round", FLOPS, _over_rounds(mean, lambda row: row.train_flops)),
    *COMPARED,
)


def costs(story: Story) -> str:
    """The section on costs.

    Args:
      story: the run.
    """
    stages = [stage for stage in story.stages if stage.rows]
    words = (
        "Tokens include padding. Compilation and evaluation are not counted. Memory is XLA's analysis of the largest "
        "program on one device: its arguments including the base model, its results and its temporary memory."
    )
    if len(stages) == 1:
        return page.section("costs", "What training costs", page.paragraph(words), page.scrolling(_table(stages)))
    deepest = story.deepest
    pictures = []
    for name, units, measure in COMPARED:
        bars = [Bar(f"{stage.layers} layers", measure(stage)) for stage in stages]
        picture = ratio_bars(f"{name}, by stage", bars, measure(deepest), units)
        pictures.append(page.figure(picture, name, wide=False))
    words = f"The dashed line is the deepest stage so far, {deepest.layers} layers. " + words
    return page.section(
        "costs",
        "What training costs at each stage",
        page.paragraph(words),
        page.side_by_side(*pictures, least=400),
        _saving(story, deepest),
        page.folded("Data: costs", _table(stages)),
    )


def _saving(story: Story, deepest: Stage) -> str:
    """What the run's rounds would have cost at full depth, computed from the run's figures, next to what they did cost."""
    if not (deepest.is_full and story.is_grown):
        return ""
    tokens = story.total(lambda row: row.tokens)[-1]

    def beside(spent: float, full: float, units: Units) -> str:
        return f"{readable(spent, units)} instead of {readable(full, units)} ({readable_ratio(spent, full)})"

    seconds = beside(story.total(lambda row: row.seconds)[-1], TIME[2](deepest) * tokens / 1000, SECONDS)
    work = beside(story.total(lambda row: row.train_flops)[-1], WORK[2](deepest) * tokens, FLOPS)
    sent = story.total(both_ways)[-1]
    messages = f"{beside(sent, MESSAGES[2](deepest) * story.rounds, BYTES)} of messages" if sent else "no messages"
    text = (
        f"The {story.rounds} rounds took {seconds} of training, {messages} and {work}. The second figures are the costs of "
        "as many rounds with as many tokens at full depth: computed from those of this run, not observed. They do not "
        "say how much each would learn."
    )
    dense = readable(story.record.bytes_stage, BYTES)
    if story.record.bytes_stage and story.is_fused:
        text += (
            f" Sending the fused submodels to the clients that took part would add {dense} of messages, unless each client "
            "keeps the base model and fuses it itself."
        )
    elif story.record.bytes_stage:
        text += f" Sending the list of a stage's layers to the clients that took part would add {dense} of messages."
    return page.paragraph(text)


def _table(stages: list[Stage]) -> str:
    header = ["", *(f"stage {stage.number}" for stage in stages)]
    rows: list[list[Cell]] = [
        ["Layers", *(str(stage.layers) for stage in stages)],
        ["Rounds", *(f"{len(stage.rows):,}" for stage in stages)],
    ]
    for name, units, measure in OF_A_ROUND:
        rows.append([name, *(readable(measure(stage), units).rstrip() for stage in stages)])
    return page.table("Costs by stage", header, rows, "figures")

"""The simulated fleet: who could take part in each stage, who was lost, and simulated time beside real time."""

from collections.abc import Sequence

from devft_jax.reporting import page
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Story
from devft_jax.reporting.units import BYTES, SECONDS, readable
from devft_jax.storage.fleet_records import SimulatedStageRecord

FATES = {
    "failed": "failed in the middle",
    "left": "left before they were done",
    "late": "were not done at the deadline",
    "surplus": "were still at work when enough had finished",
}
"""Why the work of selected clients was not used."""


def fleet(story: Story) -> str:
    """The section on the fleet; empty for a run without one.

    Args:
      story: the run.
    """
    record = story.record.fleet
    stages = [(stage.number, stage.record.simulated) for stage in story.stages if stage.record.simulated is not None]
    if record is None or not stages:
        return ""
    clients, real = sum(record.tiers.values()), story.total(lambda row: row.seconds)[-1]
    joined = [sum(stage.eligible.values()) for _, stage in stages]
    tiers = ", ".join(f"{count:,} {name}" for name, count in record.tiers.items())
    able = f"{min(joined):,}" if min(joined) == max(joined) else f"{min(joined):,} to {max(joined):,}"
    words = [
        f"The clients' devices were simulated ({tiers}). The rounds would have taken {readable(record.seconds, SECONDS)} on "
        f"them; the simulator trained for {readable(real, SECONDS)}. By their memory {able} of the {clients:,} clients "
        "could take part in a stage.",
        _lost([stage for _, stage in stages]),
    ]
    return page.section(
        "fleet",
        "The simulated fleet",
        *(page.paragraph(text) for text in words if text),
        page.scrolling(_table(record.tiers, stages)),
    )


def _lost(stages: Sequence[SimulatedStageRecord]) -> str:
    """What became of the clients that were selected."""
    selected = sum(stage.selected for stage in stages)
    counts = {name: sum(getattr(stage, name) for stage in stages) for name in FATES}
    lost = [f"{count:,} {FATES[name]}" for name, count in counts.items() if count]
    if not lost:
        return f"All {selected:,} participations that were begun were used."
    return f"Of {selected:,} participations that were begun, {', '.join(lost)}; their work was not used."


def _table(tiers: dict[str, int], stages: Sequence[tuple[int, SimulatedStageRecord]]) -> str:
    header = ["", *(f"stage {number}" for number, _ in stages)]
    able: list[list[Cell]] = [
        [f"Can take part: {name}", *(f"{stage.eligible.get(name, 0):,} of {count:,}" for _, stage in stages)]
        for name, count in tiers.items()
    ]
    fates: list[list[Cell]] = [
        [words.capitalize(), *(f"{getattr(stage, name):,}" for _, stage in stages)] for name, words in FATES.items()
    ]
    rows: list[list[Cell]] = [
        ["Memory of a client", *(readable(stage.memory_bytes, BYTES) for _, stage in stages)],
        *able,
        ["Participations begun", *(f"{stage.selected:,}" for _, stage in stages)],
        *fates,
        ["Simulated time", *(readable(stage.seconds, SECONDS) for _, stage in stages)],
    ]
    return page.table("The fleet by stage", header, rows, "figures")

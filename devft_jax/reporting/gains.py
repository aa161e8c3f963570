"""When stages ended because the next one promised as much per cost (`stage_end` gain), and what it took to measure that."""

from devft_jax.reporting import page
from devft_jax.reporting.chart import Frame, Level, Line, plot_lines
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Story
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, counted, readable


def gains(story: Story) -> list[str]:
    """What stages and their next ones promised, in the order in which it was measured; nothing if it was not.

    Args:
      story: the run.
    """
    measured = [(stage, gain) for stage in story.stages for gain in stage.record.gains or ()]
    if not measured:
        return []
    units, per = (BYTES, "byte") if story.config.gain_cost == "bytes" else (FLOPS, "FLOP")
    flops = readable(sum(gain.server_flops for _, gain in measured), FLOPS)
    seconds = readable(sum(gain.seconds for _, gain in measured), SECONDS)
    words = (
        "Alignment is the cosine of the full model's gradient on public text and that of a stage's submodel, transferred to "
        f"all layers. A stage ends once the next one, as it would begin then, has as much of it per {per} of a client's "
        f"round. {counted(len(measured), 'measurement')} took the server {flops} and {seconds}."
    )
    rows: list[list[Cell]] = []
    for stage, gain in measured:
        rows.append(
            [
                f"round {gain.round}, stage {stage.number}",
                _shown(gain.alignment),
                readable(gain.cost, units),
                _shown(gain.next_alignment),
                readable(gain.next_cost, units),
                None if gain.ratio is None else round(gain.ratio, 3),
                "the stage ended" if gain.ended else "",
            ]
        )
    header = ["after", "alignment", "a round", "next stage's", "its round", f"times as much per {per}", ""]
    data = page.folded("Data: what stages promised", page.table("What stages promised", header, rows))
    points = {
        f"stage {stage.number} to {stage.number + 1}": [
            (float(gain.round), gain.ratio) for gain in stage.record.gains or () if gain.ratio is not None
        ]
        for stage in story.stages
    }
    lines = [Line(name, found) for name, found in points.items() if found]
    if not lines:
        return [page.heading("When it grew"), page.paragraph(words), data]
    title = f"What the next stage promises per {per}, in units of the present one"
    frame = Frame(width=1000, height=260, whole=True, low=0.0, levels=[Level("as much", 1.0)])
    picture = plot_lines(title, "round", "times as much", lines, frame)
    return [page.heading("When it grew"), page.paragraph(words), page.figure(picture, "", data)]


def _shown(alignment: float | None) -> float | None:
    return None if alignment is None else round(alignment, 4)

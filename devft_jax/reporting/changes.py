"""What happens to the held-out loss at each stage change: where a stage starts and ends, and what is transferred."""

import dataclasses
import math
from dataclasses import dataclass, field

from devft_jax.reporting import page
from devft_jax.reporting.chart import Band, Frame, Line, legend, plot_lines
from devft_jax.reporting.story import Story
from devft_jax.reporting.ticks import spread_out

_FULL, _SUBMODEL, _CARRIED = "full model", "submodel, trained from start to end", "transferred, nothing trained"
_NAMES = (_FULL, _SUBMODEL, _CARRIED)


def stage_changes(story: Story) -> str:
    """The section on stage changes; empty if there are none or nothing is held out.

    Args:
      story: the run.
    """
    if story.record.base_loss is None or not story.is_grown:
        return ""
    steps = _steps(story)
    lines = steps.lines
    logarithm = spread_out([y for line in lines for _, y in line.points])
    frame = Frame(
        width=max(1000, 62 * len(steps.names)),
        height=360,
        named=False,
        bands=steps.bands,
        x_names=steps.names,
        values=True,
        logarithm=logarithm,
    )
    label = "held-out loss" + (", logarithmic" if logarithm else "")
    picture = plot_lines("Held-out loss across the stage changes", "", label, lines, frame, names=_NAMES)
    carried_back = "all layers of its groups (full), and the next submodel is fused from them"
    if not story.is_fused:
        carried_back = "its layers in the full model (full), and the next submodel has more or other layers of it"
    words = (
        f"Each stage trains its submodel from start to end; then its adapter is transferred to {carried_back}. Dotted "
        "steps train nothing: where they rise, the change of depth raises held-out loss; where they fall, the model of the "
        "other depth has the lower loss."
    )
    return page.section(
        "changes",
        "Across the stage changes",
        page.paragraph(words),
        page.legend(legend(lines, _NAMES)),
        page.figure(picture, "", page.folded("Data: stage changes", _change_table(story))),
    )


@dataclass
class _Steps:
    """The points of the picture in order, and the lines through them.

    Attributes:
      names: names of the points along the x axis.
      bands: one per stage.
      full: the full model's points, one list per line.
      trained: lines of submodels, from start to end.
      carried: lines along which nothing is trained.
    """

    names: list[str] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    full: list[list[tuple[float, float]]] = field(default_factory=list)
    trained: list[Line] = field(default_factory=list)
    carried: list[Line] = field(default_factory=list)

    def place(self, name: str, loss: float | None) -> tuple[float, float]:
        """Add a point after the last one."""
        self.names.append(name)
        return len(self.names) - 1.0, math.nan if loss is None else loss

    @property
    def lines(self) -> list[Line]:
        """All lines that have points, without points that are not finite."""
        full = [Line(_FULL, points) for points in self.full]
        drawn = [*full, *self.trained, *(line for line in self.carried if len(line.points) > 1)]
        finite = [
            dataclasses.replace(line, points=[point for point in line.points if math.isfinite(point[1])]) for line in drawn
        ]
        return [line for line in finite if line.points]


def _steps(story: Story) -> _Steps:
    steps = _Steps()
    record = story.record
    began = record.base_loss if record.start_loss is None else record.start_loss
    steps.full.append([steps.place("base" if record.start_loss is None else "begin", began)])
    before = [steps.full[-1][0]]
    for stage in story.stages:
        start, end = stage.record.loss_start, stage.record.loss_end
        points = [steps.place(f"start {stage.number}", start)]
        if end is not None:
            points.append(steps.place(f"end {stage.number}", end))
        labels = (f"stage {stage.number}: {stage.layers} layers", f"{stage.layers} layers", str(stage.layers))
        steps.bands.append(Band(points[0][0] - 0.3, points[-1][0] + 0.3, labels))
        steps.carried.append(Line(_CARRIED, [*before, points[0]], markers=False))
        before = []
        if stage.is_full:
            steps.full.append(points)
            continue
        steps.trained.append(Line(_SUBMODEL, points))
        if end is not None:
            steps.full.append([steps.place("full", stage.record.loss_full_after_transfer)])
            before = [points[-1], steps.full[-1][0]]
    if before:
        steps.carried.append(Line(_CARRIED, before, markers=False))
    return steps


def _change_table(story: Story) -> str:
    header = ["stage", "layers", "rounds", "start", "end", "full model after transfer", "exact match after transfer"]
    caption = "Held-out loss"
    if story.is_fused:
        header.append("transition gap")
        caption += (
            ". The transition gap is the quantity that the paper's Lemma 1 bounds: the distance, over all weights, between "
            "the submodel and its groups' anchors; 0 if nothing is fused"
        )
    rows = [
        [
            stage.number,
            stage.layers,
            len(stage.rows),
            stage.record.loss_start,
            stage.record.loss_end,
            stage.record.loss_full_after_transfer,
            stage.record.accuracy_full_after_transfer,
            *((stage.record.transition_gap,) if story.is_fused else ()),
        ]
        for stage in story.stages
    ]
    return page.table(caption, header, rows)

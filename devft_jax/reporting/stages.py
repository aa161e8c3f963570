"""How the model grew: which layers were fused at each stage, and the similarity and spectrum from which groups are
derived."""

from itertools import pairwise

from devft_jax.developmental.options import SIMILARITY_METHODS
from devft_jax.reporting import page
from devft_jax.reporting.chart import Band, Frame, Line, plot_lines
from devft_jax.reporting.gains import gains
from devft_jax.reporting.heat import group_order, similarity_map, similarity_range, time_map
from devft_jax.reporting.layers import is_negative, shown_weight
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Stage, Story
from devft_jax.reporting.strip import group_name, layer_strip

# Most columns of a map over rounds, and most eigenvalues with a marker each.
MAX_COLUMNS, MARKED = 120, 40


def growth(story: Story) -> str:
    """The section on how the model grew.

    Args:
      story: the run.
    """
    if not story.is_grown:
        words = f"The full model of {story.depth} layers was trained throughout: nothing was grouped, fused or transferred."
        learned = [(stage.number, stage.record.trained) for stage in story.stages]
        if any(part is not None for _, part in learned):
            parts = [f"{len(part) if part is not None else story.depth} in stage {number}" for number, part in learned]
            words = (
                f"The full model of {story.depth} layers was run throughout, and nothing was grouped, fused or transferred. "
                f"The numbers of layers that learned: {', '.join(parts)}; the others were frozen."
            )
        return page.section("growth", "The layers", page.paragraph(words), *gains(story), _norms(story))
    title = "Which layers were fused into which group at each stage" if story.is_fused else "Which layers each stage has"
    data = "groups and anchor weights" if story.is_fused else "layers"
    strip = layer_strip(title, story.stages)
    return page.section(
        "growth",
        "How the model grew",
        *map(page.paragraph, _fused_words(story) if story.is_fused else _picked_words(story)),
        page.figure(strip, "", page.folded(f"Data: {data}", _group_table(story))),
        *gains(story),
        *(_similarity(story) if story.is_fused else _influence(story)),
        _norms(story),
    )


def _fused_words(story: Story) -> list[str]:
    """The caption of the strip if layers are fused, and notes on anchors with an unusual weight."""
    sentences = [
        f"Each narrow column is one of the model's {story.depth} layers, dark to light from first to last; a box is a "
        "group, whose layers are fused into one layer of the stage's submodel and get the same adapter back.",
    ]
    weights = [
        (stage.number, value)
        for stage in story.stages
        for value, layers in zip(stage.record.anchor_coefficients or (), stage.groups, strict=False)
        if value is not None and len(layers) > 1
    ]
    given = "growth" in story.objects
    size = "a group's" if given else "a group is so large that its"
    reason = "" if given or story.config.fusion != "dblf" else " Eq. 5 of the paper says so; beta auto avoids it."
    negative = [f"stage {number} (\u2212{-value:.2f})" for number, value in weights if is_negative(value)]
    if negative:
        sentences.append(
            f"\u25bc In {', '.join(negative)} {size} first layer, the anchor, enters with a negative weight: it is "
            f"subtracted from the others instead of leading them.{reason}"
        )
    without = list(dict.fromkeys(f"stage {number}" for number, value in weights if shown_weight(value) == "0.00"))
    if without and story.config.fusion == "dblf":
        sentences.append(
            f"In {', '.join(without)} {size} first layer, the anchor, enters with a weight of 0: the fused layer is made of "
            f"the others alone.{reason}"
        )
    return sentences


def _picked_words(story: Story) -> list[str]:
    """The caption of the strip if a stage has some of the model's layers unchanged."""
    sentences = [
        f"Each narrow column is one of the model's {story.depth} layers, dark to light from first to last; a box is a layer "
        "that the stage's submodel has, unchanged, and pale ones are absent from it. What a layer learned returns to "
        "that layer alone.",
    ]
    chosen = {
        "progfed": "progfed takes the first layers, and more of them from stage to stage.",
        "skip-grow": "skip-grow takes the first, the last and those with the largest block influence: how much a layer of "
        "the untuned base changes its input.",
    }
    if "growth" not in story.objects and story.config.growth in chosen:
        sentences.append(chosen[story.config.growth])
    return sentences


def _influence(story: Story) -> list[str]:
    """The block influence of the layers, if it was measured."""
    influence = story.record.block_influence
    if influence is None:
        return []
    points = [(float(layer), value) for layer, value in enumerate(influence)]
    frame = Frame(width=1000, height=260, named=False, whole=True, low=0.0)
    picture = plot_lines(
        "Block influence of the layers", "layer", "block influence", [Line("influence", points, joined=False)], frame
    )
    rows: list[list[Cell]] = [[str(layer), value] for layer, value in enumerate(influence)]
    data = page.folded("Data: block influence", page.table("Block influence", ["layer", "influence"], rows))
    return [page.heading("Why these layers"), page.figure(picture, "", data)]


def _similarity(story: Story) -> list[str]:
    """Similarity and spectrum of every stage with fused layers."""
    fused = [(stage, stage.record.similarity) for stage in story.stages if stage.record.similarity is not None]
    if not fused:
        return []
    bounds = [similarity_range(similarity) for _, similarity in fused]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    spectral = "This run's groups are not derived from it: it shows what Eq. 3 would have used."
    if "growth" in story.objects:
        spectral = "This run's growth was an object, which may group differently: the shaded ones are those that Eq. 3 uses."
    elif story.config.growth == "devft" and story.config.grouping == "dglg":
        spectral = "Layers are grouped by the eigenvectors of the shaded ones, as many as there are groups."
    faint = ": the layers are nearly orthogonal to each other, and on a scale up to 1 no difference would be visible"
    order = ""
    if any(group_order(stage.record.assign) != list(range(story.depth)) for stage, _ in fused):
        order = "Layers are in the order of their groups, so that those of a group are neighbours. "
    measure, laplacian = "Eq. 1", "Laplacian (Eq. 3)"
    if "growth" not in story.objects and story.config.growth == "devft" and story.config.grouping in SIMILARITY_METHODS:
        measure = measure if story.config.similarity == "weights" else f"measured by {story.config.similarity}"
        laplacian = laplacian if story.config.laplacian == "paper" else "normalised Laplacian"
    words = (
        f"The matrices show the similarity of each pair of layers ({measure}), on one scale for all stages, chosen from the "
        f"values off the diagonal alone ({low:.3f} to {high:.3f}){faint if low > -0.2 and high < 0.2 else ''}. {order}"
        "Outlines enclose the layers of a group, numbers on the diagonal name it. Beside them, the eigenvalues of the "
        f"{laplacian}. {spectral}"
    )
    return [
        page.heading("Why these groups"),
        page.paragraph(words),
        *(_why(stage, similarity, (low, high)) for stage, similarity in fused),
    ]


def _group_table(story: Story) -> str:
    rows: list[list[Cell]] = []
    for stage in story.stages:
        coefficients = stage.record.anchor_coefficients
        for group, layers in enumerate(stage.groups):
            weight = None if coefficients is None else coefficients[group]
            note = "\u25bc negative" if is_negative(weight) else ""
            shown = None if weight is None else round(weight, 4) + 0.0
            what = "group" if story.is_fused else "layer"
            rows.append([f"stage {stage.number}, {what} {group + 1}", group_name(layers), len(layers), shown, note])
    if not story.is_fused:
        rows = [[row[0], row[1]] for row in rows]
        return page.table("Every layer of a stage's submodel is one of the model's", ["layer", "of the model"], rows)
    return page.table(
        "The anchor is a group's first layer; its weight in the fused layer is 1 \u2212 beta (layers \u2212 1) with DBLF",
        ["group", "layers", "size", "anchor weight", ""],
        rows,
    )


def _why(stage: Stage, matrix: list[list[float]], bounds: tuple[float, float]) -> str:
    """A stage's similarity and spectrum next to each other."""
    spectrum = stage.record.spectrum or []
    title = f"Stage {stage.number}: similarity of the layers"
    heat = similarity_map(title, matrix, stage.record.assign, bounds)
    rows: list[list[Cell]] = [[str(index), *(f"{value:.3f}" for value in line)] for index, line in enumerate(matrix)]
    header = ["layer", *map(str, range(len(matrix)))]
    values = page.folded("Data: similarity", page.table("Cosine similarity of the layers", header, rows, "matrix"))
    return (
        f'<div class="keep"><h3>Stage {stage.number}: {stage.layers} groups</h3>'
        + page.side_by_side(page.figure(heat, "", values, wide=False), _spectrum(stage, spectrum))
        + "</div>"
    )


def _spectrum(stage: Stage, spectrum: list[float]) -> str:
    size, kept = len(spectrum), stage.layers
    bands = [Band(0.5, kept + 0.5, (f"the {kept} smallest", str(kept)))]
    bands += [Band(kept + 0.5, size + 0.5, (), shaded=False)] if kept < size else []
    points = [(index + 1.0, value) for index, value in enumerate(spectrum)]
    frame = Frame(width=470, height=360, named=False, whole=True, bands=bands)
    title = f"Stage {stage.number}: eigenvalues of the layers' Laplacian"
    lines = [Line("eigenvalue", points, markers=size <= MARKED)]
    lines += [Line("gap at the cut", points[kept - 1 : kept + 1])] if kept < size else []
    picture = plot_lines(title, "eigenvalue, ascending", "value", lines, frame)
    gaps = [after - before for before, after in pairwise(spectrum)]
    # The first eigenvalue is 0 for any graph: the gap after it only shows that the graph is connected.
    widest = max(range(1, len(gaps)), key=gaps.__getitem__, default=None)
    caption = ""
    if kept < size:
        caption = f"Cut after eigenvalue {kept} (between the squares), where the gap to the next is {gaps[kept - 1]:.4f}."
        if widest is not None and kept > 1:
            same = widest == kept - 1
            caption += (
                " It is the widest gap" if same else f" The widest is after eigenvalue {widest + 1} ({gaps[widest]:.4f})"
            )
            caption += ", not counting the first one, which every graph has."
    rows: list[list[Cell]] = [[index + 1, round(value, 5)] for index, value in enumerate(spectrum)]
    data = page.folded("Data: spectrum", page.table("Eigenvalues", ["number", "value"], rows))
    return page.figure(picture, caption, data, wide=False)


def bins_of(stages: list[Stage], most: int) -> list[tuple[int, int]]:
    """Equal ranges of rounds, from 1.

    Args:
      stages: the stages of the run.
      most: the largest number of ranges.

    Returns:
      The first and the last round of each.
    """
    rounds = stages[-1].last
    count = min(rounds, most)
    edges = [round(index * rounds / count) for index in range(count + 1)]
    return [(before + 1, after) for before, after in pairwise(edges)]


def _norms(story: Story) -> str:
    """How far each layer's adapter has moved, over rounds: a layer has the norm of its group's adapter."""
    bins = bins_of(story.stages, MAX_COLUMNS)
    assigns = [stage.record.assign for stage in story.stages]
    cells: dict[tuple[int, int], float] = {}
    for column, (_, last) in enumerate(bins):
        row = story.rows[last - 1]
        for layer, group in enumerate(assigns[row.stage]):
            norm = row.adapter_norms[group] if group >= 0 else None
            if norm is not None:
                cells[layer, column] = norm
    if not cells:
        return ""
    borders = [stage.last for stage in story.stages if stage.last < story.rounds and stage.rows]
    picture = time_map(
        "Size of each layer's low-rank update over rounds",
        cells,
        [str(layer) for layer in range(story.depth)],
        len(bins),
        (0.0, max(cells.values())),
        rounds=story.rounds,
        borders=borders,
        label="norm of the update",
        row_label="layer of the full model",
    )
    ends = [(stage, stage.rows[-1].adapter_norms) for stage in story.stages if stage.rows]
    rows: list[list[Cell]] = [
        [
            str(layer),
            *(None if stage.record.assign[layer] < 0 else norms[stage.record.assign[layer]] for stage, norms in ends),
        ]
        for layer in range(story.depth)
    ]
    table = page.table("Norm at the end of each stage", ["layer", *(f"stage {stage.number}" for stage, _ in ends)], rows)
    words = [
        "How much of the update a layer carries: the Frobenius norm of scale \u00d7 a \u00d7 b over its adapted projections."
    ]
    if story.is_personal:
        words.append("Here it is the mean over the round's participants.")
    if story.is_grown:
        words.append(
            "Layers of a group share one adapter, so they share its norm."
            if story.is_fused
            else "A layer that is absent from a stage has none."
        )
    if len(bins) < story.rounds:
        words.append(f"A column is the last of up to {-(-story.rounds // len(bins))} rounds.")
    return (
        page.heading("Where the update lies")
        + page.paragraph(" ".join(words))
        + page.figure(picture, "", page.folded("Data: norms", table))
    )

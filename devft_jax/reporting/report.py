"""`report.html`: one run on one page without external resources, for readers who did not watch it.

The page starts with what was run and the result; then come how it learned and grew, what it cost, who took part, and how to
repeat it. The sections are in modules of their own; this one has the headline and puts them together.
"""

import math

from devft_jax.reporting import heat, page, split, strip
from devft_jax.reporting.changes import stage_changes
from devft_jax.reporting.costs import costs
from devft_jax.reporting.curves import learning
from devft_jax.reporting.fleet import fleet
from devft_jax.reporting.participation import clients
from devft_jax.reporting.scores import is_scored, task_scores
from devft_jax.reporting.settings import Settings, settings, shown
from devft_jax.reporting.stages import growth
from devft_jax.reporting.story import Story
from devft_jax.reporting.svg import escape
from devft_jax.reporting.units import BYTES, FLOPS, SECONDS, readable
from devft_jax.storage.records import EnergyRecord


def report_html(story: Story, configured: Settings, judged: str = "") -> str:
    """The whole page.

    Args:
      story: the run.
      configured: the run's configuration.
      judged: the section on judged answers; empty for none.
    """
    sections = [
        learning(story),
        task_scores(story),
        judged,
        growth(story),
        stage_changes(story),
        costs(story),
        clients(story),
        fleet(story),
        settings(story, configured),
    ]
    title = _title(story)
    return page.page(title, (heat.STYLE, split.STYLE, strip.STYLE), [_headline(story, title, judged), *sections])


def _named(story: Story, name: str) -> str:
    """A part of the run by name: the object that was passed, or the name in the configuration."""
    return story.objects.get(name, shown(getattr(story.config, name)))


def _title(story: Story) -> str:
    return f"{_named(story, 'growth')} with {_named(story, 'algorithm')} on {_model(story)}"


def _model(story: Story) -> str:
    name = _named(story, "model")
    return "the bundled model" if name == "bundled" else name


def _state(story: Story) -> tuple[str, str]:
    """The CSS class and the text of the run's state."""
    resumed = f", resumed after round {', '.join(map(str, story.resumes))}" if story.resumes else ""
    if story.finished:
        best = story.record.best
        planned = "" if best is None or best.planned_rounds is None else f" of {best.planned_rounds}, ended early"
        return "done", f"finished: {story.rounds} round{'s' if story.rounds > 1 else ''}{planned}{resumed}"
    how = "stopped" if story.record.stopped_by else "still running or interrupted"
    return "open", f"{how} after round {story.rounds} of {story.planned}{resumed}"


def _what(story: Story) -> str:
    """What was run, in one sentence."""
    depths = [str(stage.layers) for stage in story.stages]
    count = "one stage" if len(depths) == 1 else f"{len(depths)} stages"
    stages = f"in {count} of {', '.join(depths)} layers" if story.is_grown else "at full depth"
    if story.is_grown and not story.finished:
        stages = f"so far in stages of {', '.join(depths)} layers,"
    # A growth may end before all planned rounds are done.
    rounds = story.rounds if story.finished else story.planned
    data, examples, clients = _named(story, "data"), story.split.examples, len(story.split.clients)
    who = (
        f"with {story.participants:,} of {clients:,} clients a round" if clients > 1 else "by one client that holds all data"
    )
    split = f", {story.split.partition} split" if clients > 1 else ""
    return (
        f"{_model(story)[:1].upper()}{_model(story)[1:]}, of {story.depth} layers, tuned {stages} over {rounds} "
        f"{'round' if rounds == 1 else 'rounds'} {who}, on {data} ({examples:,} examples{split})."
    )


def _moved(before: float, after: float, form: str) -> str:
    """How a figure changed, by the decimals shown."""
    first, last = form.format(before), form.format(after)
    if not (math.isfinite(before) and math.isfinite(after)):
        return f"went from {first} to {last}"
    if first == last:
        return f"stayed at {last}"
    return f"{'fell' if after < before else 'rose'} from {first} to {last}"


def _result(story: Story) -> str:
    """The result in plain words."""
    points = [point for piece in story.full_model for point in piece]
    losses = [row.loss for row in story.rows if row.loss == row.loss]
    training = (
        f"The training loss went from {losses[0]:.4f} in the first round to {losses[-1]:.4f} in the last." if losses else ""
    )
    if training and story.is_grown:
        training += " Each stage's loss is that of its own submodel, so the two may belong to different models."
    if not points:
        measured = "measured on benchmark tasks only" if is_scored(story) else "not measured"
        return f"No held-out data was given, so what was learned is {measured}. {training}"
    base, last = points[0], points[-1]
    if last.round == 0:
        return f"The full model has not been evaluated since the start. {training}"
    when = "" if story.finished else f", at round {last.round}, when the full model was last evaluated"
    whose = "Held-out loss" if not story.is_personal else "On average over the clients' own models, held-out loss"
    text = f"{whose} {_moved(base.loss, last.loss, '{:.4f}')}"
    if base.accuracy is not None and last.accuracy is not None:
        text += f" and exact match {_moved(base.accuracy, last.accuracy, '{:.1%}')}"
    return f"{text}{when}.{_best(story)}"


def _best(story: Story) -> str:
    """The best round, if the run looked for it, and whether the run ended early because of it."""
    best = story.record.best
    if best is None:
        return ""
    text = f" The lowest held-out loss of the last stage is that after round {best.round}: {best.loss:.4f}"
    if best.planned_rounds is not None:
        text += (
            f"; none was lower in the {story.config.stop_after} rounds after it, so that the run ended after round "
            f"{story.rounds} of {best.planned_rounds}"
        )
    return f"{text}. Its model is kept: --round best."


def _tile(name: str, value: str, note: str = "", before: str = "") -> str:
    arrow = f'<span class="from">{escape(before)} \u2192 </span>' if before else ""
    return (
        f'<div class="tile"><dt>{escape(name)}</dt><dd class="figure">{arrow}{escape(value)}</dd>'
        f'<dd class="note">{escape(note)}</dd></div>'
    )


def _judged(story: Story) -> str:
    """Whose figures the headline shows."""
    if not story.is_personal:
        return "full model"
    if story.personal is None:
        return "mean of the clients' own models"
    spread = story.personal.loss_spread
    return f"mean of {len(story.personal.losses):,} clients' own models, standard deviation {spread:.3f}"


def _tiles(story: Story) -> list[str]:
    record = story.record
    points = [point for piece in story.full_model for point in piece]
    tiles = []
    if len(points) > 1:
        base, last = points[0], points[-1]
        examples = f"{record.held_out_examples:,} held-out examples, {_judged(story)}"
        tiles.append(_tile("Held-out loss", f"{last.loss:.3f}", examples, f"{base.loss:.3f}"))
        if base.accuracy is not None and last.accuracy is not None:
            tiles.append(
                _tile(
                    "Exact match",
                    f"{last.accuracy:.1%}",
                    "answers reproduced exactly by greedy decoding",
                    f"{base.accuracy:.1%}",
                )
            )
    besides = {"compile": record.seconds.compile, "build": record.seconds.build, "evaluate": record.seconds.evaluate}
    others = ", ".join(f"{name} {readable(seconds, SECONDS)}" for name, seconds in besides.items())
    if record.compiled_ahead.programs:
        others += f"; compiled in the background: {readable(record.compiled_ahead.seconds, SECONDS)}"
    tiles.append(_tile("Training time", readable(story.total(lambda row: row.seconds)[-1], SECONDS), f"besides: {others}"))
    if record.fleet is not None:
        tiles.append(
            _tile("Simulated time", readable(record.fleet.seconds, SECONDS), "of the rounds on the clients' own devices")
        )
    up, down = story.total(lambda row: row.bytes_up)[-1], story.total(lambda row: row.bytes_down)[-1]
    what = "fused submodels" if story.is_fused else "lists of a stage's layers"
    dense = f"; {what}: {readable(record.bytes_stage, BYTES)}" if record.bytes_stage else ""
    tiles.append(
        _tile("Messages", readable(up + down, BYTES), f"up {readable(up, BYTES)}, down {readable(down, BYTES)}{dense}")
    )
    flops = story.total(lambda row: row.train_flops)[-1]
    tiles.append(_tile("Training operations", readable(flops, FLOPS), "counted from shapes"))
    if record.energy is not None:
        tiles.append(_energy(record.energy))
    source = record.peak_memory_source
    if source == "process peak resident set":
        source += ": of the whole process, including what it did before this run"
    tiles.append(_tile("Peak memory", readable(record.peak_memory_bytes, BYTES), source))
    return tiles


def _energy(energy: EnergyRecord) -> str:
    note = f"{1000 * energy.kgco2e:.3g} g CO2e at {energy.grid_kgco2e_per_kwh:g} kg/kWh; source: {energy.source}"
    return _tile("Energy", f"{1000 * energy.kwh:.3g} Wh", note)


def _headline(story: Story, title: str, judged: str) -> str:
    kind, state = _state(story)
    parts = [
        f'<p class="kicker">Report of the run in {escape(story.name)}/</p>',
        f"<h1>{escape(title)}</h1>",
        f'<p><span class="state {kind}">{escape(state)}</span></p>',
        page.paragraph(_what(story)),
        page.paragraph(_result(story), "lead"),
    ]
    if story.cut_off:
        parts.append(
            page.paragraph(
                "The last line of metrics.jsonl is incomplete and left out: it is being written, or the run was killed.",
                "alert",
            )
        )
    if story.record.updates_dropped:
        parts.append(page.paragraph(f"{story.record.updates_dropped:,} updates were not finite and were dropped.", "alert"))
    links = {
        "learning": "What was learned",
        "scores": "Scores on tasks",
        "judged": "Judged answers",
        "growth": "How the model grew" if story.is_grown else "Layers",
        "changes": "Stage changes",
        "costs": "Costs",
        "clients": "Clients",
        "fleet": "The fleet",
        "settings": "Configuration",
    }
    if not story.is_grown or story.record.base_loss is None:
        del links["changes"]
    if not is_scored(story):
        del links["scores"]
    if not judged:
        del links["judged"]
    if story.record.fleet is None:
        del links["fleet"]
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in links.items())
    parts.append(f'<nav aria-label="Sections"><ul>{items}</ul></nav>')
    return f'<header>{"".join(parts)}<dl class="tiles">{"".join(_tiles(story))}</dl></header>'

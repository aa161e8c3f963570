"""The clients: the data of each (the split), and the rounds in which each took part."""

from collections import Counter
from statistics import median

from devft_jax.reporting import page
from devft_jax.reporting.heat import time_map
from devft_jax.reporting.names import distinct
from devft_jax.reporting.page import Cell
from devft_jax.reporting.split import MAX_CLIENTS, split_picture
from devft_jax.reporting.stages import MAX_COLUMNS, bins_of
from devft_jax.reporting.story import Story

# Most rows in the map of participation; with more clients, neighbours share a row.
MAX_ROWS = 60
TABLE_ROWS = 1_000
# Most characters that fit in front of a row.
NAME_LETTERS = 9


def clients(story: Story) -> str:
    """The section on the clients.

    Args:
      story: the run.
    """
    members = story.split.clients
    taken = Counter(position for row in story.rows for position in row.clients)
    counts = [taken[position] for position in range(len(members))]
    never = counts.count(0)
    words = (
        f"{story.participants:,} of {len(members):,} clients took part in a round. Over {story.rounds:,} "
        f"rounds a client took part {min(counts):,} to {max(counts):,} times, median {median(counts):g}"
        + (f"; {never:,} of them never." if never else ".")
    )
    columns = [members, counts]
    if story.personal:
        columns += [story.personal.losses, story.personal.accuracies]
    rows: list[list[Cell]] = [
        [client.name, client.examples, client.tokens, *rest]
        for client, *rest in list(zip(*columns, strict=True))[:TABLE_ROWS]
    ]
    part = f", the first {TABLE_ROWS:,} of {len(members):,}" if len(members) > TABLE_ROWS else ""
    header = ["client", "examples", "tokens", "rounds", *(["held-out loss", "exact match"] if story.personal else [])]
    caption = f"Clients{part}; split.json and metrics.jsonl have all of them"
    capped = f"The first {MAX_CLIENTS} clients are drawn." if len(members) > MAX_CLIENTS else ""
    return page.section(
        "clients",
        "The clients",
        page.heading("The data of each client"),
        page.figure(split_picture(story.split), capped),
        page.heading("Who took part when"),
        page.paragraph(words),
        _map(story),
        page.folded("Data: clients", page.table(caption, header, rows)),
    )


def _map(story: Story) -> str:
    members = story.split.clients
    bins = bins_of(story.stages, MAX_COLUMNS)
    together = -(-len(members) // MAX_ROWS)
    column_of = {number: column for column, (first, last) in enumerate(bins) for number in range(first, last + 1)}
    cells = Counter((position // together, column_of[row.round]) for row in story.rows for position in row.clients)
    names = [members[first].name for first in range(0, len(members), together)]
    if together > 1:
        names = [f"{first + 1}\u2013{min(first + together, len(members))}" for first in range(0, len(members), together)]
    most = max(cells.values())
    borders = [stage.last for stage in story.stages if stage.last < story.rounds and stage.rows]
    wide = -(-story.rounds // len(bins))
    shared = []
    if together > 1:
        shared.append(f"a row is {together} clients")
    if wide > 1:
        shared.append(f"a column is up to {wide} rounds")
    caption = "A filled cell is a client that took part in the round."
    if shared:
        caption = f"There are too many to draw each one: {' and '.join(shared)}, and the shade counts participations."
    picture = time_map(
        "Participation of clients over rounds",
        {place: float(count) for place, count in cells.items()},
        distinct(names, NAME_LETTERS),
        len(bins),
        (0.0, float(most)),
        rounds=story.rounds,
        borders=borders,
        label="participations in a cell" if shared else "",
        row_label="client",
        form="{:.0f}",
        apart=not shared,
    )
    return page.figure(picture, caption)

"""Results as they are read: tables as text, and everything as JSON-ready values (`results.json`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from devft_jax.comparing.formats import table_lines
from devft_jax.comparing.tables import Table
from devft_jax.judging.judgements import Spent
from devft_jax.judging.results import Games, Mean, Part, Results
from devft_jax.reporting.units import counted


def shown_mean(found: Mean | None, *, digits: int = 2, scale: float = 1.0, unit: str = "", sign: bool = False) -> str:
    """A mean with its standard error and interval: 5.40 ± 0.31 [4.78, 6.02].

    Args:
      found: the mean; empty text for None.
      digits: behind the point.
      scale: what it is multiplied by.
      unit: behind the numbers.
      sign: whether a positive mean has a sign, too.
    """
    if found is None:
        return ""

    def number(value: float, form: str = "") -> str:
        return f"{value * scale:{form}.{digits}f}"

    text = number(found.value, "+" if sign else "")
    text += "" if found.error is None else f" ± {number(found.error)}"
    if found.low is None or found.high is None:
        return f"{text}{unit}"
    ends = ", ".join(number(end, "+" if sign else "") for end in (found.low, found.high))
    return f"{text}{unit} [{ends}]"


def _title(turn: int | None, turns: Sequence[int | None]) -> str:
    if len(turns) == 1:
        return ""
    return ", both turns" if turn is None else f", turn {turn}"


def tables_of(results: Results) -> list[Table]:
    """All tables: ratings and comparisons, for each turn and both.

    Args:
      results: of the judgements.
    """
    turns = list(dict.fromkeys(part.turn for part in results.parts))
    found = []
    for turn in turns:
        parts = [part for part in results.parts if part.turn == turn]
        if results.ratings:
            found.append(_rating_table(results, parts, _title(turn, turns)))
    for turn in turns:
        parts = [part for part in results.parts if part.turn == turn]
        if results.games:
            found += [_game_table(results, name, parts, _title(turn, turns)) for name in results.games[parts[0]]]
    return found


def _rating_table(results: Results, parts: Sequence[Part], title: str) -> Table:
    others = [name for name in results.models if name != results.baseline]
    header = ["category", *results.models, *(f"{name} - {results.baseline}" for name in others)]
    rows = []
    for part in parts:
        means = [shown_mean(results.ratings[part][name]) for name in results.models]
        apart = []
        for name in others:
            difference = results.differences[part][name]
            apart.append(shown_mean(difference, sign=True) + "*" * _differs(difference))
        rows.append([part.category, *means, *apart])
    below = "mean ± standard error over questions [95 % interval]"
    below += "; differences over the same questions, * the interval excludes zero" if others else ""
    return Table(f"Rating, 1 to 10{title}", header, rows, below)


def _differs(found: Mean | None) -> bool:
    return found is not None and found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def _game_table(results: Results, name: str, parts: Sequence[Part], title: str) -> Table:
    header = ["category", "wins", "ties", "losses", "inconsistent", "no verdict", "win rate, ties as half"]
    rows = []
    for part in parts:
        games = results.games[part][name]
        counts = (games.wins, games.ties, games.losses, games.inconsistent, games.no_verdict)
        rows.append([part.category, *map(str, counts), shown_mean(games.rate, digits=1, scale=100, unit=" %")])
    below = "pairs in both orders; inconsistent pairs, whose orders do not agree, are among the ties"
    return Table(f"{name} against {results.baseline}{title}", header, rows, below)


def to_text(results: Results, judge: str, spent: Spent, cost: float | None) -> str:
    """The results for a terminal.

    Args:
      results: of the judgements.
      judge: its name.
      spent: what the judgements took.
      cost: of the judge; None without prices.
    """
    blocks = ["\n".join(table_lines(table)) for table in tables_of(results)]
    return "\n\n".join([*blocks, "\n".join(notes(results, judge, spent, cost))]) + "\n"


def notes(results: Results, judge: str, spent: Spent, cost: float | None) -> list[str]:
    """Notes below the tables: who judged, at what cost, and what has no verdict.

    Args:
      results: of the judgements.
      judge: its name.
      spent: what the judgements took.
      cost: of the judge; None without prices.
    """
    said = f"judge {judge}: {counted(spent.requests, 'request')}"
    said += f" ({spent.repeated} asked again for a verdict)" if spent.repeated else ""
    if spent.uncounted < spent.requests:
        said += f", {spent.prompt_tokens:,} tokens read, {spent.completion_tokens:,} written"
        said += f" ({counted(spent.uncounted, 'request')} not counted by the judge)" if spent.uncounted else ""
        said += "" if cost is None else f", cost {cost:,.4f}"
    lines = [said]
    unrated = {name: count for name, count in results.unrated.items() if count}
    if unrated:
        shown = ", ".join(f"{name} {count}" for name, count in unrated.items())
        lines.append(f"judgements without a rating, which count nowhere: {shown}")
    return lines


def to_plain(results: Results) -> dict[str, Any]:
    """The figures as JSON-ready values, a list entry for each part.

    Args:
      results: of the judgements.
    """
    return {
        "baseline": results.baseline,
        "unrated": dict(results.unrated),
        "ratings": [_entry(part, results.ratings[part]) for part in results.ratings],
        "differences": [_entry(part, results.differences[part]) for part in results.differences],
        "games": [_entry(part, results.games[part]) for part in results.games],
    }


def _entry(part: Part, values: Mapping[str, Mean | Games | None]) -> dict[str, Any]:
    figures = {name: None if value is None else asdict(value) for name, value in values.items()}
    turn = "both" if part.turn is None else part.turn
    return {"category": part.category, "turn": turn, "models": figures}

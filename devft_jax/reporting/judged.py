"""Judged answers to open questions in the report of a run, and on the page of a comparison.

`devft judge` compares several models, so its results belong to its own folder. They are shown if this folder is `judged`
within the one that is reported: `devft judge runs/mine bundled --out runs/mine/judged`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import read_json
from devft_jax.reporting import page
from devft_jax.reporting.page import Cell

FOLDER = "judged"
"""Subfolder of a run or a comparison whose judgements are shown."""

Entry = Mapping[str, Any]
"""Figures of every model in a category of questions at a turn, as in `results.json`."""


def judged_answers(folder: Path) -> str:
    """The section on judged answers; empty if there are no results of `devft judge`.

    Args:
      folder: of the run or the comparison.
    """
    file = folder / FOLDER / "results.json"
    if not file.is_file():
        return ""
    try:
        found = read_json(file)
        if found["results"] is None:
            return ""
        parts = _parts(found)
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        words = f"{FOLDER}/results.json is damaged or of another version; start `devft judge` with this folder again."
        parts = [page.paragraph(words, "alert")]
    return page.section("judged", "Judged answers to open questions", *parts)


def _parts(found: Mapping[str, Any]) -> list[str]:
    """The words and tables of a file of results."""
    results = found["results"]
    models = ", ".join(name if name == what else f"{name} ({what})" for name, what in found["models"].items())
    words = (
        f"Answers to {Path(found['questions']).name}, judged by {found['judge']}; models: {models}. Standard errors are "
        "over questions; a * marks a difference whose 95 % interval excludes zero."
    )
    parts = [page.paragraph(words)]
    if results["ratings"]:
        parts.append(page.scrolling(_ratings(results)))
    if results["games"]:
        parts.append(page.scrolling(_games(results)))
    unrated = {name: count for name, count in results["unrated"].items() if count}
    if unrated:
        shown = ", ".join(f"{name} {count}" for name, count in unrated.items())
        parts.append(page.paragraph(f"Judgements without a rating, which count nowhere: {shown}."))
    return parts


def _ratings(results: Mapping[str, Any]) -> str:
    names, baseline = list(results["ratings"][0]["models"]), results["baseline"]
    apart = {(entry["category"], entry["turn"]): entry["models"] for entry in results["differences"]}
    rows: list[list[Cell]] = []
    for label, entry in _labelled(results["ratings"]):
        ratings = [_shown(entry["models"][name]) for name in names]
        differences = apart[entry["category"], entry["turn"]]
        rows.append([label, *ratings, *(_shown(found, sign=True) for found in differences.values())])
    others = [f"{name} \u2212 {baseline}" for name in names if name != baseline]
    return page.table("Mean ratings from 1 to 10", ["questions", *names, *others], rows, "figures")


def _games(results: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    for label, entry in _labelled(results["games"]):
        for name, games in entry["models"].items():
            counts = [games[count] for count in ("wins", "ties", "losses", "inconsistent", "no_verdict")]
            rows.append([label, name, *counts, _shown(games["rate"])])
    title = f"Pairs with {results['baseline']}, in both orders; inconsistent ones are among the ties, which are half a win"
    header = ["questions", "model", "wins", "ties", "losses", "inconsistent", "no verdict", "share of wins"]
    return page.table(title, header, rows, "figures")


def _labelled(entries: Sequence[Entry]) -> list[tuple[str, Entry]]:
    """Every category over all turns, then all questions turn by turn, each with its name."""
    # As they are written: turn by turn and then over both, each time by category and then over all.
    whole, everything = entries[-1]["turn"], entries[-1]["category"]
    first = [(entry["category"], entry) for entry in entries if entry["turn"] == whole]
    by_turn = [entry for entry in entries if entry["turn"] != whole and entry["category"] == everything]
    return first + [(f"{everything}, turn {entry['turn']}", entry) for entry in by_turn]


def _shown(found: Mapping[str, Any] | None, *, sign: bool = False) -> str | None:
    """A mean with its standard error; None if there is none."""
    if found is None:
        return None
    text = f"{found['value']:+.2f}" if sign else f"{found['value']:.2f}"
    text += "" if found["error"] is None else f" \u00b1 {found['error']:.2f}"
    low, high = found["low"], found["high"]
    return f"{text}*" if sign and low is not None and high is not None and not low <= 0 <= high else text

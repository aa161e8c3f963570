"""The report as a page: its style, and the elements of its sections.

Every text that comes from data is passed through `escape`. Nothing is loaded and no script runs; the data behind a picture
is in a table that browsers can unfold from the keyboard.
"""

from collections.abc import Iterable, Sequence

from devft_jax.reporting import svg
from devft_jax.reporting.svg import Picture, escape, exactly
from devft_jax.storage.ownership import PAGE_MARK

Cell = str | int | float | None

STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #57606a; --line: #d8dde2; --paper: #fff; --ground: #f5f6f8;
  --accent: #0072B2; --alert: #a63c00; --good: #00694c }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a9b1b9; --line: #363b40; --paper: #181818; --ground: #0f1011; --accent: #6db9ea;
    --alert: #ffa366; --good: #4fd1a5 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem } h2 { font-size: 1.3rem; margin: 0 0 .5rem }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem }
p { margin: .4rem 0 .8rem; max-width: 46rem } .soft, figcaption, caption { color: var(--soft) }
.alert { color: var(--alert); font-weight: 600 }
a { color: var(--accent) } :focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.kicker { font-size: .85rem; letter-spacing: .04em; color: var(--soft); margin: 0 0 .3rem }
.state { display: inline-block; border: 1.5px solid currentColor; border-radius: 99px; padding: .05rem .7rem;
  font-weight: 600; font-size: .9rem } .state.done { color: var(--good) } .state.open { color: var(--alert) }
.lead { font-size: 1.15rem; max-width: 52rem }
nav ul { list-style: none; margin: 1rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem }
section, .tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px }
section { padding: 20px 24px; margin-top: 18px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 12px; margin: 18px 0 0 }
.tile { padding: 12px 16px } .tile dt { font-size: .85rem; color: var(--soft) }
.tile dd { margin: 0 } .tile .figure { font-size: 1.55rem; font-weight: 650; line-height: 1.25; white-space: nowrap }
.tile .from { color: var(--soft); font-weight: 400; font-size: 1.2rem } .tile .note { font-size: .84rem; color: var(--soft) }
figure { margin: .8rem 0 .4rem } figcaption { font-size: .9rem; max-width: 46rem }
.scroll { overflow-x: auto } .scroll > svg { display: block; max-width: 100%; height: auto }
.wide > svg { min-width: 640px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--least)), 1fr)); gap: 4px 22px }
.legend { list-style: none; margin: .5rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.4rem;
  font-size: .9rem }
.legend svg { vertical-align: -4px; margin-right: .4rem } .narrow { display: none }
details { margin: .5rem 0 } summary { cursor: pointer; color: var(--accent); font-size: .92rem }
table { border-collapse: collapse; min-width: min(100%, 26rem); font-size: .88rem;
  font-variant-numeric: tabular-nums; margin: .4rem 0 }
caption { text-align: left; padding: .2rem 0 .4rem; font-size: .88rem }
th, td { padding: .22rem .7rem .22rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 600 } tbody th { font-weight: 500 } .number { text-align: right }
.figures td { text-align: right; white-space: nowrap }
.matrix { font-size: .72rem } .matrix th, .matrix td { padding: .1rem .3rem }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; margin: .5rem 0 }
code { font-family: ui-monospace, monospace } td code { overflow-wrap: anywhere }
@media screen and (max-width: 600px) { .broad { display: none } .narrow { display: block }
  main { padding: 16px 10px 40px } section { padding: 14px } h1 { font-size: 1.4rem }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px } .tile { padding: 8px 10px } .tile .figure { font-size: 1.15rem }
  .tile .from { font-size: 1rem } }
@media print {
  @page { margin: 14mm }
  body { background: #fff; font-size: 11pt } main { max-width: none; padding: 0 } nav, details { display: none }
  section { border: 0; border-radius: 0; padding: 0; margin-top: 10mm }
  h2, h3, .legend, p:has(+ figure), p:has(+ .pair), p:has(+ .legend) { break-after: avoid }
  .pair { grid-template-columns: repeat(auto-fit, minmax(calc(.66 * var(--least)), 1fr)) }
  figure, .tile, .keep, .legend, p, tr { break-inside: avoid } .scroll { overflow: visible } .wide > svg { min-width: 0 }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def page(title: str, styles: Iterable[str], body: Iterable[str]) -> str:
    """The whole document.

    Args:
      title: title of the page.
      styles: styles of the pictures, in addition to the common ones.
      body: the parts of the page.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            PAGE_MARK,
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}{svg.STYLE}{''.join(styles)}</style>",
            "</head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text.

    Args:
      text: plain text.
      kind: a CSS class of the style.
    """
    return f"<p{_class(kind)}>{escape(text)}</p>"


def section(name: str, title: str, *parts: str) -> str:
    """A part of the page with a heading.

    Args:
      name: anchor for links.
      title: the heading.
      *parts: content of the section.
    """
    opening = f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>'
    return f"{opening}{_joined(parts)}</section>"


def heading(text: str) -> str:
    """A heading within a section.

    Args:
      text: plain text.
    """
    return f"<h3>{escape(text)}</h3>"


def figure(picture: Picture, caption: str, *below: str, wide: bool = True, kind: str = "") -> str:
    """A picture with its caption.

    Args:
      picture: the picture.
      caption: plain text; empty for none.
      *below: parts below the caption.
      wide: whether it scrolls if the screen is too narrow for it.
      kind: "broad" hides it on narrow screens, "narrow" on all others.
    """
    box = "scroll wide" if wide else "scroll"
    reachable = f' tabindex="0" role="group" aria-label="{escape(picture.title)}"' if wide else ""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    hint = paragraph("The picture scrolls sideways.", "narrow soft") if wide and not kind else ""
    return (
        f'<figure{_class(kind)}>{hint}<div class="{box}"{reachable}>{picture.inline()}</div>{text}{_joined(below)}</figure>'
    )


def side_by_side(*parts: str, least: int = 300) -> str:
    """Parts next to each other if each has `least` pixels.

    Args:
      *parts: parts of the page.
      least: pixels that each one needs.
    """
    return f'<div class="pair" style="--least: {least}px">{_joined(parts)}</div>'


def code(text: str) -> str:
    """Text to copy, kept character by character.

    Args:
      text: plain text.
    """
    return f"<pre><code>{exactly(text)}</code></pre>"


def legend(entries: Iterable[tuple[Picture, str]]) -> str:
    """The legend of a chart's lines.

    Args:
      entries: the look and the name of each line.
    """
    items = "".join(f"<li>{look.inline(decoration=True)}{escape(name)}</li>" for look, name in entries)
    return f'<ul class="legend">{items}</ul>'


def scrolling(*parts: str) -> str:
    """Parts that scroll sideways if the screen is too narrow for them.

    Args:
      *parts: parts of the page.
    """
    return f'<div class="scroll">{_joined(parts)}</div>'


def folded(summary: str, *parts: str) -> str:
    """Parts that unfold below a line.

    Args:
      summary: the line that is always visible.
      *parts: parts of the page.
    """
    return f"<details><summary>{escape(summary)}</summary>{scrolling(*parts)}</details>"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "") -> str:
    """A table whose first column names its rows; numbers are right-aligned, None is shown as a dash.

    Args:
      caption: caption of the table.
      header: names of the columns.
      rows: cells of the rows.
      kind: a CSS class of the style.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{_cell(row[0], 'th')}{''.join(_cell(value, 'td') for value in row[1:])}</tr>" for row in rows)
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<table{_class(kind)}>{inside}</table>"


def _cell(value: Cell, tag: str) -> str:
    scope = ' scope="row"' if tag == "th" else ""
    if isinstance(value, str):
        return f"<{tag}{scope}>{escape(value)}</{tag}>"
    text = "\u2013" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<{tag}{scope} class="number">{text}</{tag}>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)

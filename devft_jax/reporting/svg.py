"""Common parts of the charts: self-contained SVG, and the same picture as part of a page, in light, dark and print."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from devft_jax.files import printable

# The palette of Okabe and Ito, which colour-blind people can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

# Height for the title of a picture in its own file; within a page a heading gives the title.
TITLE_HEIGHT = 32

STYLE = """
  svg text { font: 13px system-ui, sans-serif; fill: #222 }
  svg .title { font-size: 15px; font-weight: 600 }
  svg .note { font-size: 11px } svg .small { font-size: 9px } svg .count { font-size: 10px }
  svg .strong { font-weight: 600 } svg .soft { fill: #555 } svg .alert { fill: #a63c00; font-weight: 600 }
  svg .axis { stroke: #222; stroke-width: 1 } svg .grid { stroke: #ddd; stroke-width: 1 }
  svg .ground { fill: #fff } svg .band { fill: #000; fill-opacity: .045 } svg .bar { fill: #666 }
  svg .border { fill: none; stroke: #D55E00; stroke-width: 1.8 }
  svg .outline { fill: none; stroke: #222; stroke-width: 1.4 } svg .empty { fill: #f4f4f4 }
  svg .aside { stroke: #555; stroke-width: 1.2; fill: none }
  @media screen and (prefers-color-scheme: dark) {
    svg text { fill: #eee } svg .soft { fill: #b4b4b4 } svg .alert { fill: #ffa366 }
    svg .axis { stroke: #eee } svg .grid { stroke: #3d3d3d } svg .ground { fill: #181818 }
    svg .band { fill: #fff; fill-opacity: .07 } svg .bar { fill: #aaa }
    svg .outline { stroke: #eee } svg .empty { fill: #222 } svg .aside { stroke: #b4b4b4 }
  }
"""

_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
# Characters that XML 1.0 cannot hold at all.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def exactly(text: str) -> str:
    """Any text as content or attribute of XML, character by character.

    Control characters, including those that change the direction of text, are shown as their escapes; other characters that
    XML cannot hold become U+FFFD.

    Args:
      text: any text.
    """
    shown = printable(text, keep="\t\n\r")
    return "".join(_MARKUP.get(letter, letter) for letter in _FORBIDDEN.sub("\ufffd", shown))


def escape(text: str) -> str:
    """As `exactly`, on one line and without double spaces.

    Args:
      text: any text.
    """
    return exactly(" ".join(printable(text, keep="\t\n\r").split()))


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Attributes:
      title: plain text.
      width: in pixels.
      height: in pixels, with `TITLE_HEIGHT` free at the top.
      body: SVG elements.
      left: x at which the title begins, in pixels.
      style: CSS in addition to the common style.
    """

    title: str
    width: int
    height: int
    body: Sequence[str] = field(repr=False)
    left: int = 16
    style: str = field(default="", repr=False)

    def document(self) -> str:
        """The picture as a file of its own."""
        name = escape(self.title)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{name}">',
            f"<style>{STYLE}{self.style}</style>",
            f'<rect class="ground" width="{self.width}" height="{self.height}"/>',
            f'<text class="title" x="{self.left}" y="26">{name}</text>',
        ]
        return "\n".join([*parts, *self.body, "</svg>"]) + "\n"

    def _repr_svg_(self) -> str:
        """How Jupyter shows a picture that is the last value of a cell."""
        return self.document()

    def inline(self, *, decoration: bool = False) -> str:
        """The picture without title and style, for a page that has both.

        Args:
          decoration: whether screen readers skip it.
        """
        role = 'aria-hidden="true"' if decoration else f'role="img" aria-label="{escape(self.title)}"'
        height = self.height - TITLE_HEIGHT
        return "\n".join(
            [
                f'<svg viewBox="0 {TITLE_HEIGHT} {self.width} {height}" width="{self.width}" height="{height}" {role}>',
                *self.body,
                "</svg>",
            ]
        )


def beside(title: str, pictures: Sequence[Picture], *, gap: int = 20) -> Picture:
    """Several pictures side by side in one, each below its own title.

    Args:
      title: title of the whole.
      pictures: from left to right, at least one.
      gap: free pixels between two of them.
    """
    parts, x, top = [], 0, TITLE_HEIGHT + 4
    for picture in pictures:
        size = f'width="{picture.width}" height="{picture.height}"'
        parts.append(f'<svg x="{x}" y="{top}" {size} viewBox="0 0 {picture.width} {picture.height}">')
        parts.append(f'<text class="strong" x="{picture.left}" y="26">{escape(picture.title)}</text>')
        parts += [*picture.body, "</svg>"]
        x += picture.width + gap
    styles = dict.fromkeys(picture.style for picture in pictures)
    height = top + max(picture.height for picture in pictures)
    return Picture(title, x - gap, height, parts, left=pictures[0].left, style="".join(styles))

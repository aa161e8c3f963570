"""What the charts share: one self-contained SVG document that follows the reader's light or dark setting."""

import re
from collections.abc import Iterable

# The palette of Okabe and Ito, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #222 }
  .title { font-size: 15px; font-weight: 600 }
  .axis { stroke: #222; stroke-width: 1 }
  .grid { stroke: #ddd; stroke-width: 1 }
  .ground { fill: #fff }
  @media (prefers-color-scheme: dark) {
    text { fill: #eee } .axis { stroke: #eee } .grid { stroke: #444 } .ground { fill: #181818 }
  }
"""

_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
# Characters that XML 1.0 cannot hold at all.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(text: str) -> str:
    """Any text as content or attribute of XML, on one line; what XML cannot hold becomes U+FFFD."""
    whole = " ".join(_FORBIDDEN.sub("\ufffd", text).split())
    return "".join(_MARKUP.get(letter, letter) for letter in whole)


def document(title: str, width: int, height: int, body: Iterable[str], *, left: int, style: str = "") -> str:
    """An SVG of these elements under a title that begins at `left`; `style` is CSS besides the common one."""
    name = escape(title)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
    parts = [
        opening,
        f"<style>{_STYLE}{style}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        f'<text class="title" x="{left}" y="26">{name}</text>',
    ]
    return "\n".join([*parts, *body, "</svg>"]) + "\n"

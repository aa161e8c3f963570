"""The site's build is strict: what is undocumented, misdocumented or linked to nothing fails it."""

import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

sphinx = pytest.importorskip("sphinx.cmd.build", reason="the site needs the extra docs")

MODULE = '''"""A module, with `code`, |bars|, *stars* and trailing_ underscores, which are text.

    a_ij = <x_i, x_j> / (||x_i|| ||x_j||)

It has:
- a list,
  whose items go on.
"""

from dataclasses import dataclass


@dataclass
class Pair:
    """Two numbers.

    Attributes:
        left: the first
        right: the second, which is 2 * `left`
    """

    left: int
    right: int = 0


def double(number: int, times: int = 1) -> int:
    """Twice a number.

    Args:
        number: what is doubled, in `units`; its
            text goes on
        times: how often

    Returns:
        The number, doubled.

    Raises:
        ValueError: where `number` is negative.
    """
    return number * 2**times
'''
PAGE = """# Page

```{toctree}
api/house
```

[`double`](../house/rooms.py), [the module](../house/rooms.py)
[a file](../note.md), $x_i^2$.
"""


def built(folder: Path, module: str = MODULE, page: str = PAGE) -> tuple[bool, str]:
    """Whether a package and a page build with the site's own configuration, and the warnings or the page."""
    name = f"house{sum(found.startswith('house') for found in sys.modules)}"
    package, docs = folder / name, folder / "docs"
    package.mkdir()
    docs.mkdir()
    (package / "__init__.py").write_text('"""A package."""\n')
    (package / "rooms.py").write_text(module)
    (folder / "note.md").write_text("A note.\n")
    (docs / "index.md").write_text(page.replace("house", name))
    site, warnings = folder / "site", folder / "warnings"
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--no-color", "--warning-file", str(warnings)]
    options += ["--conf-dir", str(REPOSITORY / "docs"), "--doctree-dir", str(folder / "doctrees")]
    options += ["--define", f"api_package={name}", "--define", f"api_folder={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        status = sphinx.build_main([*options, str(docs), str(site)])
    return status == 0, (warnings.read_text() or (site / "index.html").read_text()).replace(name, "house")


def test_a_documented_package_builds_and_its_pages_lead_to_it(tmp_path):
    works, page = built(tmp_path)
    assert works, page
    assert 'href="api/house.rooms.html#house.rooms.double"' in page
    assert 'href="api/house.rooms.html#module-house.rooms"' in page
    assert 'href="_downloads/' in page
    assert "<math" in page
    [entry] = (tmp_path / "site" / "api").glob("house*.rooms.html")
    text = entry.read_text()
    assert "||x_i|| ||x_j||" in text
    assert "<li><p>a list," in text


def test_the_packages_docstrings_have_no_fault(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "_extensions"))
    from docstring_check import faults

    found = faults("devft_jax", str(REPOSITORY))
    assert not found, "\n".join(f"{fault.file}:{fault.line}: {fault.message}" for fault in found)


def test_the_site_asks_no_other_server(tmp_path):
    built(tmp_path)
    for path in (tmp_path / "site").rglob("*.html"):
        for marker in ('src="http', 'src="//', 'rel="stylesheet" href="http', "@import url(http"):
            assert marker not in path.read_text(), path


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('    """Two numbers.\n', '    """Numbers.\n', None),
        (
            "def double",
            "def undocumented(number):\n    return number\n\n\ndef double",
            "rooms.undocumented has no docstring",
        ),
        ("class Pair:", "class Bare:\n    pass\n\n\n@dataclass\nclass Pair:", "rooms.Bare has no docstring"),
        ("        right: the second, which is 2 * `left`\n", "", "Pair.right has no docstring"),
        ('"""A module', 'X = """A module', "rooms has no docstring"),
        ("        times: how often\n", "", "leaves out times"),
        ("        times: how often\n", "        time: how often\n", "'time' does not appear in the function signature"),
        (
            "        times: how often\n",
            "        times: how often\n            x: `unclosed\n",
            "start-string without end-string",
        ),
    ],
)
def test_what_a_docstring_lacks_fails_the_build(tmp_path, old, new, fault):
    assert old in MODULE
    works, heard = built(tmp_path, MODULE.replace(old, new, 1))
    assert works == (fault is None), heard
    assert (fault or "") in heard


@pytest.mark.parametrize(
    "link",
    ["[gone](gone.md)", "[gone](../house/gone.py)", "[gone](#gone)", "![gone](gone.svg)"],
)
def test_a_link_to_nothing_fails_the_build(tmp_path, link):
    works, heard = built(tmp_path, page=f"{PAGE}\n{link}\n")
    assert not works
    assert "gone" in heard

"""The notebooks in the repository: run from top to bottom without an error, by public names alone; small, and linked."""

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST_BYTES = 300_000


def cells_of(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def is_public(module_name: str, name: str) -> bool:
    """Whether a module offers a name: in `__all__`, as a module below it, or, without `__all__`, by defining it itself."""
    if "._" in module_name:
        return False
    module = importlib.import_module(module_name)
    if name in getattr(module, "__all__", ()):
        return True
    if name.startswith("_"):
        return False
    if hasattr(module, "__path__") and importlib.util.find_spec(f"{module_name}.{name}"):
        return True
    home = getattr(getattr(module, name, None), "__module__", module_name)
    return not hasattr(module, "__all__") and hasattr(module, name) and home == module_name


def faults(code: str) -> Iterator[str]:
    """What a cell uses of the package, or of an object, that is not public."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("devft_jax") and "._" in alias.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("devft_jax"):
            for alias in node.names:
                if not is_public(str(node.module), alias.name):
                    yield f"{node.module}.{alias.name}"


@EACH
def test_a_notebook_was_run_from_top_to_bottom(path: Path):
    code = cells_of(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not re.search(r"/(home|root|opt|work|tmp)/", json.dumps(outputs)), "outputs name folders of one machine"


@EACH
def test_a_notebook_is_small(path: Path):
    assert path.stat().st_size < MOST_BYTES


@EACH
def test_a_notebook_uses_the_public_api_alone(path: Path):
    assert not [fault for cell in cells_of(path, "code") for fault in faults("".join(cell["source"]))]


@pytest.mark.parametrize(
    "code",
    [
        "run._trainer",
        "from devft_jax import _HOMES",
        "from devft_jax.developmental import np",
        "from devft_jax.reporting.chart import escape",
        "from devft_jax.storage.rows import _Disk",
        "from devft_jax.developmental.transition import LayerGrams",
    ],
)
def test_what_is_not_public_is_found(code):
    assert list(faults(code))


def test_what_is_public_is_not_a_fault():
    code = """
from devft_jax import __version__, train
from devft_jax.reporting import Progress, chart
from devft_jax.reporting.chart import WIDTH, Line
import devft_jax.data
"""
    assert not list(faults(code))


@EACH
def test_a_notebooks_links_lead_to_files(path: Path):
    text = "".join(line for cell in cells_of(path, "markdown") for line in cell["source"])
    links = re.findall(r"\]\(([^)#\s]+)\)", text)
    assert links
    for link in links:
        assert link.startswith("http") or (path.parent / link).exists(), link


@EACH
def test_readme_and_site_lead_to_a_notebook(path: Path):
    assert f"(notebooks/{path.name})" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"(../notebooks/{path.name})" in (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")


def test_there_are_notebooks():
    names = ["client_scaling.ipynb", "first_run.ipynb", "fusion_mathematics.ipynb", "growth_schedules.ipynb"]
    assert [path.name for path in NOTEBOOKS] == names

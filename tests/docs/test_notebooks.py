"""The notebooks in the repository: run once from top to bottom without an error; their links lead to files."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom(path: Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not re.search(r"/(home|root|opt|work|tmp)/", json.dumps(outputs)), "outputs name folders of one machine"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_links_lead_to_files(path: Path):
    text = "".join(line for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for line in cell["source"])
    links = re.findall(r"\]\(([^)#\s]+)\)", text)
    assert links
    for link in links:
        assert link.startswith("http") or (path.parent / link).exists(), link


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["first_run.ipynb"]

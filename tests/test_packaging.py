"""What a release holds: the wheel's files and metadata, the lists of dependencies, the citation."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import devft_jax
from tests.conftest import REPOSITORY

CARD = {"jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy", "chex", "pytest"}
"""The packages that requirements.txt names."""
IMPORTED_AS = {"orbax-checkpoint": "orbax", "pyyaml": "yaml"}
COME_WITH = {"huggingface_hub", "pyarrow", "tokenizers", "tqdm"}
"""What transformers and datasets themselves depend on."""
OPTIONAL = {"httpx", "lm_eval", "nltk", "sentencepiece", "sklearn", "tensorboardX", "threadpoolctl", "wandb"}
"""What extras install, and trackers that are used where they are installed; imported where they are used."""


def requirements(lines: list[str]) -> dict[str, str]:
    """Version bounds by package, from requirement strings without markers; extras of the project itself left out."""
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)\s*([<>=!~].*)?", line) for line in lines if "[" not in line)
    return {parts[1]: parts[2] or "" for parts in found if parts}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The project's wheel, built from a copy of what the checkout holds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("devft_jax", "tests", "benchmarks", "experiments"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    built = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", built, "dist"], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(source / "dist" / done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_requirements_txt_names_the_cards_packages_at_the_projects_versions(project):
    text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    named = requirements([line for line in text.splitlines() if not line.startswith("#")])
    declared = requirements(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert named.keys() == CARD
    assert named == {name: declared[name] for name in CARD}


def test_the_package_imports_its_dependencies_and_uses_each(project):
    declared = {IMPORTED_AS.get(name, name) for name in requirements(project["dependencies"])}
    used: set[str] = set()
    for path in Path(devft_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            used |= {module.split(".")[0] for module in modules}
    used -= set(sys.stdlib_module_names) | {"devft_jax"}
    assert declared <= used, "declared and never imported"
    assert used <= declared | COME_WITH | OPTIONAL, "imported and not declared"


def test_the_wheel_holds_the_package_its_types_and_its_model_and_nothing_else(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"devft_jax"}
    assert "devft_jax/py.typed" in names
    assert "devft_jax/assets/base/config.json" in names
    assert any(name.startswith("devft_jax/assets/base/") and name.endswith(".safetensors") for name in names)
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "devft_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_wheels_metadata_names_licence_and_run_time_packages_only(wheel, metadata, project):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == devft_jax.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"[\w.-]+", line)[0] for line in always) == sorted(requirements(project["dependencies"]))
    assert not {"pytest", "chex"} & set(requirements(always))
    [licence] = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert "Apache License" in wheel.read(licence).decode()[:200]


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == devft_jax.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    [paper] = citation["references"]
    assert paper["url"].endswith("2508.00041")


def test_the_changelog_keeps_its_form():
    """Unreleased first, then the versions; sections of keep-a-changelog, each once and with entries."""
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    heads = [release.splitlines()[0] for release in releases]
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\]( - \d{4}-\d{2}-\d{2})?", head) for head in heads[1:])
    for release in releases:
        sections = re.split(r"^### ", release, flags=re.MULTILINE)[1:]
        titles = [section.splitlines()[0] for section in sections]
        assert set(titles) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
        assert len(set(titles)) == len(titles)
        assert all(re.search(r"^- ", section, flags=re.MULTILINE) for section in sections)

"""The packages import downward only, without circles, and no file, class or function is too large."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import devft_jax
from devft_jax.commands.cli import COMMANDS

ROOT = Path(devft_jax.__file__).parent
ORDER = (
    "errors",
    "lazy",
    "typing",
    "files",
    "options",
    "developmental",
    "runtime",
    "storage",
    "models",
    "data",
    "federated",
    "evaluation",
    "accounting",
    "fleets",
    "config",
    "reporting",
    "harness",
    "testing",
    "training",
    "inference",
    "benchmarking",
    "exporting",
    "planning",
    "comparing",
    "probing",
    "judging",
    "",
    "commands",
    "__main__",
)
"""Every package after those that it may import. The package's face and its command stand above them all."""
AT_THE_ROOT = {"__init__", "__main__", "errors", "lazy", "options", "typing", "testing"}
MOST_LINES = {"file": 450, "class": 300, "function": 70}


def modules():
    """Every module of the package by its dotted name, with its file."""
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file


def imported(name, file, known):
    """The modules of the package that a file imports, inside its functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "devft_jax")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "devft_jax":
            assert node.level == 0
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def package_of(name):
    return name.split(".")[1] if "." in name else ""


def test_nothing_else_stands_at_the_root():
    assert {file.stem for file in ROOT.glob("*.py")} <= AT_THE_ROOT
    packages = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()} - {"assets"}
    assert packages <= set(ORDER)


def test_no_package_imports_one_above_it():
    known = dict(modules())
    above = [
        f"{name} imports {other}"
        for name, file in known.items()
        if package_of(name) in ORDER
        for other in imported(name, file, known)
        if package_of(other) not in ORDER[: ORDER.index(package_of(name)) + 1]
    ]
    assert not above


def test_no_two_modules_import_each_other():
    known = dict(modules())
    arrows = {name: set(imported(name, file, known)) - {name} for name, file in known.items()}
    # What imports only what is settled is settled; a circle never is.
    settled: set[str] = set()
    while ready := {name for name, others in arrows.items() if others <= settled} - settled:
        settled |= ready
    assert not sorted(set(arrows) - settled)


def test_files_classes_and_functions_fit_into_a_reader():
    crowded = []
    for name, file in modules():
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES["file"]:
            crowded.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                most = MOST_LINES["class" if isinstance(node, ast.ClassDef) else "function"]
                if node.end_lineno - node.lineno >= most:
                    crowded.append(f"{name}.{node.name}")
    assert not crowded


HEAVY = {"jax", "numpy", "flax", "optax", "orbax", "scipy", "sklearn", "safetensors", "tokenizers", "transformers"}
"""Libraries that take longer to import than a help text or a list takes to write."""


@pytest.mark.parametrize(
    "words", [["list"], ["list", "hetlora"], ["list", "devft"], ["list", "topk"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_and_lists_are_shown_without_heavy_libraries(words):
    script = (
        "import sys\n"
        "from devft_jax.commands.cli import main\n"
        "try:\n"
        f"    main({words})\n"
        "except SystemExit as stopped:\n"
        "    assert stopped.code in (0, None)\n"
        f"imported = sorted({HEAVY} & set(sys.modules))\n"
        "assert not imported, imported\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_an_import_leaves_the_devices_to_the_user():
    """JAX takes no more settings of its devices once an array was made, so no module may make one while it is read."""
    names = [name for name, _ in modules() if package_of(name) != "__main__"]
    # Every module that is named in the answer has used a device.
    script = (
        "import importlib, sys\n"
        "from jax._src import xla_bridge\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert not xla_bridge.backends_are_initialized(), name\n"
    )
    subprocess.run([sys.executable, "-c", script, *names], check=True)

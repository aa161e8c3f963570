"""Which command is meant, and what is loaded to say so."""

import subprocess
import sys

import pytest

from devft_jax.commands.cli import COMMANDS, command_of

HEAVY = ("jax", "jaxlib", "numpy", "transformers", "orbax", "huggingface_hub")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module(name):
    assert command_of(name).__module__ == f"devft_jax.commands.{name}"


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["plna"]], ids=lambda words: " ".join(words) or "nothing")
def test_help_the_version_and_mistakes_import_nothing_heavy(words):
    code = f"import sys\nfrom devft_jax.commands.cli import run_command\nrun_command({words!r})\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.splitlines()[-1].split())

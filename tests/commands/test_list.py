import importlib

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.commands.list import WIDTH, listing, method_text
from devft_jax.config.methods import record_of
from devft_jax.config.presets import PRESETS
from devft_jax.config.run_config import RunConfig
from devft_jax.data import BUILT_IN, METHODS, TEMPLATES
from devft_jax.developmental import GROWTHS
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.channels.options import LINKS, MODULES


def section(title):
    """A section's lines, without its title."""
    return next(part.splitlines()[1:] for part in listing().split("\n\n") if part.startswith(title))


def entries(title):
    """The words of each name of a section."""
    found = {}
    for line in section(title):
        if line[2] != " ":
            name, *rest = line.split()
            found[name] = rest
        else:
            found[name] += line.split()
    return {name: " ".join(words) for name, words in found.items()}


def test_every_name_that_the_command_line_takes_is_listed():
    for title, names in (
        ("algorithms", ALGORITHMS),
        ("growths", GROWTHS),
        ("presets", PRESETS),
        ("data sets", BUILT_IN),
        ("templates", TEMPLATES),
        ("partitions", METHODS),
        ("channels", LINKS),
    ):
        assert list(entries(title)) == list(names)


def test_algorithms_and_growths_say_where_they_come_from_what_they_send_and_what_they_keep():
    made = {name: make(RunConfig(algorithm=name)) for name, make in ALGORITHMS.items()}
    for title, items in (("algorithms", made), ("growths", GROWTHS)):
        told = entries(title)
        for name, item in items.items():
            assert item.reference
            assert item.message
            assert item.state
            assert told[name] == " ".join(f"{item.reference} sends {item.message} keeps {item.state}".split())


def test_lines_are_narrow_and_the_command_prints_them(capsys):
    assert max(map(len, listing().splitlines())) <= WIDTH
    assert run_command(["list"]) == 0
    assert capsys.readouterr().out == listing() + "\n"


@pytest.mark.parametrize("name", [*ALGORITHMS, *GROWTHS])
def test_a_method_is_shown_with_its_mathematics_its_reference_and_its_options(name, capsys):
    text = method_text(name)
    kind = "algorithm" if name in ALGORITHMS else "growth"
    record = record_of(kind, name)
    assert text.startswith(f"{kind} {name}\n")
    words = " ".join(text.split())
    for part in (record.reference, f"sends {record.message}", f"keeps {record.state}", record.because):
        assert part in words
    own = ALGORITHMS[name] if kind == "algorithm" else GROWTHS[name]
    assert importlib.import_module(own.module).__doc__.strip() in text
    shown = {line.split()[0] for line in text.splitlines() if line.startswith("  --")}
    assert shown == {f"--{each.replace('_', '-')}" for each in record.reads}
    assert max(map(len, text.splitlines())) <= 127
    assert run_command(["list", name.upper()]) == 0
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("name", LINKS)
def test_a_channel_is_shown_with_its_mathematics_and_its_options(name):
    text = method_text(name)
    assert text.startswith(f"channel {name}\nsends  {LINKS[name]}\n")
    assert importlib.import_module(MODULES[name]).__doc__.strip() in text
    assert {line.split()[0] for line in text.splitlines() if line.startswith("  --")} == {
        "--channel",
        "--error-feedback",
        "--rounding",
    }
    assert "It can be used with fedit, fedsa-lora, c2a" in text
    assert max(map(len, text.splitlines())) <= 127


def test_the_options_of_a_method_have_defaults_and_bounds():
    words = " ".join(method_text("hetlora").split())
    assert "--rank-shrink FLOAT" in words
    assert "Allowed: in (0, 1]. (default: 0.99)" in words
    assert "Allowed: momentum, update. (default: momentum)" in " ".join(method_text("fedadam").split())
    assert "but not weighting, message_dtype, channel or fleet: it sends no message" in " ".join(
        method_text("central").split()
    )

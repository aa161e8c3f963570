from devft_jax.commands.cli import run_command
from devft_jax.commands.list import WIDTH, listing
from devft_jax.config.run_config import PRESETS, RunConfig
from devft_jax.data import BUILT_IN, METHODS, TEMPLATES
from devft_jax.developmental import GROWTHS
from devft_jax.federated.algorithms import ALGORITHMS


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

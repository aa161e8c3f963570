"""The section on the configuration: the options, the command that reproduces them, and the versions used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.reporting import page
from devft_jax.reporting.page import Cell
from devft_jax.reporting.story import Story


@dataclass(frozen=True)
class Option:
    """One option of the configuration.

    Attributes:
      name: name of the option.
      value: value of the option.
      start: the value in the defaults or the preset.
      text: its help text.
      execution: whether it changes how the run is executed, not what it computes.
    """

    name: str
    value: Any
    start: Any
    text: str
    execution: bool


@dataclass(frozen=True)
class Settings:
    """The configuration as the report shows it.

    Attributes:
      options: all options.
      start: the starting point of `devft run`: a preset by name, or the defaults (None).
      command: a command line that reproduces the configuration.
    """

    options: Sequence[Option]
    start: str | None
    command: str


def shown(value: Any) -> str:
    """A value as text, with tuples as the command line writes them.

    Args:
      value: value of an option.
    """
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return "\u2013" if value is None else str(value)


def settings(story: Story, configured: Settings) -> str:
    """The section on the configuration.

    Args:
      story: the run.
      configured: the run's configuration.
    """
    start = "the defaults" if configured.start is None else f"the preset {configured.start}"
    changed = [option for option in configured.options if option.value != option.start]
    same = [option for option in configured.options if option.value == option.start]
    return page.section(
        "settings",
        "Configuration and reproduction",
        page.heading("The command"),
        *_command(story, configured),
        page.heading(f"What differs from {start}"),
        _options("What is computed", [option for option in changed if not option.execution], start, story.objects),
        _options("How it is executed, without effect on the result", [o for o in changed if o.execution], start, {}),
        page.folded(
            f"The {len(same)} options with the values of {start}",
            _options("What is computed", [option for option in same if not option.execution], start, story.objects),
            _options("How it is executed, without effect on the result", [o for o in same if o.execution], start, {}),
        ),
        page.heading("Versions"),
        page.table("Versions of the last execution", ["", "version"], list(story.record.versions.items())),
    )


def _command(story: Story, configured: Settings) -> list[str]:
    parts = []
    if story.objects:
        given = ", ".join(f"{name} ({text})" for name, text in story.objects.items())
        parts.append(
            page.paragraph(
                f"This run was started from Python with objects: {given}. A command alone cannot reproduce it; the one "
                "below gives all others, to be passed to train() together with the same objects.",
                "alert",
            )
        )
    if story.lengthened_after:
        parts.append(
            page.paragraph(
                f"This run was planned for fewer rounds and lengthened after round {story.lengthened_after}. The command "
                "resumes it in its own folder; in another folder it starts a run that is planned for all rounds from the "
                "beginning, with other stages or learning rates.",
                "alert",
            )
        )
    parts.append(page.paragraph("Name another folder after --out to run it again; in the same folder the run continues."))
    parts.append(page.code(configured.command))
    return parts


def _options(title: str, options: Sequence[Option], start: str, objects: Mapping[str, str]) -> str:
    if not options:
        return ""
    rows: list[list[Cell]] = []
    for option in options:
        value = shown(option.value)
        if option.name in objects:
            value = f"object {objects[option.name]} in place of {value}"
        row = [option.name, value, *([shown(option.start)] if option.value != option.start else []), option.text]
        rows.append(list(row))
    differs = options[0].value != options[0].start
    header = ["option", "value", *([f"in {start}"] if differs else []), "meaning"]
    return page.table(title, header, rows)

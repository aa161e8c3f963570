"""`devft replay`: train one client of one round again, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import parse_options
from devft_jax.options import operand, verbatim
from devft_jax.runtime.screen import show


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Train one client of one round again, step by step, to find where its values stop being finite."""

    folder: str = operand(path=True)
    """The run's folder."""
    client: str = verbatim()
    """The client's name, as in the table of the split."""
    round: int
    """The round, counted from 1."""


def command(arguments: Sequence[str]) -> int:
    """Run `devft replay` and return its exit code.

    Args:
      arguments: the words after `devft replay`.
    """
    asked = parse_options("devft replay", ReplayOptions, arguments)
    from devft_jax.training.replay import replay

    require_devices()
    again = replay(asked.folder, client=asked.client, round=asked.round)
    show(f"client '{again.client}', stage {again.stage}, round {again.round}")
    if not again.took_part:
        show("this client did not take part in the round; these are the steps that it would have made")
    show("step        loss   gradient     update")
    for step in again.steps:
        show(f"{step.step:>4}  {step.loss:>10.5f}  {step.gradient_norm:>9.4g}  {step.update_norm:>9.4g}")
    show(again.first_break or "every value is finite")
    return 0

"""`devft plan`: estimate what a run would cost, from shapes alone."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devft_jax.commands.parsing import START, parse_configuration
from devft_jax.runtime.screen import show

if TYPE_CHECKING:
    from devft_jax.config.run_config import RunConfig
    from devft_jax.planning.options import PlanOptions

ABOUT = (
    "Estimate a run from shapes alone: bytes, FLOPs, memory and time of every stage, compared with end-to-end training.\n\n"
    f"Takes every option of `devft run`. {START}"
)


def parse_plan(arguments: Sequence[str]) -> "tuple[RunConfig, PlanOptions]":
    """The configuration to plan, and the plan's own options.

    Args:
      arguments: the words after `devft plan`.

    Returns:
      The configuration and the options; their types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    from devft_jax.planning.options import PlanOptions

    return parse_configuration(arguments, PlanOptions, command="devft plan", about=ABOUT)


def command(arguments: Sequence[str]) -> int:
    """Run `devft plan` and return its exit code.

    Args:
      arguments: the words after `devft plan`.
    """
    config, options = parse_plan(arguments)
    from devft_jax.planning.plan import to_plain
    from devft_jax.planning.planner import make_plan
    from devft_jax.planning.text import to_text

    plan = make_plan(config, options)
    show(json.dumps(to_plain(plan), indent=1) if options.json else to_text(plan))
    return 0

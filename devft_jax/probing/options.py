"""The options of a probe, besides those of a run that it reads."""

from dataclasses import dataclass

from devft_jax.options import option, path

DEFAULT_PLANS = (
    "devft",
    "devft:fusion=anchor",
    "devft:grouping=even_blocks",
    "devft:grouping=even_blocks:fusion=anchor",
    "skip-grow",
    "top-grow",
    "progfed",
)
"""The plans that are compared by default: fused and selected layers of two groupings, the layers of largest influence, the
exact model's top layers, and its lowest layers."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What is measured, and where the results go."""

    plans: tuple[str, ...] | None = option(None, each_once=True)
    """Plans to compare: growths of `devft list`, or user-defined ones as package.module:name, each with its own options as
    :option=value, such as devft:fusion=anchor. By default devft and devft:grouping=even_blocks, both also with
    :fusion=anchor, and skip-grow, top-grow and progfed."""
    depths: tuple[int, ...] | None = option(None, at_least=1, at_most=10**6, each_once=True)
    """Numbers of layers of the submodels, such as 4,8,16; by default those of `capacity_schedule` below the full depth."""
    examples: int = option(32, at_least=1, at_most=10**7)
    """Number of examples of the data on whose answers losses and gradients are measured; a fixed random part of it."""
    out: str | None = path(None)
    """Folder for probe.json, probe.csv and probe.svg, which are replaced if they are there."""
    json: bool = False
    """Print the results as JSON."""

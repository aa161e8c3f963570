"""`devft export`: a run, or an adapter with its base, as a folder that PEFT or transformers loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import parse_options
from devft_jax.options import operand, path, verbatim
from devft_jax.runtime.screen import show


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers loads."""

    source: str = operand(path=True)
    """The run's folder, of an unfinished run too; or a PEFT adapter's, for the form merged."""
    out: str = path()
    """The folder to write; absent, empty, or an earlier export of the same request."""
    form: Literal["adapter", "merged", "submodel", "submodel-adapter"] = "adapter"
    """Adapter (PEFT), merged (the model with it), submodel (a stage's, merged) or submodel-adapter (both apart)."""
    stage: int | None = None
    """The stage, from 1, as of its newest checkpoint; by default the run's newest checkpoint."""
    client: str | None = verbatim(None)
    """Whose model, in a run where every client has its own, such as one of local-only."""
    model: str | None = path(None)
    """The base, as for `devft run`; by default the one that the run or the adapter names."""
    dtype: str = "auto"
    """Stored type of a model's weights: auto (as in the base), bfloat16, float32 or float16."""


def command(arguments: Sequence[str]) -> int:
    """Run `devft export` and return its exit code.

    Args:
      arguments: the words after `devft export`.
    """
    asked = parse_options("devft export", ExportOptions, arguments)
    from devft_jax.exporting.export import export

    require_devices()
    written = export(
        asked.source,
        asked.out,
        form=asked.form,
        stage=asked.stage,
        client=asked.client,
        model=asked.model,
        dtype=asked.dtype,
    )
    show(str(written))
    return 0

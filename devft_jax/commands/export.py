"""`devft export`: write a run, or an adapter with its base, as a folder that PEFT or transformers can load."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import parse_options
from devft_jax.options import operand, path, verbatim
from devft_jax.runtime.screen import show


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers can load."""

    source: str = operand(path=True)
    """A run's folder, finished or not; or a PEFT adapter's folder, for the form merged."""
    out: str = path()
    """Folder to write: absent, empty, or an earlier export with the same options."""
    form: Literal["adapter", "merged", "submodel", "submodel-adapter"] = "adapter"
    """What to write: adapter (PEFT), merged (the model with the adapter merged in), submodel (a stage's submodel, merged) or
    submodel-adapter (a stage's submodel and its adapter, separately)."""
    stage: int | None = None
    """The stage, counted from 1, taken from its newest checkpoint; by default the run's newest checkpoint."""
    client: str | None = verbatim(None)
    """The client whose model to write, in a run where every client has its own, such as with local-only."""
    model: str | None = path(None)
    """The base model, as for `devft run`; by default the one that the run or the adapter names."""
    dtype: str = "auto"
    """Data type in which a model's weights are stored: auto (as in the base), bfloat16, float32 or float16."""


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

"""`devft export`: write a run, or an adapter with its base, as a folder that PEFT or transformers can load."""

from collections.abc import Sequence

from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import parse_options
from devft_jax.runtime.screen import show


def command(arguments: Sequence[str]) -> int:
    """Run `devft export` and return its exit code.

    Args:
      arguments: the words after `devft export`.
    """
    from devft_jax.exporting.options import ExportOptions

    asked = parse_options("devft export", ExportOptions, arguments)
    from devft_jax.exporting.export import export

    require_devices()
    written = export(
        asked.source,
        asked.out,
        form=asked.form,
        stage=asked.stage,
        round=asked.round,
        client=asked.client,
        model=asked.model,
        dtype=asked.dtype,
    )
    show(str(written))
    return 0

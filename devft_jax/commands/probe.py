"""`devft probe`: which submodels of a model are worth training, measured before anything is trained."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devft_jax.commands.flags import Section, flags_of
from devft_jax.commands.jax_setup import require_devices
from devft_jax.commands.parsing import START, parse_sections, title_of
from devft_jax.options import operand
from devft_jax.runtime.screen import show

if TYPE_CHECKING:
    from devft_jax.config.run_config import RunConfig
    from devft_jax.probing.options import ProbeOptions

ABOUT = (
    "Measure which submodels of a model are worth training: for every plan and depth the untrained loss on the data's "
    "answers, the alignment of the submodel's LoRA gradient with the full model's, and what a step costs. Nothing is "
    f"trained.\n\nReads those options of `devft run` that a probe depends on. {START}"
)

READ = {
    *("seed", "data", "fields", "template", "max_length", "overlong", "cache_dir"),
    *("quantization", "fused_precision", "fuse_from", "rank", "targets"),
    *("capacity_schedule", "stages", "similarity", "laplacian", "lone_ends", "beta", "gain_matching", "transfer"),
    *("distil_steps", "distil_rate", "probe_data", "probe_examples"),
    *("algorithm", "message_dtype", "batch_size"),
    *("dtype", "devices", "model_shards", "examples_per_pass", "remat", "attention", "head_rows"),
}
"""Options of a run that a probe reads; those of growths are for all plans that do not set them themselves."""


@dataclass(frozen=True, kw_only=True)
class WhatOptions:
    """The model."""

    model: str = operand(path=True)
    """A Hugging Face folder or name, or bundled for the small LLaMA model that comes with the package."""


def parse_probe(arguments: Sequence[str]) -> "tuple[RunConfig, ProbeOptions]":
    """The configuration, with its model, and the probe's own options.

    Args:
      arguments: the words after `devft probe`.

    Returns:
      The configuration and the options; their types are checked.

    Raises:
      InputError: the words cannot be parsed.
    """
    from devft_jax.config.run_config import NAMES
    from devft_jax.probing.options import ProbeOptions

    own = [Section("model", flags_of(WhatOptions)), Section(title_of(ProbeOptions), flags_of(ProbeOptions))]
    without = [name for name in NAMES if name not in READ]
    config, values = parse_sections(arguments, own, command="devft probe", about=ABOUT, without=without)
    return dataclasses.replace(config, model=values.pop("model")), ProbeOptions(**values)


def command(arguments: Sequence[str]) -> int:
    """Run `devft probe` and return its exit code.

    Args:
      arguments: the words after `devft probe`.
    """
    config, options = parse_probe(arguments)
    from devft_jax.probing.formats import check_out, to_plain, to_text, write_files
    from devft_jax.probing.probe import probe
    from devft_jax.reporting import Progress

    if options.out is not None:
        check_out(options.out)
    require_devices()
    found = probe(config, options, progress=Progress(sys.stderr))
    show(json.dumps(to_plain(found), indent=1) if options.json else to_text(found))
    if options.out is not None:
        show(f"{write_files(found, options.out)}: probe.json, probe.csv and probe.svg", stream=sys.stderr)
    return 0

"""The options of an export.

adapter            the adapter at full depth, in PEFT's format
merged             the model with that adapter merged into its weights, in Hugging Face's layout
submodel           a stage's submodel, its fused layers merged with its adapter, as a model of that depth
submodel-adapter   the bare submodel as a model, and its adapter in the subfolder `adapter`
"""

from dataclasses import dataclass
from typing import Literal, get_args

from devft_jax.inference.options import SelectionOptions
from devft_jax.models.options import DTYPES
from devft_jax.options import operand, option, path

Form = Literal["adapter", "merged", "submodel", "submodel-adapter"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(SelectionOptions):
    """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers can load."""

    source: str = operand(path=True)
    """A run's folder, finished or not; or a PEFT adapter's folder, for the form merged."""
    out: str = path()
    """Folder to write: absent, empty, or an earlier export with the same options."""
    form: Form = option("adapter", choices=get_args(Form))
    """What to write: adapter (PEFT), merged (the model with the adapter merged in), submodel (a stage's submodel, merged) or
    submodel-adapter (a stage's submodel and its adapter, separately)."""
    dtype: str = option("auto", choices=("auto", *DTYPES.values()))
    """Data type in which a model's weights are stored: auto (as in the base), bfloat16, float32 or float16."""

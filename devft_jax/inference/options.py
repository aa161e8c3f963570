"""The options of the model that is used: which one it is, and how it is loaded."""

from dataclasses import dataclass
from typing import Literal

from devft_jax.options import path, verbatim


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which model of the source to use."""

    stage: int | None = None
    """The stage, counted from 1, taken from its newest checkpoint; by default the run's newest checkpoint."""
    round: int | Literal["best"] | None = None
    """The round, counted from 1, in place of a stage; its checkpoint must have been kept. best is that of the lowest
    held-out loss in the last stage of a run with `stop_after`."""
    client: str | None = verbatim(None)
    """The client whose model to use, in a run where every client has its own, such as with local-only."""
    model: str | None = path(None)
    """The base model, as for `devft run`; by default the one that the run or the adapter names."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the model is loaded, where this should differ from the run's settings."""

    adapter: str | None = path(None)
    """Folder of a PEFT adapter; by default the run's own, and none for other models."""
    template: str | None = None
    """Wording of the prompt: a template of `devft list`, or auto (chat if the tokenizer has a chat template, else alpaca);
    by default the run's, and completion (the prompt unchanged) for other models."""
    quantization: Literal["none", "int8", "int4", "nf4"] | None = None
    """Storage of the frozen projections; by default as in the run, and none for other models."""
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """Precision of activations and frozen weights; by default as in the run, and auto (float32 on CPU) for other models."""

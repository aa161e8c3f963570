"""Federated instruction data: from files, a glob or a name to clients with tokenised examples."""

from typing import TYPE_CHECKING

from devft_jax.lazy import lazy_names

if TYPE_CHECKING:
    from devft_jax.data.batches import (
        bucket_for,
        draw_examples,
        evaluation_batches,
        evaluation_order,
        fitted_lengths,
        gather_batch,
        length_buckets,
    )
    from devft_jax.data.built_in import BUILT_IN, is_built_in
    from devft_jax.data.choices import METHODS
    from devft_jax.data.description import describe, split_record
    from devft_jax.data.examples import Examples
    from devft_jax.data.federated_data import FederatedData, build_federated_data, pool, public_examples, some_examples
    from devft_jax.data.groups import Groups
    from devft_jax.data.options import (
        HELD_OUT,
        DataOptions,
        check_data_found,
        has_held_out,
        resolved_partition,
        validate_data,
    )
    from devft_jax.data.prompts import TEMPLATES, Segment, render
    from devft_jax.data.records import Record, Records, Source, Turn
    from devft_jax.data.sources import load_sources
    from devft_jax.data.split import Client
    from devft_jax.data.tokens import tokenize

__all__ = [
    "BUILT_IN",
    "HELD_OUT",
    "METHODS",
    "TEMPLATES",
    "Client",
    "DataOptions",
    "Examples",
    "FederatedData",
    "Groups",
    "Record",
    "Records",
    "Segment",
    "Source",
    "Turn",
    "bucket_for",
    "build_federated_data",
    "check_data_found",
    "describe",
    "draw_examples",
    "evaluation_batches",
    "evaluation_order",
    "fitted_lengths",
    "gather_batch",
    "has_held_out",
    "is_built_in",
    "length_buckets",
    "load_sources",
    "pool",
    "public_examples",
    "render",
    "resolved_partition",
    "some_examples",
    "split_record",
    "tokenize",
    "validate_data",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    __all__,
    {
        "batches": (
            "bucket_for",
            "draw_examples",
            "evaluation_batches",
            "evaluation_order",
            "fitted_lengths",
            "gather_batch",
            "length_buckets",
        ),
        "built_in": ("BUILT_IN", "is_built_in"),
        "description": ("describe", "split_record"),
        "examples": ("Examples",),
        "federated_data": ("FederatedData", "build_federated_data", "pool", "public_examples", "some_examples"),
        "groups": ("Groups",),
        "options": ("HELD_OUT", "DataOptions", "check_data_found", "has_held_out", "resolved_partition", "validate_data"),
        "choices": ("METHODS",),
        "prompts": ("TEMPLATES", "Segment", "render"),
        "records": ("Record", "Records", "Source", "Turn"),
        "sources": ("load_sources",),
        "split": ("Client",),
        "tokens": ("tokenize",),
    },
)

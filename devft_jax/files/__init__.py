"""Reads files and text from outside, with one clear sentence for each error, and writes files atomically."""

from devft_jax.files.parsing import (
    MOST_BYTES,
    decoded,
    json_objects,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
)
from devft_jax.files.paths import cache_folder, checked_path, existing_folder, whole_path
from devft_jax.files.shown import as_cell, as_code_block, as_markdown, printable
from devft_jax.files.writing import exclusive_temporary, write_atomically

__all__ = [
    "MOST_BYTES",
    "as_cell",
    "as_code_block",
    "as_markdown",
    "cache_folder",
    "checked_path",
    "decoded",
    "exclusive_temporary",
    "existing_folder",
    "json_objects",
    "parse_json",
    "parse_yaml",
    "printable",
    "read_json",
    "read_text",
    "read_yaml",
    "whole_path",
    "write_atomically",
]

"""Data files that tests write, and what is read of them."""

import gzip
import json

from devft_jax.data.sources import load_sources

GOOD = '{"instruction": "a", "output": "b"}'
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return str(path)


def write_rows(path, rows):
    as_lines = "jsonl" in path.name
    return write(path, "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows))


def everything(sources):
    return [(source.name, list(source)) for source in sources]


def only_record(path, row, **options):
    [source] = load_sources(write_rows(path, [row]), **options)
    [record] = source
    return record


def write_parquet(path, rows, **options):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def read(path, **options):
    return [record for source in load_sources(str(path), **options) for record in source]

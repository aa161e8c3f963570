"""Compiled programs are stored on disk: a later process with the same shapes compiles nothing."""

import dataclasses
import json
import os
import subprocess
import sys

from tests.tiny_run import flags, write_run_inputs

# Runs the command line and prints how many compilations JAX asked its cache on disk for, and how many it found there.
COUNTED = """
import collections, json, sys
import jax
from devft_jax.commands import cli

seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **details: seen.update([event.rpartition("/")[2]]))
try:
    cli.main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps({name: seen[name] for name in ("compile_requests_use_cache", "cache_hits", "cache_misses")}))
"""


def compilations(config, cache):
    command = [sys.executable, "-c", COUNTED, "run", *flags(config)]
    own = {**os.environ, "DEVFT_CACHE": str(cache)}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_with_the_same_shapes_compiles_nothing(tmp_path, word_tokenizer):
    written = write_run_inputs(tmp_path, word_tokenizer)
    config = dataclasses.replace(
        written, growth="end-to-end", capacities=None, rounds=1, devices=1, out=str(tmp_path / "first")
    )
    first = compilations(config, tmp_path / "cache")
    assert first["cache_misses"] > first["cache_hits"]
    # Another run: other participants, other draws and another rate.
    other = dataclasses.replace(config, seed=1, learning_rate=(0.01,), out=str(tmp_path / "second"))
    second = compilations(other, tmp_path / "cache")
    assert second["cache_hits"] == second["compile_requests_use_cache"] > second["cache_misses"] == 0

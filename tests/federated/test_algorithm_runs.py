"""The paper's rivals as runs, end to end and with DevFT: each learns, and goes on bit for bit after an interruption."""

import dataclasses
import json
import shutil

import jax
import pytest

from devft_jax.models.llama import init_base
from devft_jax.reporting import Progress
from devft_jax.run import train
from tests.federated.harness import assert_identical
from tests.tiny_run import MODEL, write_run_inputs

QUIET = Progress(quiet=True)
NAMES = ("fedsa-lora", "ffa-lora", "flora", "fedex-lora", "fedrot-lora", "federa")


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    """Two rounds of two clients each, of three; the half-precision messages are what a real run would send."""
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), MODEL))
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer, base=base)
    return dataclasses.replace(
        written,
        rounds=2,
        devices=1,
        checkpoint_every=1,
        message_dtype="bfloat16",
        client_ranks=(4, 2, 3),
    )


def rows_of(run):
    """A run's rounds without what depends on the clock or on what was compiled."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    left_out = ("seconds", "tokens_per_second", "program_bytes")
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


@pytest.mark.parametrize("growth", [pytest.param("end-to-end", marks=pytest.mark.slow), "devft"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_goes_on_bit_for_bit(config, tmp_path, name, growth):
    capacities = (2, 4) if growth == "devft" else None
    chosen = dataclasses.replace(config, algorithm=name, growth=growth, capacities=capacities, out=str(tmp_path / "run"))
    whole = train(chosen, progress=QUIET)
    assert whole.summary["updates_dropped"] == 0
    assert whole.summary["final_loss"] < whole.summary["base_loss"]
    shutil.rmtree(whole.folder / "checkpoints" / "2")
    rows = rows_of(whole)
    again = train(chosen, progress=QUIET)
    assert again.summary["resumed_after"] == [1]
    assert rows_of(again) == rows
    assert_identical(again.adapter, whole.adapter)
    assert again.summary["final_loss"] == whole.summary["final_loss"]

"""Held-out scores against full logits of single rows and against real greedy decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.evaluation.held_out import HeldOut, jit_scores
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.llama import Compute, forward
from devft_jax.models.options import LoraOptions
from devft_jax.runtime.compiled import CompiledPrograms
from tests.tiny import CONFIG, examples_from, random_adapter, random_base, random_examples

BASE = random_base()
ADAPTER = random_adapter(LoraOptions(rank=2, alpha=3.0, targets=PROJECTIONS, dropout=0.3))
BUCKETS = (8, 16)


@jax.jit
def logits_of(adapter, tokens):
    """f32[T, V] of one row."""
    return forward(CONFIG, BASE, adapter, tokens[None])[0]


def decode(adapter, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding adds to a prompt, one at a time."""
    tokens = list(prompt)
    for _ in range(count):
        row = np.zeros(13, np.int32)
        row[: len(tokens)] = tokens
        tokens.append(int(jnp.argmax(logits_of(adapter, row)[len(tokens) - 1])))
    return tokens[len(prompt) :]


@functools.cache
def examples():
    """Nine random examples, and five whose completion is what the adapted model would write itself."""
    random = random_examples(9, seed=6, lengths=(5, 13))
    rows = [random.row(n).tolist() for n in range(len(random))]
    prompts = random.prompt_lengths.tolist()
    for index in range(5):
        prompt = rows[index][: 2 + index % 2]
        length = 13 if index > 2 else 5
        rows.append([*prompt, *decode(ADAPTER, prompt, length - len(prompt))])
        prompts.append(len(prompt))
    # The last one goes wrong in its last token only.
    rows[-1][-1] = (rows[-1][-1] + 1) % CONFIG.vocabulary
    return examples_from(rows, prompts)


def row(index: int) -> tuple[np.ndarray, int]:
    """One example's tokens, unpadded, and the length of its prompt."""
    held = examples()
    return held.row(index), int(held.prompt_lengths[index])


def evaluator(batch_size=4, devices=1, programs=None):
    return HeldOut(
        CONFIG,
        Compute(),
        examples(),
        buckets=BUCKETS,
        batch_size=batch_size,
        devices=jax.local_devices()[:devices],
        programs=programs or CompiledPrograms(),
    )


def score(adapter=ADAPTER, **options):
    return evaluator(**options)(BASE, adapter)


def by_hand(adapter) -> tuple[float, np.ndarray]:
    """Mean loss per completion token, and which completions greedy decoding reproduces."""
    losses, hits = [], []
    for index in range(len(examples())):
        tokens, prompt = row(index)
        log_probabilities = jax.nn.log_softmax(logits_of(adapter, tokens))
        losses += [-float(log_probabilities[place - 1, tokens[place]]) for place in range(prompt, len(tokens))]
        written = decode(adapter, tokens[:prompt].tolist(), len(tokens) - prompt)
        hits.append(written == tokens[prompt:].tolist())
    return float(np.mean(losses)), np.array(hits)


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "bare base"])
def test_loss_and_hits_are_those_of_single_rows_and_real_decoding(adapted):
    adapter = ADAPTER if adapted else None
    loss, hits = by_hand(adapter)
    found = score(adapter)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(found.hits, hits)
    assert found.accuracy == pytest.approx(hits.mean())
    assert found.examples == len(examples()) == 14
    if adapted:
        np.testing.assert_array_equal(np.flatnonzero(hits), [9, 10, 11, 12])


@pytest.mark.parametrize(("batch_size", "devices"), [(14, 1), (3, 8)])
def test_scores_do_not_depend_on_batches_or_devices(batch_size, devices):
    usual = score()
    found = score(batch_size=batch_size, devices=devices)
    # 14 rows in batches of 4 or 8 leave two rows of padding, in one of 14 none: padding is not counted.
    assert found.loss == pytest.approx(usual.loss, rel=1e-5)
    np.testing.assert_array_equal(found.hits, usual.hits)
    assert found.examples == usual.examples


@pytest.mark.parametrize(("most", "devices", "rows"), [(4, 1, 4), (32, 1, 14), (13, 1, 7), (32, 4, 16), (6, 4, 8)])
def test_batches_are_of_equal_size_so_that_few_rows_are_empty(most, devices, rows):
    assert evaluator(batch_size=most, devices=devices).batch_size == rows


def test_one_program_per_shape_serves_every_evaluation():
    # What other tests have compiled does not serve here.
    jit_scores.cache_clear()
    programs = CompiledPrograms()
    held_out = HeldOut(
        CONFIG,
        Compute(),
        examples(),
        buckets=BUCKETS,
        batch_size=4,
        devices=jax.local_devices()[:1],
        programs=programs,
    )
    first = held_out(BASE, ADAPTER)
    assert programs.count == len(BUCKETS)
    other = held_out(BASE, random_adapter(LoraOptions(rank=2, alpha=3.0, targets=PROJECTIONS, dropout=0.3), seed=9))
    assert programs.count == len(BUCKETS)
    assert first.loss != other.loss

"""Log-likelihoods over the packed trie equal those of plain forward passes, one request at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.errors import InputError
from devft_jax.harness import packing
from devft_jax.harness.rows import Rows, ScoringRequest
from devft_jax.harness.scoring import Scorer
from devft_jax.models.llama import forward
from devft_jax.models.options import LoraOptions
from devft_jax.models.quantization import quantize_base
from tests.tiny import CONFIG, random_adapter, random_base

LENGTH = 96
MODEL = dataclasses.replace(CONFIG, max_length=LENGTH)
DEVICES = jax.devices()[:1]


@pytest.fixture(scope="module")
def base():
    return random_base(MODEL)


@pytest.fixture(scope="module")
def plainly(base):
    """A function that scores a request by one forward pass over all of its tokens."""

    @jax.jit
    def log_probabilities(tokens, adapter):
        return jax.nn.log_softmax(forward(MODEL, base, adapter, tokens[None])[0])

    def score(request, adapter=None):
        tokens = np.zeros(LENGTH, np.int32)
        size = len(request.tokens) - 1
        tokens[:size] = request.tokens[:-1]
        found = np.asarray(log_probabilities(jnp.asarray(tokens), adapter))[:size]
        places, targets = np.arange(size)[size - request.scored :], request.tokens[1:][size - request.scored :]
        hits = found[places].argmax(axis=1) == targets
        return float(found[places, targets].astype(np.float64).sum()), bool(hits.all())

    return score


def some_requests(seed: int, count: int = 40) -> list[ScoringRequest]:
    """Requests that branch at many places, few tokens apart, some the same and some one the beginning of another."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 38, 60).tolist() for _ in range(2)]
    requests = []
    for _ in range(count):
        shared = prompts[rng.integers(2)][: rng.choice([0, 5, 30, 50])]
        context = [1, *shared, *rng.integers(1, 3, rng.integers(0, 8)).tolist()]
        requests.append(ScoringRequest.of(context, rng.integers(1, 4, rng.integers(1, 7)).tolist(), LENGTH))
    # Continuations of one token, all that there are: some are the likeliest.
    requests += [ScoringRequest.of([1, *prompts[0]], [token], LENGTH) for token in range(40)]
    return [requests[index] for index in rng.permutation(len(requests))]


def assert_equal(found, expected):
    np.testing.assert_allclose([each.value for each in found], [value for value, _ in expected], atol=1e-4)
    assert [each.greedy for each in found] == [greedy for _, greedy in expected]
    assert len(set(expected)) > 40
    assert {greedy for _, greedy in expected} == {True, False}


@pytest.fixture
def eager(monkeypatch):
    """Cache every beginning that two rows share, however short, so that caches are nested."""
    monkeypatch.setattr(packing, "WORTH", 1)
    monkeypatch.setattr(packing, "SHORTEST_PREFIX", 2)


@pytest.mark.parametrize("sequence_tokens", [16, 64, 512])
def test_equals_plain_forward_passes(base, plainly, eager, sequence_tokens):
    """Whatever is cached and however much is packed into one sequence."""
    requests = some_requests(0)
    found = Scorer(MODEL, base, devices=DEVICES, sequence_tokens=sequence_tokens).score(requests)
    assert_equal(found, [plainly(request) for request in requests])


def test_caches_of_caches(eager):
    """What the tests above rely on: the plan of their requests has groups within groups."""
    outermost = packing.plan(Rows.of(some_requests(0)), 16)
    assert any(group.groups for group in outermost.groups)


def test_devices_divide_the_sequences(base, plainly, eager):
    requests = some_requests(1)
    found = Scorer(MODEL, base, devices=jax.devices()[:4], sequence_tokens=16, sequences=2).score(requests)
    assert_equal(found, [plainly(request) for request in requests])


@pytest.mark.parametrize("window", [3, 20])
def test_sliding_window(base, window, eager):
    """A window shorter than a cached beginning, and than a packed sequence."""
    model = dataclasses.replace(MODEL, sliding_window=window)
    requests = some_requests(2)
    found = Scorer(model, base, devices=DEVICES, sequence_tokens=24).score(requests)
    alone = Scorer(model, base, devices=DEVICES, sequence_tokens=1)
    np.testing.assert_allclose(
        [each.value for each in found], [alone.score([request])[0].value for request in requests], atol=1e-4
    )
    request = max(requests, key=lambda request: len(request.tokens))
    logits = jax.jit(forward, static_argnums=0)(model, base, None, request.tokens[None, :-1])[0]
    chosen = jax.nn.log_softmax(logits)[jnp.arange(len(logits)), request.tokens[1:]]
    assert alone.score([request])[0].value == pytest.approx(float(chosen[-request.scored :].sum()), abs=1e-4)


def test_an_adapter_stays_unmerged(base, plainly, eager):
    adapter = random_adapter(LoraOptions(rank=2, alpha=4.0), MODEL)
    requests = some_requests(3)
    found = Scorer(MODEL, base, adapter, devices=DEVICES, sequence_tokens=32).score(requests)
    assert_equal(found, [plainly(request, adapter) for request in requests])
    assert found[0].value != Scorer(MODEL, base, devices=DEVICES).score(requests[:1])[0].value


def test_a_quantised_base(base, eager):
    """Scored as inference runs it: without expanding the whole base."""
    packed = quantize_base(base, "int8")
    requests = some_requests(4)
    found = Scorer(MODEL, packed, devices=DEVICES, sequence_tokens=32).score(requests)
    alone = [Scorer(MODEL, packed, devices=DEVICES).score([request])[0] for request in requests[:5]]
    np.testing.assert_allclose([each.value for each in found[:5]], [each.value for each in alone], atol=1e-4)


@settings(max_examples=6)
@given(seed=st.integers(0, 10**6), shuffle=st.randoms())
def test_order_and_grouping_change_nothing(seed, shuffle):
    requests = some_requests(seed, 12)
    order = list(range(len(requests)))
    shuffle.shuffle(order)
    scorer = Scorer(MODEL, random_base(MODEL), devices=DEVICES, sequence_tokens=64)
    there = scorer.score([requests[index] for index in order])
    assert there == [scorer.score(requests)[index] for index in order]


def test_every_request_is_answered_once(base, eager):
    requests = some_requests(5)
    steps = list(Scorer(MODEL, base, devices=DEVICES, sequence_tokens=16).steps(requests))
    answered = [number for step in steps for number in step.answers]
    assert sorted(answered) == list(range(len(requests)))
    assert sum(step.tokens for step in steps) == steps[0].total


def test_no_token_is_computed_twice():
    """The letters of a question cost one row, and a common beginning is computed once."""
    question = [5, 6, 7, 8]
    requests = [ScoringRequest.of([1, 2, 3, *question], [letter], LENGTH) for letter in (10, 11, 12, 13)]
    requests += [ScoringRequest.of([1, 2, 3, 9], [10, 11], LENGTH)]
    assert packing.plan(Rows.of(requests), 64).tokens == 7 + 2
    assert [len(numbers) for numbers in Rows.of(requests).requests] == [4, 1]


def test_a_long_common_beginning_is_cached_where_it_pays():
    rng = np.random.default_rng(0)
    shared = rng.integers(1, 38, 200).tolist()
    rows = Rows.of([ScoringRequest.of([*shared, *rng.integers(1, 38, 40).tolist()], [3], 1000) for _ in range(30)])
    outermost = packing.plan(rows, 256)
    [group] = outermost.groups
    # Rows may begin alike by chance behind the common beginning, so that a token or two are spared.
    assert (group.start, group.length) == (0, 200)
    assert len(group.bins) == 5
    assert 200 + 30 * 39 <= outermost.tokens <= 200 + 30 * 40


def test_what_is_too_long_is_cut_on_the_left(base, plainly):
    context = list(range(1, 38)) * 4
    long = ScoringRequest.of(context, [4, 5], LENGTH)
    assert long.tokens.tolist() == [*context, 4, 5][-LENGTH - 1 :]
    [found] = Scorer(MODEL, base, devices=DEVICES).score([long])
    assert found.value == pytest.approx(plainly(long)[0], abs=1e-4)


def test_a_continuation_longer_than_the_model_is_refused():
    with pytest.raises(InputError, match=r"97 tokens is to be scored and the model reads 96; leave the task out"):
        ScoringRequest.of([1], [2] * 97, LENGTH)


def test_an_empty_continuation_is_certain(base):
    [found] = Scorer(MODEL, base, devices=DEVICES).score([ScoringRequest.of([1, 2], [], LENGTH)])
    assert (found.value, found.greedy) == (0.0, True)

"""Prompts that begin alike: their beginning is read once, and every answer is the one without that."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from devft_jax.harness.scoring import Scorer
from devft_jax.models.generation import generate as module
from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.quantization import quantize_base
from devft_jax.runtime.devices import OVER_DEVICES
from tests.models.conftest import CONFIG, random_adapter

RNG = np.random.default_rng(0)
BEGINNING = RNG.integers(0, CONFIG.vocabulary, 70)
RESTS = [RNG.integers(0, CONFIG.vocabulary, length) for length in (7, 1, 4)]
PROMPTS = [[*BEGINNING.tolist(), *rest.tolist()] for rest in RESTS]
OPTIONS = GenerationOptions(max_new_tokens=9, tokens_per_look=4, generation_batch=4)


@pytest.fixture
def read(monkeypatch):
    """Shapes of the prompts that every pass reads."""
    shapes, begin = [], module.begin

    def recorded(base, adapter, tokens, *arguments, **options):
        shapes.append(tokens.shape)
        return begin(base, adapter, tokens, *arguments, **options)

    monkeypatch.setattr(module, "begin", recorded)
    return shapes


def assert_equal_with_prefix(read, base, adapter=None, *, config=CONFIG, shared=70, devices=1, options=OPTIONS):
    """The same tokens as without a prefix, from a pass over the rest of each prompt alone."""
    expected = generate(config, base, adapter, PROMPTS, options=options, eos_ids=(3,))
    scorer = Scorer(config, base, adapter, devices=jax.devices()[:devices])
    placement = NamedSharding(scorer.mesh, OVER_DEVICES) if devices > 1 else None
    found = generate(
        config,
        scorer.base,
        scorer.adapter,
        PROMPTS,
        options=options,
        eos_ids=(3,),
        placement=placement,
        prefix=scorer.prefix_of(BEGINNING[:shared]),
    )
    assert found == expected
    assert read == [(4, 128), (4, 32 if shared >= 45 else 128)]


@pytest.mark.parametrize("shared", [1, 64, 70])
def test_prefixes_of_any_length(base, read, shared):
    assert_equal_with_prefix(read, base, shared=shared)


@pytest.mark.parametrize("window", [3, 20, 75])
def test_a_window_shorter_and_longer_than_the_prefix(base, read, window):
    assert_equal_with_prefix(read, base, config=dataclasses.replace(CONFIG, sliding_window=window))


def test_an_adapter_on_a_packed_base(base, read):
    assert_equal_with_prefix(read, quantize_base(base, "int8"), random_adapter(CONFIG))


def test_devices_divide_the_rests(base, read):
    assert_equal_with_prefix(read, base, devices=2)


def test_draws_follow_the_row(base, read):
    options = dataclasses.replace(OPTIONS, temperature=0.8, top_p=0.9, sampling_seed=5)
    assert_equal_with_prefix(read, base, options=options)


def test_up_to_the_models_end(base, read):
    """The padded prefix and the padded rest are longer than the model."""
    short = dataclasses.replace(CONFIG, max_length=88)
    options = dataclasses.replace(OPTIONS, max_new_tokens=11)
    expected = generate(short, base, None, PROMPTS, options=options)
    prefix = Scorer(short, base, devices=jax.devices()[:1]).prefix_of(BEGINNING)
    assert prefix.keys.shape[2] == 128
    assert generate(short, base, None, PROMPTS, options=options, prefix=prefix) == expected
    assert {len(answer.tokens) for answer in expected} == {11}


def test_the_prefix_is_what_prompts_begin_with(base):
    """A cache of other tokens gives other answers, so the tests above can fail."""
    scorer = Scorer(CONFIG, base, devices=jax.devices()[:1])
    answers = generate(CONFIG, base, None, PROMPTS, options=OPTIONS, prefix=scorer.prefix_of(BEGINNING[::-1]))
    assert answers != generate(CONFIG, base, None, PROMPTS, options=OPTIONS)
    with pytest.raises(ValueError, match="a prompt ends within the prefix of 70 tokens"):
        generate(CONFIG, base, None, [BEGINNING.tolist()], options=OPTIONS, prefix=scorer.prefix_of(BEGINNING))

"""Generation: the cache changes nothing, neither do neighbours, padding and chunks; draws have the stated distribution."""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from devft_jax.errors import InputError
from devft_jax.models.generation import decoding
from devft_jax.models.generation.decoding import decode_step, prefill
from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.generation.sampling import draw_tokens, sampling_keys
from devft_jax.models.huggingface.end_tokens import end_token_ids
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute, forward, hidden_states
from devft_jax.models.quantization import quantize_base
from devft_jax.models.sharding import place
from devft_jax.runtime.devices import OVER_DEVICES, client_mesh
from tests.models.conftest import CONFIG, random_adapter, random_base
from tests.models.huggingface.test_families import EXAMPLES

LENGTHS = (7, 1, 4)
PROMPTS = [np.random.default_rng(length).integers(0, CONFIG.vocabulary, length).tolist() for length in LENGTHS]


@partial(jax.jit, static_argnames=("config", "compute"))
def logits_both_ways(config, base, adapter, texts, lengths, *, compute):
    """Logits [steps, B, V] at the position before every token past the prompts, without and with the cache."""
    steps = texts.shape[1] - max(LENGTHS)
    rows = jnp.arange(len(LENGTHS))
    whole = forward(config, base, adapter, texts, compute=compute)
    # Padding is the text's own continuation, which must not be seen before its time.
    first, cache = prefill(config, base, adapter, texts[:, : max(LENGTHS)], lengths, slots=16, compute=compute)

    def step(cache, count):
        positions = lengths + count
        logits, cache = decode_step(config, base, adapter, cache, texts[rows, positions], positions, compute=compute)
        return cache, logits

    _, later = jax.lax.scan(step, cache, jnp.arange(steps))
    expected = jnp.stack([whole[rows, lengths + count - 1] for count in range(steps + 1)])
    return expected, jnp.concatenate([first[None], later])


def assert_cache_changes_nothing(config, base, adapter, *, compute=DEFAULT_COMPUTE, atol=1e-5):
    texts = np.random.default_rng(0).integers(0, config.vocabulary, (len(LENGTHS), max(LENGTHS) + 6))
    expected, found = logits_both_ways(config, base, adapter, jnp.asarray(texts), np.array(LENGTHS), compute=compute)
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_cache_changes_no_logit(name):
    config = EXAMPLES[name]
    assert_cache_changes_nothing(config, random_base(config), random_adapter(config))


@pytest.mark.parametrize("window", [1, 6, 100])
def test_a_window_shorter_and_longer_than_the_prompts(window):
    config = dataclasses.replace(CONFIG, sliding_window=window)
    assert_cache_changes_nothing(config, random_base(config), None)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_packed_base(kind):
    assert_cache_changes_nothing(CONFIG, quantize_base(random_base(CONFIG), kind), random_adapter(CONFIG))


def test_scales_of_their_own_and_half_precision(base):
    adapter = random_adapter(CONFIG, ("q", "down"))
    scale = {name: jnp.arange(1.0, CONFIG.layers + 1) for name in adapter.lora}
    assert_cache_changes_nothing(CONFIG, base, adapter.replace(scale=scale))
    assert_cache_changes_nothing(CONFIG, base, adapter.replace(scale=scale), compute=Compute(dtype="bfloat16"), atol=0.25)


# ---- whole answers ---------------------------------------------------------------------------------------------------


def greedy(max_new_tokens=9, **options):
    return GenerationOptions(max_new_tokens=max_new_tokens, **options)


whole_text = jax.jit(partial(forward, CONFIG))


def naive(base, prompt, count, adapter=None):
    """The loop that generation must equal: a full forward pass for every token."""
    tokens = list(prompt)
    for _ in range(count):
        padded = np.pad(tokens, (0, 16 - len(tokens)))[None]
        tokens.append(int(jnp.argmax(whole_text(base, adapter, padded)[0, len(tokens) - 1])))
    return tuple(tokens[len(prompt) :])


def test_greedy_answers_equal_the_naive_loop(base, adapter):
    answers = generate(CONFIG, base, adapter, PROMPTS, options=greedy())
    assert [answer.tokens for answer in answers] == [naive(base, prompt, 9, adapter) for prompt in PROMPTS]
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert {answer.text for answer in answers} == {None}


SAMPLED = GenerationOptions(max_new_tokens=11, temperature=0.8, top_p=0.9, sampling_seed=5)


def test_by_default_an_answer_has_the_room_that_a_short_model_leaves_it(base):
    """Every prompt for itself, whatever it is answered with."""
    short = dataclasses.replace(CONFIG, max_length=16)
    answers = generate(short, base, None, PROMPTS, options=GenerationOptions())
    assert [len(answer.tokens) for answer in answers] == [16 - len(prompt) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert generate(short, base, None, [prompt], options=GenerationOptions()) == [answer]
    with pytest.raises(InputError, match="prompt 1 has 16 tokens, which leaves no room for an answer in the model's 16"):
        generate(short, base, None, [[5] * 16], options=GenerationOptions())


def test_every_answer_may_have_its_own_limit_up_to_the_models_end(base):
    """The cache has no slot beyond the model's length; a row that is full by then changes neither itself nor others."""
    short = dataclasses.replace(CONFIG, max_length=32)
    prompts = [*PROMPTS, [int(token) for token in np.arange(30) % CONFIG.vocabulary]]
    limits = [25, 3, 20, 2]
    answers = generate(short, base, None, prompts, options=GenerationOptions(), limits=limits)
    assert [len(answer.tokens) for answer in answers] == limits
    for prompt, limit, answer in zip(prompts, limits, answers, strict=True):
        assert generate(short, base, None, [prompt], options=GenerationOptions(), limits=[limit]) == [answer]
    assert answers[0].tokens[:9] == naive(base, PROMPTS[0], 9)


@pytest.mark.parametrize("options", [greedy(11), SAMPLED], ids=["greedy", "nucleus"])
@pytest.mark.parametrize("change", [{"generation_batch": 1}, {"generation_batch": 2, "tokens_per_look": 3}], ids=str)
def test_batches_and_chunks_change_no_answer(base, options, change):
    together = generate(CONFIG, base, None, PROMPTS, options=options, eos_ids=(3,))
    assert generate(CONFIG, base, None, PROMPTS, options=dataclasses.replace(options, **change), eos_ids=(3,)) == together


def test_a_row_draws_by_its_number_alone(base):
    together = generate(CONFIG, base, None, PROMPTS, options=SAMPLED)
    for number, prompt in enumerate(PROMPTS):
        alone = generate(CONFIG, base, None, [prompt], options=SAMPLED, row_ids=[number])
        assert alone == [together[number]]
    same = generate(CONFIG, base, None, [PROMPTS[0]] * 3, options=SAMPLED)
    assert len({answer.tokens for answer in same}) == 3
    other = generate(CONFIG, base, None, PROMPTS, options=dataclasses.replace(SAMPLED, sampling_seed=6))
    assert other != together


@pytest.mark.parametrize("tokens_per_look", [3, 16])
def test_any_end_token_ends_an_answer_and_is_left_out(base, tokens_per_look):
    whole = naive(base, PROMPTS[0], 9)
    # Two end tokens: the one that comes first decides.
    ends = (whole[5], whole[3])
    first = min(whole.index(end) for end in ends)
    options = greedy(tokens_per_look=tokens_per_look)
    answers = generate(CONFIG, base, None, PROMPTS, options=options, eos_ids=ends)
    assert answers[0].tokens == whole[:first]
    assert answers[0].finish_reason == "eos"
    last = generate(CONFIG, base, None, PROMPTS[:1], options=greedy(first + 1), eos_ids=ends)
    assert last[0].finish_reason == "eos"


def test_programs_do_not_grow_with_the_prompts(base):
    # A chunk that no other test has, so that its programs are new.
    options = greedy(generation_batch=4, tokens_per_look=5)

    def compiled(*counts):
        before = decoding.decode._cache_size()
        for count in counts:
            prompts = [[1 + count % 30] * (1 + index % 9) for index in range(count)]
            generate(CONFIG, base, None, prompts, options=options)
        return decoding.decode._cache_size() - before

    assert compiled(4) == 1
    assert compiled(3, 5, 8, 13, 21) == 0


# ---- draws -----------------------------------------------------------------------------------------------------------

PROBABILITIES = np.array([0.4, 0.05, 0.3, 0.2, 0.05])


drawn = jax.jit(draw_tokens, static_argnums=0)


def frequencies(method, *, temperature=1.0, top_p=1.0, draws=20_000):
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (draws, 5))
    keys = sampling_keys(np.uint32(0), np.arange(draws, dtype=np.uint32))
    tokens = drawn(method, logits, keys, jnp.int32(3), jnp.float32(temperature), jnp.float32(top_p))
    return np.bincount(np.asarray(tokens), minlength=5) / draws


def assert_distribution(found, expected, draws=20_000):
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 4 * deviation).all(), (found, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_tempered_probabilities(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_distribution(frequencies("all", temperature=temperature), expected / expected.sum())


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.35, [0]), (0.6, [0, 2]), (0.75, [0, 2, 3]), (0.89, [0, 2, 3]), (0.92, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    expected = np.zeros(5)
    expected[kept] = PROBABILITIES[kept]
    assert_distribution(frequencies("nucleus", top_p=top_p), expected / expected.sum())


def test_temperature_comes_before_the_nucleus():
    # At temperature 1/2 the likeliest token has 16/29.5 of the mass, enough for 0.5 alone.
    assert frequencies("nucleus", temperature=0.5, top_p=0.5)[0] == 1.0
    assert frequencies("nucleus", temperature=1.0, top_p=0.5)[0] < 0.7


def test_steps_and_rows_draw_apart():
    logits, one = jnp.zeros((4000, 2)), jnp.float32(1)
    keys = sampling_keys(np.uint32(0), np.arange(4000, dtype=np.uint32))
    steps = [np.asarray(drawn("all", logits, keys, jnp.int32(step), one, one)) for step in (0, 1)]
    assert abs(np.corrcoef(*steps)[0, 1]) < 0.06
    assert abs(np.corrcoef(steps[0][:-1], steps[0][1:])[0, 1]) < 0.06


@given(logits=st.lists(st.integers(-4, 4), min_size=2, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_a_vanishing_nucleus_is_greedy_and_a_full_one_is_everything(logits, seed):
    logits = jnp.zeros((1, 12)).at[0, : len(logits)].set(jnp.asarray(logits, jnp.float32))
    keys = sampling_keys(np.uint32(seed), np.array([7], np.uint32))

    def draw(method, top_p):
        return int(drawn(method, logits, keys, jnp.int32(0), jnp.float32(1.3), jnp.float32(top_p))[0])

    assert draw("nucleus", 1e-30) == draw("greedy", 1.0)
    assert draw("nucleus", 2.0) == draw("all", 1.0)


@pytest.mark.parametrize("temperature", [1e-50, 1e-45, 1e-38, 1e-20])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_vanishing_temperature_is_greedy(base, temperature, top_p):
    cold = dataclasses.replace(greedy(), temperature=temperature, top_p=top_p)
    assert generate(CONFIG, base, None, PROMPTS, options=cold) == generate(CONFIG, base, None, PROMPTS, options=greedy())


@pytest.mark.filterwarnings("error")
def test_a_temperature_beyond_float32_is_the_largest(base):
    hot = dataclasses.replace(greedy(), temperature=1e300)
    hottest = dataclasses.replace(hot, temperature=3e38)
    assert generate(CONFIG, base, None, PROMPTS, options=hot) == generate(CONFIG, base, None, PROMPTS, options=hottest)


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of which token n says letter n, with `<end>` as a special token; decoded without spaces."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = [chr(ord("a") + index) for index in range(26)] + [str(index) for index in range(10)]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="a"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    return tokenizer


@pytest.fixture(scope="module")
def spoken(base, letters):
    return letters.decode(naive(base, PROMPTS[0], 9))


@pytest.mark.parametrize("tokens_per_look", [3, 16])
def test_a_stop_text_over_token_borders_is_cut(base, letters, spoken, tokens_per_look):
    stop = spoken[3:6]
    end = spoken.index(stop)
    options = greedy(stop=("never said", stop, spoken[4:8]), tokens_per_look=tokens_per_look)
    heard = []
    answer = generate(
        CONFIG, base, None, PROMPTS[:1], options=options, tokenizer=letters, listen=lambda _, text: heard.append(text)
    )[0]
    assert answer.finish_reason == "stop"
    assert answer.text == spoken[:end]
    assert letters.decode(answer.tokens) == spoken[: end + 3]
    assert "".join(heard) == answer.text


def test_listeners_hear_every_answer(base, letters):
    heard = ["", "", ""]

    def listen(index, text):
        heard[index] += text

    answers = generate(CONFIG, base, None, PROMPTS, options=greedy(tokens_per_look=3), tokenizer=letters, listen=listen)
    said = [letters.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
    assert heard == said == [answer.text for answer in answers]


def test_a_stop_text_that_is_a_special_token(base, letters):
    """Decoding hides special tokens, so such a stop is watched for by its id."""
    end = letters.convert_tokens_to_ids("<end>")
    last = hidden_states(CONFIG, base, None, jnp.asarray([PROMPTS[0]]))[0, -1]
    loud = base.replace(head=base.head.at[:, end].set(100.0 * last))
    answer = generate(CONFIG, loud, None, PROMPTS[:1], options=greedy(stop=("<end>",)), tokenizer=letters)[0]
    assert (answer.tokens, answer.text, answer.finish_reason) == ((), "", "stop")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (2,)),
        ({"config.json": {"eos_token_id": 7}}, (7, 2)),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [9, 2]}}, (9, 2)),
        ({"config.json": {"eos_token_id": [7, 8]}, "generation_config.json": {"eos_token_id": None}}, (7, 8, 2)),
    ],
    ids=str,
)
def test_end_tokens_of_a_folder(tmp_path, word_tokenizer, files, expected):
    for name, fields in files.items():
        (tmp_path / name).write_text(json.dumps(fields))
    assert end_token_ids(tmp_path, word_tokenizer()) == expected


def test_end_tokens_that_are_none(tmp_path, word_tokenizer):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(InputError, match=r'eos_token_id "</s>" in .*config.json is neither'):
        end_token_ids(tmp_path, word_tokenizer())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0 is not positive"),
        ({"generation_batch": 0}, "generation_batch 0"),
        ({"tokens_per_look": 0}, "tokens_per_look 0"),
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, r"top_p 0.0 is outside \(0, 1\]"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"stop": ("",)}, "stop contains an empty text"),
        ({"stop": ("x",)}, "stop 'x' needs a tokenizer"),
        ({"sampling_seed": -1}, "sampling_seed -1"),
        ({"max_new_tokens": CONFIG.max_length}, "max_new_tokens 4096 leaves no room.*use 4095 or fewer"),
        ({"max_new_tokens": 4090}, "prompt 1 has 7 tokens and max_new_tokens is 4090.*shorten the prompt"),
    ],
)
def test_options_that_cannot_be_used(base, change, words):
    with pytest.raises(InputError, match=words):
        generate(CONFIG, base, None, PROMPTS, options=dataclasses.replace(greedy(), **change))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "prompt 2 is empty and the tokenizer adds no token to an empty text"),
        ([37], "outside the model's vocabulary of 37"),
        ([-1], "outside"),
    ],
)
def test_prompts_that_cannot_be_answered(base, prompt, words):
    with pytest.raises(InputError, match=re.escape(words)):
        generate(CONFIG, base, None, [[1], prompt], options=greedy())


def test_a_prompt_is_named_by_its_own_number(base):
    with pytest.raises(InputError, match="prompt 130 is empty"):
        generate(CONFIG, base, None, [[1], []], options=greedy(), row_ids=range(128, 130))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_decoding_lowers_for_accelerators(base, platform):
    """Reading a prompt, a step beside the cache, and a draw from the nucleus; the base packed, in half precision."""
    packed, adapter, compute = quantize_base(base, "nf4"), random_adapter(CONFIG), Compute(dtype="bfloat16", attention="xla")
    tokens, lengths = jnp.ones((2, 8), jnp.int32), jnp.array([3, 8])

    def answer(base, adapter, tokens, lengths, keys):
        _, cache = prefill(CONFIG, base, adapter, tokens, lengths, slots=16, compute=compute)
        logits, cache = decode_step(CONFIG, base, adapter, cache, tokens[:, 0], lengths, compute=compute)
        return draw_tokens("nucleus", logits, keys, jnp.int32(1), jnp.float32(0.7), jnp.float32(0.9)), cache

    keys = sampling_keys(np.uint32(0), np.arange(2, dtype=np.uint32))
    exported = jax.export.export(jax.jit(answer), platforms=[platform])(packed, adapter, tokens, lengths, keys)
    assert exported.platforms == (platform,)


def test_no_prompts_no_answers(base):
    assert generate(CONFIG, base, None, [], options=greedy()) == []


def test_devices_divide_the_prompts(config, base):
    """The same answers, whatever the number of prompts and their sizes."""
    mesh = client_mesh(jax.devices()[:4])
    options = GenerationOptions(max_new_tokens=9, generation_batch=5, tokens_per_look=4)
    expected = generate(config, base, None, PROMPTS * 2, options=options, eos_ids=(3,))
    placement = NamedSharding(mesh, OVER_DEVICES)
    found = generate(config, place(base, mesh), None, PROMPTS * 2, options=options, eos_ids=(3,), placement=placement)
    assert found == expected

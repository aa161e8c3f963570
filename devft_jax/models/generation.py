"""Generation: prompts are read in one pass, then tokens are drawn one at a time beside a cache of keys and values.

A batch holds prompts of several lengths, padded on the right to a bucket. Every row counts its own positions, and slot j of
its cache holds the key and value of its token at position j, so that a row sees slot j from position p iff j <= p and, under
a sliding window of w tokens, j > p - w. What padding left in a slot is overwritten by the token that comes to lie there
before any later one sees it. A row's tokens therefore do not depend on which rows it is batched with.

Decoding is compiled as a chunk of several tokens. Between chunks the host looks for stop strings, which may straddle token
borders, and hands finished rows back as such; within a chunk the end tokens are watched on the device. Prompts of one bucket
share one compiled program, whatever their number.

Sampling divides logits by the temperature and, under `top_p`, draws from the nucleus: the smallest set of most likely tokens
whose probability reaches top_p (Holtzman et al. 2020). Row n's token number s is argmax(logits + Gumbel noise), the noise
drawn by threefry from (seed, n, s) alone.

Axis letters: L layers, B batch, P prompt slots, S cache slots, D width, H query heads, K key/value heads, E head size,
V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.attention import Attention
from devft_jax.models.base import Base
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute, causal_attention, logits_of, run_layers
from devft_jax.options import execution, verbatim

SMALLEST_BUCKET = 32
USUAL_NEW_TOKENS = 128
FLOAT32 = np.finfo(np.float32)

Method = Literal["greedy", "all", "nucleus"]
"""What a token is drawn from: the most likely one, all tokens, or the nucleus."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How answers are drawn and where they end."""

    max_new_tokens: int | Literal["auto"] = "auto"
    """Most tokens of an answer; auto is 128, or fewer where a short model has no room for them behind the prompt."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the most likely token."""
    top_p: float = 1.0
    """Probability, in (0, 1], that the most likely tokens must reach together to be all that is drawn from."""
    stop: tuple[str, ...] = verbatim(())
    """Texts that end an answer and are cut from it."""
    sampling_seed: int = 0
    """Seed of the drawn tokens; without effect at temperature 0."""
    generation_batch: int = execution(16)
    """Most prompts answered at once."""
    tokens_per_look: int = execution(16)
    """Tokens decoded between two looks for stop texts."""


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
      tokens: drawn ids, without the end token; with all of those in which a stop text lies.
      text: what they say, up to a stop text; None where no tokenizer was given.
      finish_reason: "eos" (an end token), "stop" (a stop text) or "length" (`max_new_tokens` reached).
    """

    tokens: tuple[int, ...]
    text: str | None
    finish_reason: Literal["eos", "stop", "length"]


def validate_generation(options: GenerationOptions) -> None:
    """Raise `InputError` unless answers can be drawn so."""
    for name in ("max_new_tokens", "generation_batch", "tokens_per_look"):
        value = getattr(options, name)
        if value != "auto" and value < 1:
            raise InputError(f"{name} {value} is not positive; use 1 or more.")
    if not 0 <= options.temperature < math.inf:
        raise InputError(f"temperature {options.temperature} is not a number from 0; use 0 for greedy, 0.7 to vary.")
    if not 0 < options.top_p <= 1:
        raise InputError(f"top_p {options.top_p} is outside (0, 1]; 1 draws from all tokens, 0.9 is usual.")
    if "" in options.stop:
        raise InputError("stop holds an empty text, which every answer begins with; leave it out.")
    if not 0 <= options.sampling_seed < 2**32:
        raise InputError(f"sampling_seed {options.sampling_seed} is outside [0, 2^32).")


# ---- the model beside its cache --------------------------------------------------------------------------------------


class Cache(struct.PyTreeNode):
    """Rotated keys and values of earlier tokens, each [L, B, S, K, E]; slot j holds position j."""

    keys: jax.Array
    values: jax.Array


def prefill(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    slots: int,
    compute: Compute = DEFAULT_COMPUTE,
) -> tuple[jax.Array, Cache]:
    """Read prompts.

    Args:
      tokens: i32[B, P], padded on the right. lengths: i32[B], of the prompts, 1 or more.
      slots: S, P or more.

    Returns:
      Logits f32[B, V] after the last token of every prompt, and the cache.
    """
    length = tokens.shape[1]
    causal = causal_attention(config, compute, length)

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, cache: None) -> tuple[jax.Array, Cache]:
        mixed, _ = causal(queries, keys, values, cache)
        room = ((0, 0), (0, slots - length), (0, 0), (0, 0))
        return mixed, Cache(jnp.pad(keys, room), jnp.pad(values, room))

    hidden, cache = run_layers(
        config, base, adapter, tokens, jnp.arange(length, dtype=jnp.int32), attend=attend, compute=compute
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return logits_of(base, last), cache


def decode_step(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    cache: Cache,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    compute: Compute = DEFAULT_COMPUTE,
) -> tuple[jax.Array, Cache]:
    """Read one more token of every row.

    Args:
      cache: of the tokens before. tokens: i32[B]. positions: theirs, i32[B], below S.

    Returns:
      Logits f32[B, V] after the tokens, and the cache with them in it.
    """
    attend = cached_attention(config, positions, cache.keys.shape[2])
    hidden, new = run_layers(
        config, base, adapter, tokens[:, None], positions[:, None], attend=attend, cache=cache, compute=compute
    )
    rows = jnp.arange(len(positions), dtype=jnp.int32)
    # Written once for all layers: a cache handed through the scan over layers would be copied at every token.
    cache = jax.tree.map(lambda old, added: old.at[:, rows, positions].set(added), cache, new)
    return logits_of(base, hidden[:, 0]), cache


def cached_attention(config: ModelConfig, positions: jax.Array, slots: int) -> Attention:
    """Attention of one token a row, at `positions` i32[B], to its cache and itself; hands its key and value on."""
    window = config.sliding_window
    slot = jnp.arange(slots, dtype=jnp.int32)[None]
    visible = slot < positions[:, None]
    if window is not None:
        visible &= slot > positions[:, None] - window

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        batch, _, heads, size = queries.shape
        queries = queries.reshape(batch, config.kv_heads, -1, size)
        key, value = keys[:, 0], values[:, 0]
        score = partial(jnp.einsum, preferred_element_type=jnp.float32)
        past = jnp.where(visible[:, None, None], score("bkge,bske->bkgs", queries, cache.keys), -jnp.inf)
        own = score("bkge,bke->bkg", queries, key)[..., None]
        weights = jax.nn.softmax(jnp.concatenate([past, own], axis=-1) * size**-0.5, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bkgs,bske->bkge", weights[..., :-1], cache.values) + weights[..., -1:] * value[:, :, None]
        return mixed.reshape(batch, 1, heads, size), Cache(key, value)

    return attend


# ---- drawing tokens --------------------------------------------------------------------------------------------------


@jax.jit
def sampling_keys(seed: jax.Array, rows: jax.Array) -> jax.Array:
    """The keys [B] of rows, from a seed u32[] and their numbers u32[B]."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def draw_tokens(
    method: Method,
    logits: jax.Array,
    keys: jax.Array,
    step: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """One token a row, i32[B].

    Args:
      logits: f32[B, V]. keys: key[B], of the rows. step: number of the token, from 0.
      temperature: positive. top_p: in (0, 1]; both f32 and read only by methods that need them.
    """
    if method == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(logits: jax.Array, key: jax.Array) -> jax.Array:
        # The likeliest token's quotient is 0, so that none overflows however small the temperature.
        logits = (logits - jnp.max(logits)) / temperature
        noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape, jnp.float32)
        if method == "all":
            return jnp.argmax(logits + noise)
        order = jnp.argsort(-logits)
        probabilities = jax.nn.softmax(logits[order])
        before = jnp.cumsum(probabilities) - probabilities
        # The most likely token belongs to every nucleus, also where top_p is below what rounding tells from 0.
        inside = (before < top_p).at[0].set(True)
        return order[jnp.argmax(jnp.where(inside, (logits + noise)[order], -jnp.inf))]

    return jax.vmap(draw)(logits, keys).astype(jnp.int32)


class _State(struct.PyTreeNode):
    """A batch under way: `token` i32[B] is each row's newest and lies at `position` i32[B], not yet in the cache.

    `done` bool[B] marks rows that draw no more, `step` counts the tokens drawn, `keys` key[B] are the rows' own.
    """

    cache: Cache
    token: jax.Array
    position: jax.Array
    done: jax.Array
    step: jax.Array
    keys: jax.Array


_STATIC = ("config", "compute", "method")


@partial(jax.jit, static_argnames=(*_STATIC, "slots"))
def _begin(base, adapter, tokens, lengths, done, keys, ends, temperature, top_p, *, slots, config, compute, method):
    """Read a batch of prompts and draw the first token of each."""
    logits, cache = prefill(config, base, adapter, tokens, lengths, slots=slots, compute=compute)
    step = jnp.int32(0)
    token = draw_tokens(method, logits, keys, step, temperature, top_p)
    return _State(cache, token, lengths, done | jnp.isin(token, ends), step + 1, keys)


@partial(jax.jit, static_argnames=(*_STATIC, "chunk"), donate_argnames="state")
def _decode(base, adapter, state, ends, limit, temperature, top_p, *, chunk, config, compute, method):
    """Draw up to `chunk` tokens more, none beyond `limit`: the new state, and the tokens i32[chunk, B] that were drawn.

    A row's tokens after it is done say nothing, nor do those of steps that were not taken.
    """
    first = state.step
    drawn = jnp.zeros((chunk, len(state.token)), jnp.int32)
    last = jnp.minimum(first + chunk, limit)

    def unfinished(carry):
        state, _ = carry
        return (state.step < last) & ~jnp.all(state.done)

    def draw_one(carry):
        state, drawn = carry
        logits, cache = decode_step(config, base, adapter, state.cache, state.token, state.position, compute=compute)
        token = draw_tokens(method, logits, state.keys, state.step, temperature, top_p)
        token = jnp.where(state.done, state.token, token)
        drawn = drawn.at[state.step - first].set(token)
        position = state.position + ~state.done
        done = state.done | jnp.isin(token, ends)
        return _State(cache, token, position, done, state.step + 1, state.keys), drawn

    return jax.lax.while_loop(unfinished, draw_one, (state, drawn))


# ---- answers ---------------------------------------------------------------------------------------------------------


Listener = Callable[[int, str], None]
"""Told (number of the prompt, text that follows what was told before)."""


def generate(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[int]],
    *,
    options: GenerationOptions,
    eos_ids: Sequence[int] = (),
    tokenizer: Any = None,
    compute: Compute = DEFAULT_COMPUTE,
    row_ids: Sequence[int] | None = None,
    listen: Listener | None = None,
) -> list[Completion]:
    """Answer prompts.

    Args:
      config, base, adapter, compute: the model, as for `forward`.
      prompts: token ids, bos included.
      eos_ids: tokens that end an answer.
      tokenizer: a Hugging Face tokenizer that turns answers into text; None gives tokens only.
      row_ids: number of each prompt from 0, which with the seed decides its random draws and by which errors, counting
        from 1, name it; by default its place in `prompts`.
      listen: told of text as it becomes certain; needs a tokenizer.

    Returns:
      A completion for every prompt, in their order.

    Raises:
      InputError: an option that cannot be used, an empty prompt, one too long for the model, or a token it lacks; an
        adapter that a hypernetwork makes.
    """
    validate_generation(options)
    if adapter is not None and adapter.hyper is not None:
        raise InputError("answers cannot be drawn with an adapter that a hypernetwork makes; give a low-rank one, or none.")
    row_ids = range(len(prompts)) if row_ids is None else row_ids
    check_prompts(config, prompts, row_ids, options)
    if tokenizer is None and options.stop:
        raise InputError(f"stop {options.stop[0]!r} needs a tokenizer to turn tokens into text; give one.")
    endings = _Endings.of(eos_ids, options, tokenizer)
    answers = [
        _Answer(endings, _most_new(config, prompt, options), None if listen is None else partial(listen, index))
        for index, prompt in enumerate(prompts)
    ]
    for batch in _batches(prompts, options.generation_batch):
        rows = [row_ids[index] if index is not None else 0 for index in batch]
        tokens, lengths = _padded([prompts[index] if index is not None else (0,) for index in batch], config)
        members = [None if index is None else answers[index] for index in batch]
        for drawn in _decoded(
            config, base, adapter, tokens, lengths, members, rows, endings.ids, options=options, compute=compute
        ):
            for answer, row in zip(members, drawn.T.tolist(), strict=True):
                if answer is not None and answer.reason is None:
                    answer.extend(row)
    return [answer.completion() for answer in answers]


def _most_new(config: ModelConfig, prompt: Sequence[int], options: GenerationOptions) -> int:
    """Most tokens of the answer to a prompt, whatever it is batched with."""
    if options.max_new_tokens == "auto":
        return min(USUAL_NEW_TOKENS, config.max_length - len(prompt))
    return options.max_new_tokens


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], row_ids: Sequence[int], options: GenerationOptions
) -> None:
    """Raise `InputError` unless the model can read every prompt and has room for its answer; see `generate`."""
    least = 1 if options.max_new_tokens == "auto" else options.max_new_tokens
    room = config.max_length - least
    if room < 1:
        raise InputError(
            f"max_new_tokens {least} leaves no room for a prompt in the model's {config.max_length} "
            f"tokens; use {config.max_length - 1} or fewer."
        )
    for row_id, prompt in zip(row_ids, prompts, strict=True):
        number = row_id + 1
        if not len(prompt):
            raise InputError(f"prompt {number} is empty and the tokenizer begins a text with no token; write a prompt.")
        if len(prompt) > room and options.max_new_tokens == "auto":
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens, which leaves no room for an answer in the model's "
                f"{config.max_length}; shorten the prompt."
            )
        if len(prompt) > room:
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens and max_new_tokens is {options.max_new_tokens}, which exceeds "
                f"the model's {config.max_length}; shorten the prompt or lower max_new_tokens."
            )
        if not 0 <= min(prompt) <= max(prompt) < config.vocabulary:
            raise InputError(
                f"prompt {number} holds a token outside the model's vocabulary of {config.vocabulary}; "
                "use the tokenizer that belongs to the model."
            )


def _batches(prompts: Sequence[Sequence[int]], largest: int) -> Iterator[list[int | None]]:
    """Places of the prompts, shortest first, in batches of one size; None fills the last up.

    The size is a power of two below `largest`, or `largest`, so that few programs serve any number of prompts.
    """
    size = min(largest, _power_of_two(len(prompts)))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        yield [*batch, *[None] * (size - len(batch))]


def _power_of_two(count: int) -> int:
    """The smallest one that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


def _padded(prompts: Sequence[Sequence[int]], config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[B, P], padded to a bucket, and lengths i32[B]."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    bucket = min(max(SMALLEST_BUCKET, _power_of_two(int(lengths.max()))), config.max_length)
    tokens = np.zeros((len(prompts), bucket), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def _decoded(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: np.ndarray,
    lengths: np.ndarray,
    members: Sequence["_Answer | None"],
    rows: Sequence[int],
    ends: np.ndarray,
    *,
    options: GenerationOptions,
    compute: Compute,
) -> Iterator[np.ndarray]:
    """Drawn tokens of a batch, i32[n, B] at a time, until every member has its finish reason."""
    method: Method = "greedy" if options.temperature == 0 else "all" if options.top_p == 1 else "nucleus"
    drawing = {
        "ends": ends,
        "temperature": np.float32(np.clip(options.temperature, FLOAT32.tiny, FLOAT32.max)),
        "top_p": np.float32(options.top_p),
        "config": config,
        "compute": compute,
        "method": method,
    }

    def finished() -> np.ndarray:
        return np.array([answer is None or answer.reason is not None for answer in members])

    keys = sampling_keys(np.uint32(options.sampling_seed), np.array(rows, np.uint32))
    limit = max(answer.limit for answer in members if answer is not None)
    slots = tokens.shape[1] + -(-limit // SMALLEST_BUCKET) * SMALLEST_BUCKET
    state = _begin(base, adapter, tokens, lengths, finished(), keys, slots=slots, **drawing)
    yield np.asarray(state.token)[None]
    count = 1
    while not (done := finished()).all():
        state, drawn = _decode(
            base, adapter, state.replace(done=done), limit=np.int32(limit), chunk=options.tokens_per_look, **drawing
        )
        taken = min(options.tokens_per_look, limit - count)
        count += taken
        yield np.asarray(drawn)[:taken]


@dataclass(frozen=True)
class _Endings:
    """What ends an answer, and how its tokens become text."""

    eos: frozenset[int]
    stop_ids: frozenset[int]
    """Of stop texts that are one special token, which decoding leaves out of the text."""
    stop: tuple[str, ...]
    tokenizer: Any

    @classmethod
    def of(cls, eos_ids: Sequence[int], options: GenerationOptions, tokenizer: Any) -> "_Endings":
        special = tokenizer.get_added_vocab() if options.stop else {}
        stop_ids = frozenset(special[text] for text in options.stop if text in special)
        stop = tuple(text for text in options.stop if text not in special)
        return cls(frozenset(eos_ids), stop_ids, stop, tokenizer)

    @property
    def ids(self) -> np.ndarray:
        """i32[n], tokens that the device watches for, filled up with -1 to a multiple of 8 so that shapes are few."""
        ids = sorted(self.eos | self.stop_ids)
        return np.array([*ids, *[-1] * (8 - len(ids) % 8)], np.int32)

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def found(self, text: str) -> int | None:
        """Where the first stop text begins."""
        places = [text.find(stop) for stop in self.stop]
        return min((place for place in places if place >= 0), default=None)

    def certain(self, text: str) -> int:
        """Length of the text that further tokens cannot change: without half a character or the beginning of a stop."""
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        beginnings = [size for stop in self.stop for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return len(text) - max(beginnings, default=0)


class _Answer:
    """One answer as it grows, to `limit` tokens at most."""

    def __init__(self, endings: _Endings, limit: int, listen: Callable[[str], None] | None):
        self.endings = endings
        self.limit = limit
        self.tokens: list[int] = []
        self.reason: Literal["eos", "stop", "length"] | None = None
        self._listen = listen
        self._told = 0
        self._cut: int | None = None

    def extend(self, drawn: Sequence[int]) -> None:
        """Take tokens in, up to one that ends the answer."""
        endings, before = self.endings, len(self.tokens)
        for token in drawn:
            if token in endings.eos or token in endings.stop_ids:
                self.reason = "eos" if token in endings.eos else "stop"
                break
            self.tokens.append(token)
            if len(self.tokens) == self.limit:
                self.reason = "length"
                break
        if endings.stop and endings.found(endings.text(self.tokens)) is not None:
            self._cut_at_stop(before)
        if self._listen is not None:
            text = self._text()
            certain = len(text) if self.reason else endings.certain(text)
            if certain > self._told:
                self._listen(text[self._told : certain])
                self._told = certain

    def _cut_at_stop(self, before: int) -> None:
        """End with the first token that completes a stop text, however many were drawn at once."""
        for count in range(before + 1, len(self.tokens) + 1):
            place = self.endings.found(self.endings.text(self.tokens[:count]))
            if place is not None:
                del self.tokens[count:]
                self.reason, self._cut = "stop", place
                return

    def _text(self) -> str:
        return self.endings.text(self.tokens)[: self._cut]

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.reason is not None
        text = None if self.endings.tokenizer is None else self._text()
        return Completion(tuple(self.tokens), text, self.reason)

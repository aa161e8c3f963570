"""Prompts in, answers out: batches of prompts, decoded chunk by chunk until each has its end."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.generation.answers import Answer, Completion, Endings
from devft_jax.models.generation.decoding import begin, decode
from devft_jax.models.generation.options import GenerationOptions, most_new_tokens, validate_generation
from devft_jax.models.generation.sampling import Method, sampling_keys
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute

SMALLEST_BUCKET = 32
FLOAT32 = np.finfo(np.float32)

Listener = Callable[[int, str], None]
"""Called with (number of the prompt, text that follows what it was called with before)."""


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
      config: the architecture.
      base: frozen weights.
      adapter: what is added to them, or None.
      prompts: token ids, bos included.
      options: how answers are drawn and where they end.
      eos_ids: tokens that end an answer.
      tokenizer: a Hugging Face tokenizer that turns answers into text; None gives tokens only.
      row_ids: number of each prompt from 0, which with the seed decides its random draws and by which errors, counting
        from 1, name it; by default its place in `prompts`.
      compute: execution choices.
      listen: is called with text as it becomes certain; needs a tokenizer.

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
    endings = Endings.of(eos_ids, options, tokenizer)
    answers = [
        Answer(endings, most_new_tokens(config, prompt, options), None if listen is None else partial(listen, index))
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


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], row_ids: Sequence[int], options: GenerationOptions
) -> None:
    """Raise `InputError` unless the model can read every prompt and has room for its answer.

    Args:
      config: the architecture.
      prompts: token ids.
      row_ids: number of each prompt from 0; sentences name it, counting from 1.
      options: of generation.
    """
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
    members: Sequence[Answer | None],
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
    state = begin(base, adapter, tokens, lengths, finished(), keys, slots=slots, **drawing)
    yield np.asarray(state.token)[None]
    count = 1
    while not (done := finished()).all():
        state, drawn = decode(
            base, adapter, state.replace(done=done), limit=np.int32(limit), chunk=options.tokens_per_look, **drawing
        )
        taken = min(options.tokens_per_look, limit - count)
        count += taken
        yield np.asarray(drawn)[:taken]

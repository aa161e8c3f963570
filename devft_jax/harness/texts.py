"""Requests for texts: the harness's settings of generation in those of this package."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from devft_jax.errors import InputError
from devft_jax.harness.rows import Tokens
from devft_jax.models.generation.options import GenerationOptions

USUAL_NEW_TOKENS = 256
"""Most tokens of a text where a task names no number, as in the harness's own backends."""
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which a task may give the most tokens of a text; the first that is given holds."""
WITHOUT_EFFECT = {"do_sample", "temperature", "top_p", "until", "seed", "use_cache", *LENGTH_NAMES}
SAMPLING_ALONE = {"top_k", "min_p", "typical_p"}


@dataclass(frozen=True)
class TextRequest:
    """A text behind a prompt.

    Attributes:
      tokens: i32[n], the prompt, cut on the left to leave room for the text.
      options: how the text is sampled and where it ends.
      repeat: how many earlier requests are the same; sampled texts differ by it.
    """

    tokens: np.ndarray
    options: GenerationOptions
    repeat: int = 0

    @property
    def row(self) -> int:
        """A number for the random draws, the same wherever the request stands among others."""
        content = self.tokens.astype("<i4").tobytes() + self.repeat.to_bytes(4, "little")
        return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")

    @property
    def settings(self) -> dict[str, Any]:
        """What the text depends on besides the prompt, JSON-ready."""
        options = {name: getattr(self.options, name) for name in ("max_new_tokens", "temperature", "top_p")}
        sampled = {} if self.options.temperature == 0 else {"seed": self.options.sampling_seed, "repeat": self.repeat}
        return options | {"stop": list(self.options.stop)} | sampled


def text_options(settings: Mapping[str, Any], *, batch: int, seed: int = 0) -> GenerationOptions:
    """The options that a task's settings of generation stand for.

    Args:
      settings: `generation_kwargs` of a task.
      batch: maximum number of texts sampled at once.
      seed: for sampled texts.

    Raises:
      InputError: a setting that is not supported.
    """
    sampled = settings.get("do_sample")
    temperature = float(settings.get("temperature") or 0.0)
    # As in the harness: greedy unless sampling or a temperature is asked for.
    temperature = 0.0 if sampled is False else temperature or (1.0 if sampled else 0.0)
    for name, value in settings.items():
        if name not in WITHOUT_EFFECT and not (name in SAMPLING_ALONE and temperature == 0):
            raise InputError(
                f"the task's generation_kwargs ask for {name}: {value!r}, which is not supported; leave it out in a task "
                "file of your own that includes this one."
            )
    until = settings.get("until") or []
    lengths = [settings[name] for name in LENGTH_NAMES if settings.get(name) is not None]
    return GenerationOptions(
        max_new_tokens=int(lengths[0]) if lengths else USUAL_NEW_TOKENS,
        temperature=temperature,
        top_p=float(settings.get("top_p") or 1.0),
        stop=tuple(dict.fromkeys(stop for stop in ([until] if isinstance(until, str) else until) if stop)),
        sampling_seed=seed,
        generation_batch=batch,
    )


def fitted(tokens: Tokens, options: GenerationOptions, max_length: int) -> tuple[np.ndarray, GenerationOptions]:
    """A prompt and its options, so that both fit the model: the prompt is cut on the left, as the harness does it.

    A text that would alone be as long as the model reads gets half of the model's positions.

    Args:
      tokens: of the prompt.
      options: how its text is sampled.
      max_length: most tokens that the model reads.
    """
    wanted = options.max_new_tokens
    assert wanted != "auto"
    if wanted >= max_length:
        wanted = max_length // 2
        options = dataclasses.replace(options, max_new_tokens=wanted)
    return np.array(tokens[-(max_length - wanted) :], np.int32), options

"""Options of generation: how answers are sampled and where they end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from devft_jax.errors import InputError
from devft_jax.models.architecture import ModelConfig
from devft_jax.options import check_options, execution, option, verbatim

USUAL_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How answers are sampled and where they end."""

    max_new_tokens: int | Literal["auto"] = option("auto", at_least=1)
    """Most tokens of an answer; auto is 128, or fewer if a short model has no space for them after the prompt."""
    temperature: float = option(0.0, at_least=0, remedy="use 0 for greedy, 0.7 to vary")
    """Divides the logits before a token is drawn; 0 takes the most likely token."""
    top_p: float = option(1.0, within="(0, 1]", remedy="1 draws from all tokens, 0.9 is usual")
    """Nucleus sampling: tokens are drawn from the most likely ones that together reach this probability, in (0, 1]."""
    stop: tuple[str, ...] = verbatim(())
    """Texts that end an answer and are cut off."""
    sampling_seed: int = option(0, within="[0, 2^32)")
    """Seed of the drawn tokens; has no effect at temperature 0."""
    generation_batch: int = execution(16, at_least=1)
    """Most prompts answered at once."""
    tokens_per_look: int = execution(16, at_least=1)
    """Tokens decoded between two searches for stop texts."""


def validate_generation(options: GenerationOptions) -> None:
    """Raise `InputError` for an invalid option.

    Args:
      options: the options to check.
    """
    check_options(options)
    if "" in options.stop:
        raise InputError("stop contains an empty text, with which every answer begins; leave it out.")


def most_new_tokens(config: ModelConfig, prompt: Sequence[int], options: GenerationOptions) -> int:
    """Most tokens of the answer to a prompt; does not depend on its batch.

    Args:
      config: the architecture.
      prompt: token ids.
      options: the generation options.
    """
    if options.max_new_tokens == "auto":
        return min(USUAL_NEW_TOKENS, config.max_length - len(prompt))
    return options.max_new_tokens

"""Several processes that work together through `jax.distributed`."""

import jax

from devft_jax.errors import InputError


def several() -> bool:
    """Whether this process is one of several of `jax.distributed`; starts no back end if it is not."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def refuse_several(what: str) -> None:
    """Refuse what only one process can do.

    Args:
      what: what is refused, in words that begin a sentence.

    Raises:
      InputError: this process is one of several.
    """
    if several():
        raise InputError(
            f"{what} works in one process only, and jax.distributed has joined {jax.process_count()}; start it in a process "
            "of its own."
        )

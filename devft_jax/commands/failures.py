"""The message for an unexpected error, and the file in which its traceback is saved."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from devft_jax.errors import InputError, RunError
from devft_jax.files import write_atomically

TRACEBACK_FILE = "traceback.txt"

KEPT = "holds where"
"""End of the note on an error whose traceback is saved in a run's folder."""

MOST_OF_A_REASON = 300
"""Most characters shown of an unexpected error's own text."""


def sentence_of(error: Exception, words: Sequence[str], *, shown: bool) -> str:
    """An unexpected error as one sentence.

    Args:
      error: the error.
      words: the words of the command.
      shown: whether its traceback is shown too.

    Returns:
      The sentence.
    """
    command = " ".join(["devft", *words[:1]])
    reason = " ".join(str(error).split())
    if _is_of_memory(error):
        return (
            f"`{command}` ran out of memory; lower batch_size, max_length or clients_per_step, or quantise the model "
            "(`devft plan` estimates what a run needs)."
        )
    # Libraries add notes of their own.
    kept = [note for note in getattr(error, "__notes__", ()) if note.endswith(KEPT)]
    where = "; ".join([*kept, *([] if shown else ["--traceback shows where"])]) or "this is a bug in devft"
    reason = reason if len(reason) <= MOST_OF_A_REASON else f"{reason[:MOST_OF_A_REASON]}..."
    return f"`{command}` failed with an unexpected {type(error).__name__} ({reason}); {where}."


def _is_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the host or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


@contextmanager
def traceback_kept(folder: Path) -> Iterator[None]:
    """Save the traceback of an unexpected error inside the block in a run's folder, if the folder exists.

    Args:
      folder: the run's folder.
    """
    try:
        yield
    except (InputError, RunError, BrokenPipeError):
        raise
    except Exception as error:
        if folder.is_dir():
            with suppress(OSError):
                write_atomically(folder / TRACEBACK_FILE, traceback.format_exc())
                error.add_note(f"{folder / TRACEBACK_FILE} {KEPT}")
        raise

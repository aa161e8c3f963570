"""What a command says of an error that nothing else put into words, and where it keeps the traceback."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from devft_jax.errors import InputError, RunError
from devft_jax.files import write_atomically

TRACEBACK_FILE = "traceback.txt"

KEPT = "holds where"
"""How the note on an error ends whose traceback is in a run's folder."""

MOST_OF_A_REASON = 300
"""Characters of an unexpected error's own text."""


def sentence_of(error: Exception, words: Sequence[str], *, shown: bool) -> str:
    """An unexpected error in one sentence.

    Args:
      error: the error.
      words: the command's words.
      shown: whether its traceback is shown, too.

    Returns:
      The sentence.
    """
    command = " ".join(["devft", *words[:1]])
    reason = " ".join(str(error).split())
    if _is_of_memory(error):
        return (
            f"`{command}` ran out of memory; lower batch_size, max_length or clients_per_step, or quantise the model "
            "(`devft plan` says what a run needs)."
        )
    # Libraries add notes of their own.
    kept = [note for note in getattr(error, "__notes__", ()) if note.endswith(KEPT)]
    where = "; ".join([*kept, *([] if shown else ["--traceback shows where"])]) or "that is a fault of devft"
    reason = reason if len(reason) <= MOST_OF_A_REASON else f"{reason[:MOST_OF_A_REASON]}..."
    return f"`{command}` ended by {type(error).__name__} ({reason}), which it should have put into words; {where}."


def _is_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on the host or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


@contextmanager
def traceback_kept(folder: Path) -> Iterator[None]:
    """Write the traceback of an unexpected error inside the block into a run's folder, if the folder exists.

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

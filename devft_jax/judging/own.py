"""A user-defined judge: a function by its import path, as `--algorithm` takes one."""

import inspect
import traceback
from typing import Any

from devft_jax.config.methods import imported
from devft_jax.errors import InputError, RunError
from devft_jax.files import printable
from devft_jax.judging.cases import Case, Judge, Reply


def own_judge(name: str) -> Judge:
    """The judge that `package.module:name` stands for.

    Args:
      name: of a function that takes a `Case` and returns text with a verdict, or a number where one answer is rated.

    Raises:
      InputError: it cannot be imported, or is no function.
    """
    if ":" not in name:
        raise InputError(
            f"judge '{printable(name)}' is no name that imports; write package.module:name, or name an endpoint with "
            "--endpoint."
        )
    function = imported("judge", name)[1]
    if not callable(function):
        raise InputError(f"judge '{name}' is no function ({type(function).__name__}); name a function of a Case.")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise InputError(f"judge '{name}' cannot be called with a Case alone ({error}); let it take one.") from error
    except ValueError:
        # Some functions written in C do not say what they take.
        pass

    def judge(case: Case) -> Reply:
        try:
            said = function(case)
        except Exception as error:
            raise _failed(name, case, error) from error
        if isinstance(said, bool) or not isinstance(said, str | int | float):
            raise RunError(
                f"judge '{name}' gives a {type(said).__name__} for question {case.question.id}; let it return text with a "
                "verdict such as [[7]] or [[A]], or a number from 1 to 10."
            )
        return Reply(said if isinstance(said, str) else f"[[{said:g}]]")

    return judge


def _failed(name: str, case: Case, error: Exception) -> RunError:
    frames: Any = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    reason = printable(" ".join(str(error).split()))[:200]
    return RunError(
        f"judge '{name}' ended by {type(error).__name__} ({reason}){at} at question {case.question.id}, turn {case.turn}; "
        "correct it and start the same command again: what was judged is kept."
    )

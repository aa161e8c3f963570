"""Chat templates, rendered in a separate process (`devft_jax.data.chat_worker`) with limits on time and memory."""

import datetime
import functools
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from devft_jax.data.chat_worker import MEMORY

# Templates such as LLaMA 3.2's print the current date, which would make runs irreproducible. This is the
# date in LLaMA 3.1's template.
CHAT_DATE = datetime.date(2024, 7, 26)


# Computing time of one rendering: thousands of times what a long conversation takes.
SECONDS = 2.0


class ChatTemplateError(ValueError):
    """A template produced no text; the message says why."""


class ChatTemplate:
    """A chat template as a function of conversations.

    The process starts with the first conversation, renders all others and ends with this object.

    Args:
      template: the template, in jinja.
      names: names that it may read besides the conversation, such as `bos_token`; JSON values.
      seconds: limit of the computing time of one rendering.
    """

    def __init__(self, template: str, names: Mapping[str, Any], seconds: float = SECONDS):
        self.seconds = seconds
        self._start = json.dumps(
            {"template": template, "names": dict(names), "today": CHAT_DATE.isoformat(), "seconds": seconds}
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, turns: Sequence[Mapping[str, str]], cuts: Sequence[tuple[int, bool]]) -> list[str]:
        """The text of each cut: of the first turns, with or without the prompt for an answer.

        Args:
          turns: the conversation's turns, each with `role` and `content`.
          cuts: for each text, (number of turns, whether it ends with the prompt for an answer).

        Raises:
          ChatTemplateError: the template is invalid, refuses the conversation, or does not end.
        """
        with self._lock:
            try:
                answer = self._ask(json.dumps({"turns": list(turns), "cuts": list(cuts)}))
            except (BrokenPipeError, EOFError) as error:
                self.close()
                raise ChatTemplateError(
                    f"it takes more than {self.seconds:g} s or {MEMORY // 2**20} MiB for one conversation"
                ) from error
            except BaseException:
                # A late answer would otherwise be taken for the answer to the next request.
                self.close()
                raise
        if isinstance(answer, dict):
            raise ChatTemplateError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _ask(self, request: str) -> Any:
        if self._process is None:
            # -P: the script's folder has modules with the names of other packages.
            command = [sys.executable, "-P", str(resources.files("devft_jax.data") / "chat_worker.py")]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._finalizer = weakref.finalize(self, _end, self._process)
            request = f"{self._start}\n{request}"
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request.encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise EOFError
        return json.loads(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@functools.lru_cache(maxsize=4)
def _shared(template: str, names: str) -> ChatTemplate:
    return ChatTemplate(template, json.loads(names))


def chat_template(template: str, names: Mapping[str, Any]) -> ChatTemplate:
    """A `ChatTemplate`, the same object for the same arguments, so that one process serves all callers.

    Args:
      template: the template, in jinja.
      names: as in `ChatTemplate`.
    """
    return _shared(template, json.dumps(dict(names), sort_keys=True, default=str))

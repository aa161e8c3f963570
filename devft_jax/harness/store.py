"""Finished requests on disk, so that a stopped evaluation can be resumed and no request is computed twice.

The file belongs to one model (`devft_jax.harness.identity`) and holds a JSON line for each finished request: its key, a
digest of everything that its answer depends on (method, token ids, settings of generation), and the answer. Lines are only
appended. A process that is killed leaves at most a last line that is incomplete: it is left out, and the next line begins
on its own.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devft_jax.errors import InputError, RunError
from devft_jax.models.huggingface.safetensors import one_line


def request_key(method: str, tokens: np.ndarray, settings: Any = None) -> str:
    """The key of a request.

    Args:
      method: what is asked of the model.
      tokens: i32[n], ids that it is given.
      settings: JSON-ready values that the answer depends on, too.

    Returns:
      32 hexadecimal digits.
    """
    head = json.dumps([method, settings], sort_keys=True)
    return hashlib.blake2b(head.encode() + b"\0" + tokens.astype("<i4").tobytes(), digest_size=16).hexdigest()


class RequestStore:
    """Answers by the keys of their requests, in a file that only grows.

    Args:
      path: the file; it and its folder are made with the first answer.

    Raises:
      InputError: the file cannot be read.

    Attributes:
      path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._ends_in_line = True
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise InputError(
                f"the finished requests {path} cannot be read ({one_line(error)}); mend that, or remove the file."
            ) from error
        for line in content.split(b"\n"):
            self._take(line)
        self._ends_in_line = not content or content.endswith(b"\n")

    def _take(self, line: bytes) -> None:
        """Read one line; one that a killed process has left incomplete says nothing."""
        try:
            row = json.loads(line)
            self._answers[row["key"]] = row["answer"]
        except (ValueError, TypeError, KeyError):
            return

    def __len__(self) -> int:
        """How many answers it holds."""
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        """Whether it holds the answer to a request."""
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        """The answer to a request that it holds."""
        return self._answers[key]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers.

        Args:
          answers: JSON-ready values by the keys of their requests.

        Raises:
          RunError: the file cannot be written.
        """
        if not answers:
            return
        lines = "".join(json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items())
        text = lines if self._ends_in_line else "\n" + lines
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One write at the file's end, so that two processes do not mix their lines.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                content = text.encode()
                while content:
                    content = content[os.write(file, content) :]
            finally:
                os.close(file)
        except OSError as error:
            raise RunError(
                f"the finished requests {self.path} cannot be written ({one_line(error)}); make room there and start the "
                "same command again: it resumes from there."
            ) from error
        self._ends_in_line = True
        self._answers |= answers

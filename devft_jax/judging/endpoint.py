"""A judge behind an OpenAI-compatible endpoint, asked over HTTP until it answers, or cannot.

    sent again     connection refused or lost, timeout, 408, 409, 425, 429, 5xx, an answer that is no chat completion
    ends all       401 and 403 (the key), 404 (address or model), a quota that is used up, retries that are used up
    ends a case    400, 413, 422 and every other status: this case is counted as refused, unless nothing worked before it

Waits double from `FIRST_WAIT` to `LONGEST_WAIT`, each between half and all of that; what the endpoint asks for in
Retry-After holds for all requests. The key goes into the header of requests and nowhere else: whatever the endpoint says is
searched for it before it is shown or kept.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from devft_jax.errors import InputError, RunError
from devft_jax.files import parse_json, printable
from devft_jax.judging.cases import Abandoned, Case, Reply
from devft_jax.judging.options import KEY_VARIABLE, EndpointOptions

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between two attempts."""

PAUSE = 5.0
"""Seconds between two lines about requests that failed."""

MOST_ASKED_WAIT = 3600.0
"""Seconds that an endpoint may ask to wait."""

MOST_BYTES = 16 * 2**20
"""Of one answer."""

AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
"""Statuses after which a request is sent again."""

HIDDEN = "[key]"
"""What stands for the key in anything that is shown or kept."""


class _Failed(Exception):  # noqa: N818
    """An attempt failed and may be made again.

    Args:
      reason: in words.
      wait: seconds that the endpoint asks to wait; None where it does not say.
    """

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def key_of(variable: str | None) -> str | None:
    """The endpoint's key, from the environment.

    Args:
      variable: that holds it, as it was given; None where it was not.

    Returns:
      The key; None where none was named and the usual variable is not set.

    Raises:
      InputError: the variable is not set, or holds what no key is.
    """
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if not key and variable is not None:
        raise InputError(
            f"key_variable {printable(variable)} is not set in the environment; export the endpoint's key in it."
        )
    if not all("!" <= character <= "~" for character in key):
        raise InputError(
            f"the environment variable {printable(variable or KEY_VARIABLE)} holds characters that no key has, such as "
            "blanks; correct it."
        )
    return key or None


def address_of(endpoint: str) -> Any:
    """Where requests go: `chat/completions` below the endpoint's address, an `httpx.URL`.

    Args:
      endpoint: as it was given.

    Raises:
      InputError: it is no address of HTTP, or holds a password.
    """
    httpx = _httpx()
    try:
        url = httpx.URL(endpoint)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(
            f"endpoint {printable(endpoint)!r} is no address ({error}); write one such as http://localhost:8000/v1."
        ) from error
    if url.userinfo:
        raise InputError(
            "endpoint holds a name or password before its host; leave it out and give the key by --key-variable."
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(
            f"endpoint '{printable(endpoint)}' is no address of HTTP; write one such as http://localhost:8000/v1."
        )
    place = url.path.rstrip("/")
    return url.copy_with(path=place if place.endswith("/chat/completions") else f"{place}/chat/completions", fragment=None)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise InputError("endpoint needs the package httpx, which is not installed; run `pip install httpx`.") from error
    return httpx


class Endpoint:
    """A judge at an endpoint; may be called from several threads.

    Args:
      options: address, model, patience.
      say: shows a line.

    Attributes:
      shown: its address as messages have it, without a query.
      given_up: set where no attempt is to be waited for any more; requests under way end by themselves.

    Raises:
      InputError: address, model or key is missing or wrong.
    """

    def __init__(self, options: EndpointOptions, say: Callable[[str], None] = lambda text: None):
        assert options.endpoint is not None
        if not options.judge_model:
            raise InputError("endpoint needs the name of the model that judges there; give --judge-model.")
        self.options = options
        self.given_up = threading.Event()
        self._url = address_of(options.endpoint)
        self.shown = str(self._url.copy_with(query=None))
        self._key = key_of(options.key_variable)
        self._say = say
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._said = float("-inf")
        self._has_answered = False
        self._body: dict[str, Any] = {"model": options.judge_model, "temperature": 0, "max_tokens": options.judge_tokens}
        httpx = _httpx()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        timeout = httpx.Timeout(options.timeout, connect=min(options.timeout, 20.0), pool=None)
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None))
        self._failures, self._late = (httpx.TransportError, httpx.DecodingError), httpx.TimeoutException

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def __call__(self, case: Case) -> Reply:
        """Ask about a case.

        Args:
          case: with the texts of a judge prompt.

        Returns:
          What the judge said, or why it would not.

        Raises:
          InputError: the endpoint does not accept the key, the address or the model.
          RunError: it does not answer.
          Abandoned: `given_up` was set before the next attempt.
        """
        system = [{"role": "system", "content": case.system_prompt}] if case.system_prompt else []
        messages = [*system, {"role": "user", "content": case.user_prompt}]
        for attempt in range(self.options.retries + 1):
            self._wait_for_turn()
            try:
                return self._attempt(messages)
            except _Failed as failed:
                last = failed
            if attempt < self.options.retries:
                self._back_off(attempt, last)
        again = f"after {self.options.retries + 1} attempts" if self.options.retries else "and retries is 0"
        raise RunError(
            f"endpoint {self.shown} does not answer ({last.reason}) {again}; what was judged is kept: start the same "
            "command again once it does."
        )

    def _wait_for_turn(self) -> None:
        """Wait until requests may be sent."""
        while (left := self._not_before - time.monotonic()) > 0:
            if self.given_up.wait(left):
                raise Abandoned

    def _back_off(self, attempt: int, failed: _Failed) -> None:
        """Wait before the next attempt; all requests wait where the endpoint asked for it."""
        doubled = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
        wait = doubled if failed.wait is None else failed.wait + random.uniform(0, min(FIRST_WAIT, doubled))
        now = time.monotonic()
        with self._lock:
            if failed.wait is not None:
                self._not_before = max(self._not_before, now + failed.wait)
            is_news = now - self._said >= PAUSE
            self._said = now if is_news else self._said
        if is_news:
            self._say(f"  the endpoint gave no answer ({failed.reason}); asking again in {wait:.1f} s")
        if self.given_up.wait(wait):
            raise Abandoned

    def _attempt(self, messages: list[dict[str, str]]) -> Reply:
        """Send the request once."""
        with self._lock:
            body = dict(self._body)
        try:
            status, headers, content = self._post({**body, "messages": messages})
        except self._late as error:
            raise _Failed(f"nothing within {self.options.timeout:g} s") from error
        except self._failures as error:
            raise _Failed(self._clean(str(error)) or type(error).__name__) from error
        text = content.decode("utf-8", "replace")
        if self._key is not None:
            text = text.replace(self._key, HIDDEN)
        if status == 200:
            reply = self._completion(text)
            self._has_answered = True
            return reply
        said, code = self._message(text)
        if status == 400 and self._adapted(body, said):
            return self._attempt(messages)
        return self._failure(status, headers, said, code)

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of the answer; `_Failed` where it does not end in time."""
        deadline = time.monotonic() + self.options.timeout
        content = bytearray()
        with self._client.stream("POST", self._url, json=body) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise _Failed(f"an answer of more than {MOST_BYTES:,} bytes")
                if time.monotonic() > deadline:
                    raise _Failed(f"no whole answer within {self.options.timeout:g} s")
            return response.status_code, response.headers, bytes(content)

    def _completion(self, text: str) -> Reply:
        """The reply in a chat completion; `_Failed` where it is none."""
        try:
            value = parse_json(text, "the answer", None)
            message = value["choices"][0]["message"]
            said = message["content"]
            usage = value.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (InputError, LookupError, TypeError, AttributeError) as error:
            raise _Failed(f"an answer that is no chat completion ({self._clean(text)[:60] or 'empty'})") from error
        if not isinstance(said, str | None):
            raise _Failed("an answer whose content is no text")
        read, wrote = (count if isinstance(count, int) and not isinstance(count, bool) else None for count in counts)
        return Reply(said or "", read, wrote)

    def _failure(self, status: int, headers: Mapping[str, str], said: str, code: str) -> Reply:
        """Raise what a status other than 200 means; a `Reply` where only this case cannot be judged."""
        answered = f"{status}: {said}" if said else str(status)
        if status in (401, 403):
            held = "no key was sent" if self._key is None else "it does not accept the key"
            variable = self.options.key_variable or KEY_VARIABLE
            raise InputError(
                f"endpoint {self.shown} answered {answered}, and {held}; put a valid key into the environment variable "
                f"{variable}."
            )
        if code == "insufficient_quota":
            raise RunError(
                f"endpoint {self.shown} answered {answered}; what was judged is kept: start the same command again once "
                "there is quota."
            )
        if status in AGAIN:
            wait = asked_wait(headers.get("Retry-After"))
            if wait is not None and wait > MOST_ASKED_WAIT:
                raise RunError(
                    f"endpoint {self.shown} answered {answered} and asks to wait {wait:,.0f} s; what was judged is kept: "
                    "start the same command again then."
                )
            raise _Failed(answered, wait)
        if status == 404 or 300 <= status < 400:
            raise InputError(
                f"endpoint {self.shown} answered {answered} to the model '{printable(str(self.options.judge_model))}'; "
                "correct --endpoint or --judge-model."
            )
        if not self._has_answered:
            raise InputError(
                f"endpoint {self.shown} answered {answered} to the first request; correct what it names, such as "
                "--judge-model or --judge-tokens."
            )
        return Reply("", refused=answered)

    def _adapted(self, body: Mapping[str, Any], said: str) -> bool:
        """Whether the request was changed to what the endpoint says that it takes.

        Newer models take max_completion_tokens for max_tokens, and no temperature.
        """
        with self._lock:
            if "max_completion_tokens" in said and "max_tokens" in body:
                self._body.pop("max_tokens", None)
                self._body["max_completion_tokens"] = self.options.judge_tokens
                return True
            if "temperature" in said and "temperature" in body:
                self._body.pop("temperature", None)
                return True
        return False

    def _message(self, text: str) -> tuple[str, str]:
        """What an error says, and its code."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "", ""
        error = value.get("error", value) if isinstance(value, dict) else value
        if not isinstance(error, dict):
            return self._clean(str(error)), ""
        return self._clean(str(error.get("message") or error.get("detail") or "")), str(error.get("code") or "")

    def _clean(self, text: str) -> str:
        """Text of others as messages have it: one short line, without the key."""
        text = text if self._key is None else text.replace(self._key, HIDDEN)
        line = printable(" ".join(text.split())).rstrip(".")
        return line if len(line) <= 200 else f"{line[:200]}..."


def asked_wait(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait; None where it does not say.

    Args:
      value: of the header: seconds, or a date of HTTP.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds == seconds else None

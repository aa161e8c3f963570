"""Renders chat templates in a separate process, because a template is a program and may come from anywhere.

The process imports jinja2 and nothing of this package. Its first line of input is
`{"template", "names", "today", "seconds"}`: the template, the names that it may read besides the conversation, the current
date for the template, and the computing time of one rendering. Every further line is `{"turns", "cuts"}`, answered by a line
with the text of each cut, `[number of turns, whether it ends with the prompt for an answer]`, or with `{"error"}`. Templates
may use what Hugging Face's documentation of chat templates promises, in jinja2's sandbox. A rendering that exceeds its time
or memory ends the process, which its reader detects.
"""

import datetime
import json
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

# Memory limit of the process, in bytes.
MEMORY = 2**30


class Generation(jinja2.ext.Extension):
    """The block `generation`, with which templates mark answers for other tools; here only its content is used.

    Attributes:
      tags: the names of the block, for jinja2.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """The block as a node.

        Args:
          parser: jinja2's parser, at the block.
        """
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class Namespace(jinja2.utils.Namespace):
    """Values that a template may set, except Python's special names."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a value."""
        if name.startswith("__"):
            raise jinja2.sandbox.SecurityError(f"namespace has no settable {name}")
        super().__setitem__(name, value)


def environment(today: datetime.date) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The jinja2 environment in which templates are parsed and run.

    Args:
      today: the current date for templates.
    """

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals.update(
        raise_exception=refuse,
        strftime_now=today.strftime,
        namespace=Namespace,
        dict=lambda *pairs, **values: dict(*pairs, **values),
    )
    return made


def bounded(compute: Callable[[], Any], seconds: float) -> Any:
    """The result of `compute`, or `{"error"}`; if it exceeds the time or memory limit, the process ends.

    Args:
      compute: the function to call.
      seconds: limit of the computing time.
    """
    # Nothing handles the signal, so it ends the process wherever it is.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return compute()
    except MemoryError:
        raise SystemExit(1) from None
    except Exception as error:  # a template may raise anything, and some refuse by raising
        return {"error": str(error).strip().split("\n")[0][:500] or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def answer(template: Any, start: dict[str, Any], request: dict[str, Any]) -> list[str] | dict[str, str]:
    """The texts for a request, or the reason why there are none.

    Args:
      template: the template of jinja2.
      start: the first line of input.
      request: another line of input.
    """
    texts = []
    for length, asks in request["cuts"]:
        given = {
            "messages": [dict(turn) for turn in request["turns"][:length]],
            "tools": None,
            "documents": None,
            "add_generation_prompt": asks,
        }
        text = bounded(partial(template.render, start["names"] | given), start["seconds"])
        if isinstance(text, dict):
            return text
        texts.append(text)
    return texts


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # not every system can limit memory; time is limited on all
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most < 0 else min(MEMORY, most), most))
    start = json.loads(sys.stdin.buffer.readline())
    made = environment(datetime.date.fromisoformat(start["today"]))
    template = bounded(partial(made.from_string, start["template"]), start["seconds"])
    for line in iter(sys.stdin.buffer.readline, b""):
        found = template if isinstance(template, dict) else answer(template, start, json.loads(line))
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

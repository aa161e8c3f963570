"""Renders chat templates as a process of its own: a template is a program, and it may come from anywhere.

The process imports jinja2 and nothing of this package. Its first line of input is
`{"template", "names", "today", "seconds"}`: the template, what it may read besides the conversation, the date that it gets
and how long a rendering may compute. Every further line is `{"turns", "cuts"}`, answered by a line with the text of each
cut, `[number of turns, whether an answer is asked for]`, or with `{"error"}`. What a template may use is what Hugging
Face's documentation of chat templates promises, in jinja2's sandbox. A rendering that takes more time or memory than any
conversation needs ends the process, and its reader notices.
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

# Bytes of memory of the process.
MEMORY = 2**30


class Generation(jinja2.ext.Extension):
    """The block `generation`, by which templates mark answers for others; here it is its content.

    Attributes:
      tags: the names of the block, for jinja2.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """The block as a node.

        Args:
          parser: of jinja2, at the block.
        """
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class Namespace(jinja2.utils.Namespace):
    """Values that a template may set; not those that Python keeps for itself."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a value."""
        if name.startswith("__"):
            raise jinja2.sandbox.SecurityError(f"namespace has no settable {name}")
        super().__setitem__(name, value)


def environment(today: datetime.date) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What templates are read and run in.

    Args:
      today: the date that templates get.
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
    """What `compute` gives, or `{"error"}`; without an answer in that time or memory the process ends.

    Args:
      compute: what is to be computed.
      seconds: of computing.
    """
    # Nobody handles the signal, so that it ends the process wherever it is.
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
    """The texts that a request asks for, or why there are none.

    Args:
      template: of jinja2.
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
    with suppress(ValueError, OSError):  # not every system bounds it; the time is bounded on all
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

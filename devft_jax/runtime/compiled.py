"""Compiled programs: what compiling cost, and what memory they take.

Every program is compiled ahead of time for its shapes and kept here, so that compilation is counted and timed apart from
training, and its scratch memory is known.
"""

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import jax

from devft_jax.runtime.devices import usual_arithmetic

# For functions that make jitted ones. JAX keeps what it has compiled with the jitted function, so that calls that agree on
# the arguments share their programs, within a run and with later runs of the process; those longest unused are let go.
shared_programs = functools.lru_cache(maxsize=32)


@dataclass(frozen=True)
class CompiledMemory:
    """XLA's analysis of a compiled program, bytes on one device; `aliased` outputs reuse the memory of arguments."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def total(self) -> int:
        """Arguments, outputs and temporaries, what is aliased counted once."""
        return self.arguments + self.outputs + self.temporaries - self.aliased

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> Self | None:
        """The analysis of a program; None where the platform's compiler gives none."""
        analysis = compiled.memory_analysis()
        if analysis is None:
            return None
        return cls(
            arguments=analysis.argument_size_in_bytes,
            outputs=analysis.output_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
            aliased=analysis.alias_size_in_bytes,
        )


@dataclass(frozen=True)
class _Program:
    """A compiled program; whether it is `new`, not found compiled; and the seconds that compiling it took."""

    executable: jax.stages.Compiled
    memory: CompiledMemory | None
    new: bool
    seconds: float


@dataclass(frozen=True)
class _Ahead:
    """A program that is compiled, or waits to be, on the background thread; `arguments` are shapes."""

    program: Future[_Program]
    arguments: tuple[Any, ...]


class CompiledPrograms:
    """Ahead-of-time compiled programs by shape.

    JAX keeps what is compiled with the jitted function: a run that is given the function of another finds its programs and
    compiles nothing. What is likely to be called later can be compiled ahead, on a thread of its own.

    Args:
      waiting: gives, for a program's name, what surrounds the time that a caller waits for its compilation.

    Attributes:
      seconds: that callers waited for compilation. scratch_bytes: largest temporary memory of any program called.
      peak_bytes: largest memory of a program called since this was last set to 0, on each device, as XLA's analysis gives
        it: arguments, outputs and temporaries, less what outputs share with arguments.
      last_bytes: the same of the program called last.
      compile_seconds: what compiling took, in this run or an earlier one, of the program called last under each name.
    """

    def __init__(self, waiting: Callable[[str], contextlib.AbstractContextManager[None]] | None = None) -> None:
        self._waiting = waiting or (lambda name: contextlib.nullcontext())
        self.seconds = 0.0
        self.scratch_bytes = self.peak_bytes = self.last_bytes = 0
        self.compile_seconds: dict[str, float] = {}
        self._compiled = 0
        self._programs: dict[Any, _Program] = {}
        self._ahead: dict[Any, _Ahead] = {}
        self._begun_ahead: list[Future[_Program]] = []
        self._thread: ThreadPoolExecutor | None = None

    @property
    def count(self) -> int:
        """Programs compiled, also ahead; not those that were found."""
        return self._compiled + sum(program.new for program in self._made_ahead())

    @property
    def ahead(self) -> dict[str, Any]:
        """What was compiled ahead: `programs`, the `seconds` of the thread, and how many are `unused` so far."""
        made = [program for program in self._made_ahead() if program.new]
        called = {id(program) for program in self._programs.values()}
        return {
            "programs": len(made),
            "seconds": sum(program.seconds for program in made),
            "unused": sum(id(program) not in called for program in made),
        }

    def _made_ahead(self) -> list[_Program]:
        done = [each for each in self._begun_ahead if each.done() and not each.cancelled() and each.exception() is None]
        return [each.result() for each in done]

    def call(self, name: str, function: Any, *arguments: Any) -> Any:
        """Call a jitted function through its compiled program for these shapes, compiling on first sight.

        A program that is being compiled ahead is waited for; where that went wrong it is compiled here.
        """
        key = _key(name, function, arguments)
        if key not in self._programs:
            began = time.perf_counter()
            try:
                with self._waiting(name):
                    self._programs[key] = self._first(key, function, arguments)
            finally:
                self.seconds += time.perf_counter() - began
        program = self._programs[key]
        self.compile_seconds[name] = program.seconds
        self.last_bytes = 0 if program.memory is None else program.memory.total
        self.peak_bytes = max(self.peak_bytes, self.last_bytes)
        return program.executable(*arguments)

    def _first(self, key: Any, function: Any, arguments: tuple[Any, ...]) -> _Program:
        ahead = self._ahead.pop(key, None)
        # One that has not been begun need not wait for those before it.
        begun = None
        if ahead is not None and not ahead.program.cancel() and _fits(ahead.arguments, arguments):
            begun = ahead.program
        # What failed beside a round, for want of memory say, may do alone; what cannot be compiled says so again.
        if begun is not None and begun.exception() is None:
            program = begun.result()
        else:
            program = _compile(function, arguments)
            self._compiled += program.new
        if program.memory is not None:
            self.scratch_bytes = max(self.scratch_bytes, program.memory.temporaries)
        return program

    def prepare(self, name: str, function: Any, *arguments: Any) -> None:
        """Begin to compile on the background thread what a `call` with arguments of these shapes will want.

        Args:
          arguments: trees of `jax.ShapeDtypeStruct`, with the sharding of those that are not on the default device alone.
        """
        key = _key(name, function, arguments)
        if key in self._programs or key in self._ahead:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "devft-compile")
        # JAX's settings are the thread's own.
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        program = self._thread.submit(_compile_ahead, function, arguments, precision)
        self._ahead[key] = _Ahead(program, arguments)
        self._begun_ahead.append(program)

    def close(self) -> None:
        """Begin nothing more ahead. Nobody waits for the program under way but, at its end, the process."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None


def _key(name: str, function: Any, arguments: tuple[Any, ...]) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return name, function, structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def _compile_ahead(function: Any, arguments: tuple[Any, ...], precision: Any) -> _Program:
    with jax.default_matmul_precision(precision), usual_arithmetic():
        return _compile(function, arguments)


def _compile(function: Any, arguments: tuple[Any, ...]) -> _Program:
    began, before = time.perf_counter(), _compilations.count
    executable = function.lower(*arguments).compile()
    seconds, new = time.perf_counter() - began, _compilations.count > before
    took, shapes = _seconds_of.setdefault(function, {}), _key("", None, arguments)
    if new:
        took[shapes] = seconds
    return _Program(executable, CompiledMemory.of(executable), new, took.get(shapes, seconds))


# By jitted function and shapes, what compiling took that a later run need not do.
_seconds_of: weakref.WeakKeyDictionary[Any, dict[Any, float]] = weakref.WeakKeyDictionary()


def _fits(shapes: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
    """Whether a program compiled for `shapes` is the one that arrays of the same shapes would be given."""

    def one(shape: jax.ShapeDtypeStruct, leaf: Any) -> bool:
        if shape.weak_type != getattr(leaf, "weak_type", False):
            return False
        return shape.sharding is None or shape.sharding.is_equivalent_to(leaf.sharding, len(leaf.shape))

    return all(jax.tree.leaves(jax.tree.map(one, shapes, arguments)))


class _Compilations(threading.local):
    """How often XLA's compiler has run on this thread."""

    count = 0

    def note(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Hear of an event of JAX."""
        self.count += event == "/jax/core/compile/backend_compile_duration"


_compilations = _Compilations()
jax.monitoring.register_event_duration_secs_listener(_compilations.note)

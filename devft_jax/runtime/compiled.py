"""Compiled programs: how long compiling took, and how much memory they need.

Every program is compiled ahead of time for its shapes and cached here, so that compilation is counted and timed separately
from training, and the program's memory is known.

JAX keeps what it lowered and compiled with the jitted function, which serves later runs of the same process. In a process
that runs only one command nothing comes later: only the programs kept here then hold memory, until they are dropped.
"""

import contextlib
import ctypes
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import jax

from devft_jax.runtime.devices import usual_arithmetic
from devft_jax.runtime.stopping import is_own_process

# A cache for functions that return jitted ones. JAX stores compiled programs with the jitted function: calls with equal
# arguments share their programs, within a run and with later runs of the process. The least recently used are dropped.
shared_programs = functools.lru_cache(maxsize=32)


@dataclass(frozen=True)
class CompiledMemory:
    """XLA's analysis of a compiled program, in bytes on one device.

    Attributes:
      arguments: bytes of its inputs.
      outputs: bytes of its results.
      temporaries: bytes that it needs while it runs.
      aliased: bytes of outputs that are written into donated arguments.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def total(self) -> int:
        """Arguments, outputs and temporaries; aliased buffers count once."""
        return self.arguments + self.outputs + self.temporaries - self.aliased

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> Self | None:
        """The analysis of a program; None if the platform's compiler has none."""
        analysis = compiled.memory_analysis()
        if analysis is None:
            return None
        return cls(
            arguments=analysis.argument_size_in_bytes,
            outputs=analysis.output_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
            aliased=analysis.alias_size_in_bytes,
        )


@dataclass
class _Program:
    """A compiled program, None once it is dropped; `new` if it was compiled now and not found in a cache; the seconds that
    its compilation took; whether it was called."""

    executable: jax.stages.Compiled | None
    memory: CompiledMemory | None
    new: bool
    seconds: float
    called: bool = False


@dataclass(frozen=True)
class _Ahead:
    """A program that the background thread compiles or will compile; `arguments` are shapes."""

    program: Future[_Program]
    arguments: tuple[Any, ...]


@dataclass
class Elapsed:
    """Seconds of a block.

    Attributes:
      running: without waiting for compilation.
      compiling: spent waiting for compilation.
    """

    running: float = 0.0
    compiling: float = 0.0


class CompiledPrograms:
    """Ahead-of-time compiled programs by shape.

    JAX stores compiled programs with the jitted function: a run that uses the function of an earlier run of the process
    finds its programs and compiles nothing. A program that will probably be called later can be compiled ahead, on a
    background thread.

    Args:
      waiting: maps a program's name to a context that is open while a caller waits for its compilation.

    Attributes:
      seconds: how long callers waited for compilation.
      scratch_bytes: the largest temporary memory of any program called.
      peak_bytes: the largest memory of a program called since this was last set to 0, on one device, by XLA's analysis:
        arguments, outputs and temporaries, less what outputs share with arguments.
      last_bytes: the same for the program called last.
      compile_seconds: by name, how long it took to compile the last program called under this name, in this run or an
        earlier one.
    """

    def __init__(self, waiting: Callable[[str], contextlib.AbstractContextManager[Any]] | None = None) -> None:
        self._waiting = waiting or (lambda name: contextlib.nullcontext())
        self.seconds = 0.0
        self.scratch_bytes = self.peak_bytes = self.last_bytes = 0
        self.compile_seconds: dict[str, float] = {}
        self._compiled = 0
        self._programs: dict[Any, _Program] = {}
        self._newest: dict[str, Any] = {}
        self._ahead: dict[Any, _Ahead] = {}
        self._submitted: list[Future[_Program]] = []
        self._thread: ThreadPoolExecutor | None = None

    @contextlib.contextmanager
    def timed(self) -> Iterator[Elapsed]:
        """Time a block; the seconds are set when it has ended."""
        elapsed, began, compiled = Elapsed(), time.perf_counter(), self.seconds
        yield elapsed
        elapsed.compiling = self.seconds - compiled
        elapsed.running = time.perf_counter() - began - elapsed.compiling

    @property
    def count(self) -> int:
        """Number of programs compiled in this run, including those ahead of time; not those found in a cache."""
        return self._compiled + sum(program.new for program in self._compiled_ahead())

    @property
    def ahead(self) -> dict[str, Any]:
        """What was compiled ahead: the number of `programs`, the thread's `seconds`, and how many are `unused` so far."""
        compiled = [program for program in self._compiled_ahead() if program.new]
        return {
            "programs": len(compiled),
            "seconds": sum(program.seconds for program in compiled),
            "unused": sum(not program.called for program in compiled),
        }

    def _compiled_ahead(self) -> list[_Program]:
        done = [each for each in self._submitted if each.done() and not each.cancelled() and each.exception() is None]
        return [each.result() for each in done]

    def call(self, name: str, function: Any, *arguments: Any) -> Any:
        """Call a jitted function through its compiled program for these shapes; the first call compiles it.

        If the program is being compiled ahead, the call waits for it; if that failed, the call compiles the program itself.

        Args:
          name: the name under which the program is counted.
          function: a jitted function.
          arguments: trees of arrays.

        Returns:
          What the function returns.
        """
        key = _key(name, function, arguments)
        if key not in self._programs:
            began = time.perf_counter()
            try:
                with self._waiting(name):
                    self._programs[key] = self._program(key, function, arguments)
            finally:
                self.seconds += time.perf_counter() - began
        program = self._programs[key]
        program.called = True
        self._newest[name] = key
        self.compile_seconds[name] = program.seconds
        self.last_bytes = 0 if program.memory is None else program.memory.total
        self.peak_bytes = max(self.peak_bytes, self.last_bytes)
        assert program.executable is not None
        return program.executable(*arguments)

    def _program(self, key: Any, function: Any, arguments: tuple[Any, ...]) -> _Program:
        """The program of a first call: from the background thread, or compiled here."""
        ahead = self._ahead.pop(key, None)
        # A program that the thread has not started is removed from its queue, so as not to wait for those before it.
        running = None
        if ahead is not None and not ahead.program.cancel() and _fits(ahead.arguments, arguments):
            running = ahead.program
        # What failed next to a running round, for example for lack of memory, may work alone; other errors are raised again.
        if running is not None and running.exception() is None:
            program = running.result()
        else:
            program = _compile(function, arguments)
            self._compiled += program.new
        if program.memory is not None:
            self.scratch_bytes = max(self.scratch_bytes, program.memory.temporaries)
        return program

    def drop(self, *names: str, but_newest: bool = False) -> None:
        """Free programs; a later call compiles them again, or finds them in JAX's caches.

        Args:
          names: the names under which they are counted.
          but_newest: keep of each name the program that was called last.
        """
        for key in [key for key in self._programs if key[0] in names]:
            if not (but_newest and key == self._newest.get(key[0])):
                self._programs.pop(key).executable = None

    def prepare(self, name: str, function: Any, *arguments: Any) -> None:
        """Compile on the background thread the program that a later `call` with arguments of these shapes needs.

        Args:
          name: as in `call`.
          function: as in `call`.
          arguments: trees of `jax.ShapeDtypeStruct`, with the sharding of those that are not on the default device alone.
        """
        key = _key(name, function, arguments)
        if key in self._programs or key in self._ahead:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "devft-compile")
        # JAX's settings are per thread.
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        program = self._thread.submit(_compile_ahead, function, arguments, precision)
        self._ahead[key] = _Ahead(program, arguments)
        self._submitted.append(program)

    def close(self) -> None:
        """Stop compiling ahead. The program that is being compiled is finished; only the end of the process waits for it."""
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
    if is_own_process():
        # The lowered module takes most of the memory of a small program.
        function.clear_cache()
        if seconds > LONG_COMPILATION:
            return_memory()
    took, shapes = _seconds_of.setdefault(function, {}), _key("", None, arguments)
    if new:
        took[shapes] = seconds
    return _Program(executable, CompiledMemory.of(executable), new, took.get(shapes, seconds))


LONG_COMPILATION = 0.5
"""Seconds after which a compilation is taken to have used much memory."""


def return_memory() -> None:
    """Return to the system what the C library keeps of freed memory, such as a compilation's, which would stay beside what
    the program needs when it runs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# By jitted function and shapes, how long compiling took: a later run of the process that finds the program reports this.
_seconds_of: weakref.WeakKeyDictionary[Any, dict[Any, float]] = weakref.WeakKeyDictionary()


def _fits(shapes: tuple[Any, ...], arguments: tuple[Any, ...]) -> bool:
    """Whether a program compiled for `shapes` is the one for these arrays, which have the same shapes."""

    def one(shape: jax.ShapeDtypeStruct, leaf: Any) -> bool:
        if shape.weak_type != getattr(leaf, "weak_type", False):
            return False
        return shape.sharding is None or shape.sharding.is_equivalent_to(leaf.sharding, len(leaf.shape))

    return all(jax.tree.leaves(jax.tree.map(one, shapes, arguments)))


class _Compilations(threading.local):
    """How often XLA's compiler has run on this thread."""

    count = 0

    def note(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Count an event of JAX if it is a compilation."""
        self.count += event == "/jax/core/compile/backend_compile_duration"


_compilations = _Compilations()
jax.monitoring.register_event_duration_secs_listener(_compilations.note)

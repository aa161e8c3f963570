"""Devices and compiled programs: where a run executes and what compiling it cost.

Every program is compiled ahead of time for its shapes and kept here, so that compilation is counted and timed apart from
training, and its scratch memory is known.
"""

import contextlib
import functools
import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, Self

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec, Sharding

from devft_jax.errors import InputError
from devft_jax.models.llama import REMAT_POLICIES, Compute
from devft_jax.options import execution

CLIENT_AXIS = "client"
MODEL_AXIS = "model"
DTYPES = ("auto", "float32", "bfloat16")
REMAT = ("auto", *REMAT_POLICIES)
# Clients, or held-out examples, are divided over all devices.
OVER_DEVICES = PartitionSpec((CLIENT_AXIS, MODEL_AXIS))

# For functions that make jitted ones. JAX keeps what it has compiled with the jitted function, so that calls that agree on
# the arguments share their programs, within a run and with later runs of the process; those longest unused are let go.
shared_programs = functools.lru_cache(maxsize=32)


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Devices, precision and memory of the simulation."""

    dtype: str = "auto"
    """Precision of activations and frozen weights: float32, bfloat16, or auto (float32 on CPU, else bfloat16)."""
    devices: int | None = execution(None)
    """Local devices to spread the clients over; by default all. On CPU a device is a slice of the host's cores."""
    model_shards: int = execution(1)
    """Devices that hold the frozen base together, for one that a device has no room for: each keeps a part, and a layer's
    weights are gathered where the layer runs. It divides the devices; all of them train clients of their own."""
    clients_per_step: int | Literal["auto"] = execution("auto")
    """Clients trained at once (memory grows with it, results do not change), at most a round's participants. auto begins
    with one per CPU device and 8 per accelerator and, where enough training is left after the first round, times larger
    numbers and keeps what is fastest and fits into memory."""
    examples_per_pass: int | None = execution(None)
    """Examples of a local step that are run at once, its passes' gradients being summed (memory grows with it, results do
    not change); by default all on an accelerator, and as many as suit the examples' length on a CPU."""
    length_buckets: int = execution(4)
    """Padded lengths between which a pass's examples choose, at most: each saves padding and is compiled; chosen to suit the
    training data."""
    remat: str = execution("auto")
    """What the backward pass recomputes to save memory: none, dots (all but the outputs of projections and attention), full
    (all but a layer's inputs), or auto (dots on CPU, where memory is slower than arithmetic, else none)."""
    attention: Literal["auto", "xla", "cudnn", "splash", "blocked"] = execution("auto")
    """Attention kernel: xla, cudnn, splash (for TPUs), blocked (written for CPUs), or auto (cudnn on NVIDIA GPUs in
    bfloat16, splash on TPUs for 128 tokens or more, blocked on CPU, else xla)."""
    head_rows: int = execution(256)
    """Tokens of a client whose logits are held at once in the loss."""
    bank_in_memory: int = execution(2**27)
    """Bytes of what clients keep between rounds that may lie in memory: where the rows of all clients could take more, they
    lie in a file of the run's folder, which grows with the clients that have taken part."""
    compile_ahead: Literal["auto", "on", "off"] = execution("auto")
    """Whether a thread compiles what the next stage needs while the present one trains, where the growth tells its stages'
    depths beforehand: on, off, or auto (on for accelerators; on a CPU, training and the compiler want the same cores)."""
    prefix_cache: Literal["auto", "on", "off"] = execution("auto")
    """Whether layers that a growth runs below every adapter, such as top-grow's, are run once for each example, their hidden
    states stored in the run's folder while the stage lasts: on, off, or auto (where examples come often enough and the
    states are not too large)."""


def validate_execution(options: ExecutionOptions) -> None:
    """Raise `InputError` for a choice that does not exist; devices are checked by `local_devices`."""
    choices = {"dtype": DTYPES, "remat": REMAT}
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise InputError(f"{name} '{getattr(options, name)}' is unknown; choose from {', '.join(allowed)}.")
    for name in ("devices", "model_shards", "clients_per_step", "examples_per_pass", "length_buckets", "head_rows"):
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise InputError(f"{name} {value} is not positive; use 1 or more.")
    if options.devices is not None:
        check_model_shards(options.model_shards, options.devices)
    if options.bank_in_memory < 0:
        raise InputError(f"bank_in_memory {options.bank_in_memory} is negative; use 0 to keep all of it in a file.")


def check_model_shards(shards: int, devices: int) -> None:
    """Raise `InputError` unless so many devices are made of groups of `shards`."""
    if shards > devices:
        raise InputError(
            f"model_shards {shards} exceeds the {devices} device(s) of the run; use {devices} or fewer, or more devices."
        )
    if devices % shards:
        raise InputError(
            f"devices {devices} is not a multiple of model_shards {shards}; use {devices - devices % shards} devices, or a "
            "number of shards that divides them."
        )


def local_devices(options: ExecutionOptions) -> list[jax.Device]:
    """The devices to use, as many as asked for; more than there are, or no whole groups of shards, is an `InputError`."""
    found = jax.local_devices()
    wanted = len(found) if options.devices is None else options.devices
    if wanted > len(found):
        raise InputError(
            f"devices {wanted} exceeds the {len(found)} {found[0].platform} device(s) found; use {len(found)} or fewer."
        )
    check_model_shards(options.model_shards, wanted)
    return found[:wanted]


def resolve_compute(options: ExecutionOptions) -> Compute:
    """The execution choices of the forward pass, `auto` resolved for the default platform.

    Raises:
      InputError: the platform lacks the attention kernel asked for.
    """
    platform = jax.default_backend()
    for kernel, home, machine in (("cudnn", "gpu", "an NVIDIA GPU"), ("splash", "tpu", "a TPU")):
        if options.attention == kernel and platform != home:
            raise InputError(f"attention '{kernel}' needs {machine} and JAX runs on {platform}; use auto or xla.")
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    remat = options.remat
    if remat == "auto":
        remat = "dots" if platform == "cpu" else "none"
    return Compute(dtype=dtype, remat=remat, attention=options.attention, head_rows=options.head_rows)


def resolve_clients_per_step(options: ExecutionOptions, devices: Sequence[jax.Device]) -> int:
    """Clients trained at once, a multiple of the devices: as asked, or what auto begins with."""
    per_device = 1 if devices[0].platform == "cpu" else 8
    asked = per_device * len(devices) if options.clients_per_step == "auto" else options.clients_per_step
    return -(-asked // len(devices)) * len(devices)


@contextlib.contextmanager
def usual_arithmetic() -> Iterator[None]:
    """JAX's own rules of types inside the block, whatever the environment asks for; the thread's own."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def host_device() -> jax.Device:
    """The device whose memory is the host's."""
    return jax.local_devices(backend="cpu")[0]


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that each device may hold: what its allocator was given, on CPU an even part of the host's memory."""
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def versions(device: jax.Device) -> dict[str, str]:
    """What a run's figures depend on besides its configuration: software, system and the kind of device."""
    try:
        package = metadata.version("devft-jax")
    except metadata.PackageNotFoundError:
        package = "not installed, run from source"
    return {
        "devft_jax": package,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.platform}, {device.device_kind}",
    }


def client_mesh(devices: Sequence[jax.Device], model_shards: int = 1) -> Mesh:
    """A mesh of groups of `model_shards` devices that hold the base together; clients are divided over both axes."""
    shape = (len(devices) // model_shards, model_shards)
    return jax.make_mesh(shape, (CLIENT_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto,) * 2, devices=devices)


def shapes_on(sharding: Sharding | None, tree: Any, *lead: int) -> Any:
    """Shapes and dtypes of arrays such as `tree` has, with the axes `lead` before theirs, once they are placed."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        weak = getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding, weak_type=weak)

    return jax.tree.map(one, tree)


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

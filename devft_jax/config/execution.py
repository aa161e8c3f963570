"""How a run is executed: devices, precision, and the trade of memory against time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from devft_jax.errors import InputError
from devft_jax.models.options import REMAT
from devft_jax.options import check_options, execution, option

if TYPE_CHECKING:
    import jax

    from devft_jax.models.llama import Compute

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Devices, precision and memory of the simulation."""

    dtype: str = option("auto", choices=DTYPES)
    """Precision of activations and frozen weights: float32, bfloat16, or auto (float32 on CPU, else bfloat16)."""
    devices: int | None = execution(None, at_least=1, at_most=2**16)
    """Local devices over which the clients are spread; by default all. On CPU a device is a share of the host's cores. Of
    several processes, each uses as many."""
    model_shards: int = execution(1, at_least=1, at_most=2**16)
    """Devices that hold the frozen base together, for a base that does not fit on one device: each keeps a shard, and a
    layer's weights are gathered when the layer runs. Must divide the number of devices; all of them train clients."""
    clients_per_step: int | Literal["auto"] = execution("auto", at_least=1, at_most=10**6)
    """Clients trained at once (memory grows with it, results do not change), at most a round's participants. auto takes on
    a CPU the fewest with which a layer's products are large, one per device for most models. On accelerators it starts with
    8 per device, tries larger numbers in the next rounds while enough training remains, and keeps the fastest; several
    processes keep the first number."""
    examples_per_pass: int | None = execution(None, at_least=1, at_most=10**6)
    """Examples of a local step that run at once; their gradients are summed (memory grows with it, results do not change).
    By default all on an accelerator, and on a CPU as many as suit the examples' length."""
    length_buckets: int = execution(4, at_least=1, at_most=2**16)
    """Largest number of padded lengths to which passes are rounded up: more lengths save padding, and each one is compiled;
    they are chosen from the training data."""
    remat: str = execution("auto", choices=("auto", *REMAT))
    """What the backward pass recomputes to save memory: none, dots (all but the outputs of projections and attention), full
    (all but a layer's inputs), or auto (dots on CPU, where memory is slower than arithmetic, else none)."""
    attention: Literal["auto", "xla", "cudnn", "splash", "blocked"] = execution("auto")
    """Attention kernel: xla, cudnn, splash (for TPUs), blocked (written for CPUs), or auto (cudnn on NVIDIA GPUs in
    bfloat16, splash on TPUs for 128 tokens or more, blocked on CPU, else xla)."""
    head_rows: int = execution(256, at_least=1, at_most=2**24)
    """Tokens of a client whose logits the loss holds at once."""
    bank_in_memory: int = execution(2**27, at_least=0, remedy="use 0 to keep all of it in a file")
    """Bytes of memory for what clients keep between rounds; if the rows of all clients could take more, they are stored in a
    file of the run's folder, which grows with the number of clients that have taken part."""
    compile_ahead: Literal["auto", "on", "off"] = execution("auto")
    """Whether a thread compiles the next stage's programs while the current stage trains, for growths whose stage depths are
    known in advance: on, off, or auto (on for accelerators; on a CPU, training and the compiler compete for the cores)."""
    prefix_cache: Literal["auto", "on", "off"] = execution("auto")
    """Whether the layers that a growth runs below all adapters, such as top-grow's, run once per example, with their hidden
    states stored in the run's folder for the rest of the stage: on, off, or auto (if examples recur often enough and the
    states are not too large)."""


def validate_execution(options: ExecutionOptions) -> None:
    """Raise `InputError` for an invalid value, or for shards that do not divide the devices; see also `local_devices`."""
    check_options(options)
    if options.devices is not None:
        check_model_shards(options.model_shards, options.devices)


def check_model_shards(shards: int, devices: int) -> None:
    """Raise `InputError` unless the number of devices is a multiple of `shards`."""
    if shards > devices:
        raise InputError(
            f"model_shards {shards} exceeds the {devices} device(s) of the run; use {devices} or fewer, or more devices."
        )
    if devices % shards:
        raise InputError(
            f"devices {devices} is not a multiple of model_shards {shards}; use {devices - devices % shards} devices, or a "
            "number of shards that divides them."
        )


def local_devices(options: ExecutionOptions) -> "list[jax.Device]":
    """The devices to use, as many as requested; raises `InputError` if there are fewer, or no whole groups of shards."""
    import jax

    found = jax.local_devices()
    wanted = len(found) if options.devices is None else options.devices
    if wanted > len(found):
        raise InputError(
            f"devices {wanted} exceeds the {len(found)} {found[0].platform} device(s) found; use {len(found)} or fewer."
        )
    check_model_shards(options.model_shards, wanted)
    return found[:wanted]


def resolve_compute(options: ExecutionOptions) -> "Compute":
    """The execution choices of the forward pass, with `auto` resolved for the default platform.

    Raises:
      InputError: the platform does not have the requested attention kernel.
    """
    import jax

    from devft_jax.models.llama import Compute

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


def resolve_clients_per_step(
    options: ExecutionOptions, devices: "Sequence[jax.Device]", participants: int, layer_flops: float
) -> int:
    """Clients trained at once, a multiple of the devices: the option's value, or the number with which auto starts.

    Args:
      options: the options of execution.
      devices: the devices that train clients.
      participants: of a round; more clients at once would only be padding, which costs as much as a client.
      layer_flops: operations of one client's pass in one layer's products with frozen weights.
    """
    from devft_jax.federated.round.chunk_size import cpu_clients

    count = len(devices)
    if options.clients_per_step == "auto" and devices[0].platform == "cpu":
        return cpu_clients(participants, count, layer_flops)
    asked = 8 * count if options.clients_per_step == "auto" else options.clients_per_step
    return -(-min(asked, participants) // count) * count

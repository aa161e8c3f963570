"""The devices that a run executes on: their mesh, their memory, and the settings of JAX that results depend on."""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec, Sharding

CLIENT_AXIS = "client"
MODEL_AXIS = "model"
# Clients, or held-out examples, are divided over all devices.
OVER_DEVICES = PartitionSpec((CLIENT_AXIS, MODEL_AXIS))


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

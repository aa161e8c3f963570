"""The devices of a run: their mesh, their memory, and the settings of JAX that results depend on."""

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
    """JAX's default type promotion inside the block, whatever the environment sets; for this thread only."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def host_device() -> jax.Device:
    """The device whose memory is the host's."""
    return jax.local_devices(backend="cpu")[0]


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that each device may hold: the limit of its allocator; on CPU an equal share of the host's memory.

    None if the device reports no limit.
    """
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def versions(device: jax.Device) -> dict[str, str]:
    """What a run's results depend on besides its configuration: versions of the software, the system and the device."""
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
    """The mesh of a run; clients are divided over both of its axes.

    Args:
      devices: local devices to use.
      model_shards: how many devices hold a base together; must divide the number of devices.

    Returns:
      A mesh (client, model) of shape (devices / model_shards, model_shards).
    """
    shape = (len(devices) // model_shards, model_shards)
    return jax.make_mesh(shape, (CLIENT_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto,) * 2, devices=devices)


def shapes_on(sharding: Sharding | None, tree: Any, *lead: int) -> Any:
    """Shapes and dtypes of a tree's arrays when they are placed on devices.

    Args:
      sharding: how they are placed; None for the default device.
      tree: a tree of arrays or shapes.
      lead: sizes of leading axes to add.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        weak = getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding, weak_type=weak)

    return jax.tree.map(one, tree)

"""Lanes: the shares of this host's devices on which runs of a comparison are made at the same time.

A run on a GPU lane sees only its GPUs, one on a CPU lane only its cores. Processes that see the same devices of one host
divide them first. The comparison itself never starts an accelerator: a process of its own looks for the devices.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from devft_jax.comparing.processes import child_environment
from devft_jax.errors import InputError
from devft_jax.runtime.processes import Processes

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK = """
import json, jax
from devft_jax.commands.jax_setup import configure_jax, require_devices
configure_jax()
require_devices()
found = jax.local_devices()
print(json.dumps([found[0].platform, len(found), jax.process_count()]))
"""


@dataclass(frozen=True)
class Lane:
    """What a run may use.

    Attributes:
      environment: variables of its process, by name, in addition to those of this one.
      cores: numbers of its CPU cores; None for all.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] | None = None


WHOLE = Lane()
"""All devices."""


@dataclass(frozen=True)
class _Host:
    """The devices that this process sees: their platform, their names for the environment, and the same in all processes
    that see them."""

    platform: str
    devices: tuple[str, ...]
    seen: Any


def find_lanes(at_once: int, devices: int | None, processes: Processes) -> list[Lane]:
    """Divide the devices of this host; called by all processes.

    Args:
      at_once: number of runs at the same time in this process.
      devices: devices that each run uses; None for all that it sees.
      processes: those that share the runs.

    Raises:
      InputError: there are too few devices, or they cannot be divided.
    """
    if at_once == 1 and not processes.several:
        return [WHOLE]
    host = _look()
    found = processes.of_all([platform.node(), host.platform, host.seen])
    sharing = [index for index, each in enumerate(found) if each == found[processes.index]]
    if host.platform == "tpu" and (at_once > 1 or len(sharing) > 1):
        raise InputError(
            "at_once: on a TPU one process holds all chips of a host, so runs cannot share them; leave --at-once out and "
            "start one process on each host."
        )
    if at_once == len(sharing) == 1:
        return [WHOLE]
    each, unit = len(host.devices) // (at_once * len(sharing)), "core" if host.platform == "cpu" else "GPU"
    if each < 1:
        among = f" for {len(sharing)} processes" if len(sharing) > 1 else ""
        most = len(host.devices) // len(sharing)
        remedy = f"use {most} or less." if most else "start fewer processes on this host."
        raise InputError(f"at_once {at_once} exceeds the {len(host.devices)} {unit}s of {platform.node()}{among}; {remedy}")
    if devices is not None and devices > each:
        raise InputError(
            f"devices {devices} exceeds the {each} {unit}{'s' if each > 1 else ''} of each of the runs made at once on "
            f"{platform.node()}; use {each} or fewer, or a smaller at_once."
        )
    first = sharing.index(processes.index) * at_once
    return [_lane(host, host.devices[(first + lane) * each :][:each]) for lane in range(at_once)]


def _lane(host: _Host, devices: tuple[str, ...]) -> Lane:
    if host.platform != "cpu":
        return Lane({VISIBLE: ",".join(devices)})
    return Lane(cores=tuple(map(int, devices))) if hasattr(os, "sched_setaffinity") else WHOLE


def _look() -> _Host:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return _cores()
    look = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, env=child_environment())
    lines = [line for line in (look.stdout if look.returncode == 0 else look.stderr).splitlines() if line.strip()]
    if look.returncode:
        raise InputError(f"at_once: the devices of this host cannot be found: {lines[-1] if lines else look.returncode}")
    kind, count, together = json.loads(lines[-1])
    if together > 1:
        raise InputError(
            f"hosts: the devices here belong to {together} hosts, as in a TPU pod slice, and no run can use those of one "
            "host alone; compare on separate machines."
        )
    if kind == "cpu":
        return _cores()
    if kind == "tpu":
        return _Host(kind, tuple(map(str, range(count))), None)
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    devices = named or [str(number) for number in range(count)]
    return _Host(kind, tuple(devices[:count]), [devices, _identities()])


def _cores() -> _Host:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return _Host("cpu", tuple(map(str, cores)), cores)


def _identities() -> str:
    """The GPUs that this process may use; two jobs of a cluster can have different ones under the same numbers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    return subprocess.run([tool, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True).stdout

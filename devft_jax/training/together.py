"""A run that several processes train together: what must be equal in all of them, what is refused, and what they agree on.

Every process makes the same decisions from the same numbers: who takes part, when a stage ends, how layers are grouped.
Nothing is decided by a time that only one of them measures. That they are equal is checked: code, versions, configuration
and data at the start, and the server's state after every round.
"""

import functools
import hashlib
import platform
import zlib
from importlib import resources
from typing import Any

import jax
import numpy as np

from devft_jax.accounting.energy import ESTIMATE
from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError, RunError
from devft_jax.reporting import Progress
from devft_jax.runtime.devices import versions
from devft_jax.runtime.processes import Processes
from devft_jax.storage.records import RoundRecord
from devft_jax.training.fingerprints import base_fingerprint, data_fingerprint
from devft_jax.training.parts import Parts
from devft_jax.training.state import State

OWN = ("cache_dir",)
"""Options that may differ between processes."""


class Silent(Progress):
    """The progress output of processes other than process 0, which says everything that all of them would say."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, text: str) -> None:
        """Print nothing."""


def signal_for_all(processes: Processes, signal: int | None) -> int | None:
    """The signal by which any process was asked to stop, the same in all; None if none was.

    Args:
      processes: the processes.
      signal: that this process got; None for none.
    """
    return next((each for each in processes.of_all(signal) if each is not None), None)


@functools.cache
def _code() -> str:
    """A digest of the package's source files."""
    digest = hashlib.sha256()
    root = resources.files("devft_jax")
    with resources.as_file(root) as folder:
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def check_equal_start(processes: Processes, config: RunConfig, objects: dict[str, str]) -> None:
    """Compare code, versions, devices and configuration; called by all processes before anything is read.

    Args:
      processes: the processes.
      config: a valid configuration.
      objects: what was passed as objects, in words.

    Raises:
      InputError: they differ.
    """
    if not processes.several:
        return
    devices = jax.local_devices()
    environment = {"code of devft": _code(), **versions(devices[0]), "number of local devices": len(devices)}
    plain = {name: value for name, value in to_plain(config).items() if name not in OWN}
    _refuse(processes, environment, "install the same on all hosts")
    _refuse(processes, {**plain, **objects}, "start the same command in every process")


def check_equal_data(parts: Parts) -> None:
    """Compare the data and the base; called by all processes before anything is compiled.

    Args:
      parts: the run's parts.

    Raises:
      InputError: they differ.
    """
    if parts.processes.several:
        found = {"data": data_fingerprint(parts.data), "base": base_fingerprint(parts.model.base)}
        _refuse(parts.processes, found, "give all processes the same files")


def _refuse(processes: Processes, values: dict[str, Any], remedy: str) -> None:
    different = processes.differing(values)
    if different is not None:
        name, index, other, first = different
        raise InputError(f"{name} is {other!r} in {processes.name(index)} and {first!r} in process 0; {remedy}.")


def check_supported(parts: Parts) -> None:
    """Refuse what several processes cannot do yet; called before anything is compiled.

    Args:
      parts: the run's parts.

    Raises:
      InputError: the run asks for it.
    """
    processes, config, algorithm = parts.processes, parts.config, parts.algorithm
    if not processes.several:
        return
    alone = f"cannot be used by {processes.count} processes yet; use one process"
    if algorithm.personal is not None:
        raise InputError(f"algorithm {algorithm.name}, in which every client has its own model, {alone}.")
    if config.evaluate_tasks is not None:
        raise InputError(f"evaluate_tasks {alone}, or leave it out and score the finished run with `devft evaluate`.")
    refused = {
        f"initialization {config.initialization}": config.initialization == "lora-ga",
        f"stage_end {config.stage_end}": config.stage_end == "gain",
        # Gradients are added device by device, so that they would have other bits than in one process.
        f"growth {config.growth}, which measures gradients,": _measures_gradients(config),
        "prefix_cache on": config.prefix_cache == "on",
    }
    for name, given in refused.items():
        if given:
            raise InputError(f"{name} {alone}, or leave it out.")
    if parts.rounds.participants < processes.count:
        raise InputError(
            f"a round has {parts.rounds.participants} participant(s) for {processes.count} processes, of which each trains "
            "one or more; raise clients_per_round or use fewer processes."
        )


def _measures_gradients(config: RunConfig) -> bool:
    """Whether a growth measures the layers' Fisher information."""
    return config.growth == "fed-pilot" or (config.growth == "fed-hello" and config.hello_pattern == "fisher")


def check_equal_state(processes: Processes, state: State, row: RoundRecord) -> None:
    """Compare the server's state after a round; called by all processes.

    Args:
      processes: the processes.
      state: the state after the round.
      row: the round's record.

    Raises:
      RunError: they differ.
    """
    if not processes.several:
        return
    digest = 0
    for leaf in jax.tree.leaves((state.server, state.layer_map)):
        digest = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, digest)
    clients = zlib.crc32(repr(row.clients).encode())
    different = processes.differing({"server's state": digest, "loss": repr(row.loss), "cohort": clients})
    if different is not None:
        raise RunError(
            f"after round {state.round} the {different[0]} of {processes.name(different[1])} is not that of process 0, so "
            "that they no longer train one run; everything saved before is good: use hosts whose devices compute alike."
        )


def joules_of_all(processes: Processes, source: str, joules: float) -> tuple[str, float]:
    """The energy of a round in all processes.

    Args:
      processes: the processes.
      source: of this process's figure.
      joules: an estimate is already that of the whole round; counters of sockets count for all processes of a host.

    Returns:
      The source and the sum; that of process 0 if the sources differ.
    """
    found = processes.of_all([platform.node(), source, joules])
    if source == ESTIMATE or any(each[1] != source for each in found):
        return found[0][1], found[0][2]
    if source == "rapl":
        return source, sum({host: each for host, _, each in found}.values())
    return source, sum(each for _, _, each in found)

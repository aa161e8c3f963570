"""The options of processes that work on one run together."""

from dataclasses import dataclass

from devft_jax.options import option

JOINED_BY = {"hosts": "DEVFT_HOSTS", "processes": "DEVFT_PROCESSES", "process": "DEVFT_PROCESS"}
"""The environment variables that give an option's value where its flag is not given."""


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """Several processes, on one host or several, that train one run together; the same command is started in each."""

    hosts: str | None = option(None)
    """How the processes find each other: auto (on a TPU pod slice, in Slurm, Open MPI and Kubernetes JAX finds out), or the
    address of process 0 as HOST:PORT, with --processes and --process. By default there is one process. Also as DEVFT_HOSTS
    in the environment."""
    processes: int | None = option(None, at_least=1, at_most=2**16)
    """Number of processes; needed beside an address. Also as DEVFT_PROCESSES."""
    process: int | None = option(None, at_least=0, at_most=2**16 - 1)
    """Number of this process, from 0; needed beside an address. Also as DEVFT_PROCESS."""
    hosts_timeout: int = option(300, at_least=1, at_most=24 * 3600)
    """Seconds to wait until all processes have joined."""

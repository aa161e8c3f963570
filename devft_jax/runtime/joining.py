"""Joins the processes of a run: `jax.distributed.initialize` with a time limit, and one sentence for what can go wrong."""

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from devft_jax.errors import InputError
from devft_jax.options import check_options
from devft_jax.runtime.options import JOINED_BY, HostOptions
from devft_jax.runtime.screen import complain

AUTO = "auto"
NAME_ALL = "give --hosts HOST:PORT of process 0, --processes and --process."


def asked_for(options: HostOptions, environment: Mapping[str, str] | None = None) -> HostOptions:
    """The options, with the environment's values where flags are not given; checked.

    Args:
      options: the flags.
      environment: variables by name; by default those of the process.

    Raises:
      InputError: a value is wrong, or one that is needed is missing.
    """
    environment = os.environ if environment is None else environment
    for name, variable in JOINED_BY.items():
        value = environment.get(variable, "").strip()
        if getattr(options, name) is None and value:
            if name != "hosts" and not value.isdecimal():
                raise InputError(f"{variable} '{value}' is not a whole number; correct it or unset it.")
            given: dict[str, Any] = {name: value if name == "hosts" else int(value)}
            options = dataclasses.replace(options, **given)
    check_options(options)
    hosts, count, index = options.hosts, options.processes, options.process
    if hosts is None:
        if count is not None or index is not None:
            named = "processes" if count is not None else "process"
            raise InputError(f"{named} is given without hosts; {NAME_ALL}")
        return options
    if hosts == AUTO:
        return options
    name, _, port = hosts.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"hosts '{hosts}' is neither auto nor HOST:PORT; give the address of process 0, or auto.")
    if count is None or index is None:
        missing = "the number of processes" if count is None else "the number of this process"
        raise InputError(f"hosts {hosts} needs {missing}; {NAME_ALL}")
    if index >= count:
        raise InputError(f"process {index} of {count} does not exist; processes are numbered from 0 to {count - 1}.")
    return options


def join(options: HostOptions, *, end: Callable[[int], None] = os._exit) -> None:
    """Join the processes that the options name; nothing happens if they name none. Called before JAX is first used.

    Args:
      options: checked options, see `asked_for`.
      end: ends the process when the time is over, because JAX cannot be interrupted.

    Raises:
      InputError: no environment that JAX knows is found, or the address cannot be used.
    """
    if options.hosts is None:
        return
    import jax

    auto = options.hosts == AUTO
    tried = f"{_found_address(options)} (found by --hosts auto)" if auto else options.hosts
    # A stop request is answered by `devft_jax.runtime.stopping`; the preemption service would take SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = "" if options.process is None else f" as process {options.process} of {options.processes}"

    def give_up() -> None:
        complain(
            f"devft: not all processes have joined within {options.hosts_timeout} s: this one{who} tried {tried}; start "
            "the same command in every process, check the address and that its port is open, or raise --hosts-timeout."
        )
        end(2)

    late = threading.Timer(options.hosts_timeout, give_up)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            None if auto else options.hosts,
            options.processes,
            options.process,
            # Otherwise JAX would let a job manager replace what was given.
            cluster_detection_method=None if auto else "deactivate",
            # The timer ends the process first: JAX would abort it.
            initialization_timeout=2 * options.hosts_timeout + 60,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"the processes cannot be joined at {tried}: {' '.join(str(error).split())}; {NAME_ALL}") from error
    finally:
        late.cancel()


def _found_address(options: HostOptions) -> str:
    """The address of process 0 in the environment that JAX finds.

    Raises:
      InputError: there is none.
    """
    from jax._src.clusters import ClusterEnv

    found = [each for each in ClusterEnv._cluster_types if not each.opt_in_only_method and each.is_env_present()]
    if not found:
        raise InputError(f"hosts auto finds no TPU pod slice and no job of Slurm, Open MPI or Kubernetes here; {NAME_ALL}")
    try:
        address = found[0].get_coordinator_address(options.hosts_timeout, os.environ.get("JAX_COORDINATOR_PORT"))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"hosts auto cannot read the job's processes ({type(error).__name__}: {reason}); {NAME_ALL}"
        ) from error
    return f"{address} ({found[0].name})" if found[0].name else address

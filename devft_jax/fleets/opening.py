"""Opens the fleet that the options name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable
from devft_jax.fleets.drawn import drawn_fleet
from devft_jax.fleets.options import FleetOptions
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.tiers import TIERS, parse_shares
from devft_jax.fleets.traces import (
    fleet_of_devices,
    read_content,
    read_devices,
    read_trace,
    traced_fleet,
    traced_presence,
)
from devft_jax.options import closest


def open_fleet(options: FleetOptions, names: Sequence[str], ids: np.ndarray, seed: int) -> Fleet:
    """The fleet of a run's clients.

    Args:
      options: with a `fleet`.
      names: the clients' names.
      ids: u32[N], the clients' ids.
      seed: seed of the run.

    Raises:
      InputError: there is no such tier or file, a file is broken, or a client is missing in it.
    """
    assert options.fleet is not None
    shares = parse_shares(options.fleet)
    if shares is not None:
        fleet = drawn_fleet(shares, seed, ids)
    else:
        fleet = _from_file(options, checked_path(options.fleet, "fleet"), names, ids, seed)
    if options.fleet_availability is None:
        return fleet
    path = checked_path(options.fleet_availability, "fleet_availability")
    shown = printable(str(path))
    trace = read_trace(read_content(path, "fleet_availability"), shown)
    if trace is None:
        raise InputError(
            f"fleet_availability {shown} is not a dictionary of devices; give FedScale's client_behave_trace, or JSON such "
            'as {"1": {"active": [0], "inactive": [3600], "finish_time": 86400}}.'
        )
    return replace(fleet, presence=traced_presence(trace, shown, seed, ids))


def _from_file(options: FleetOptions, path: Path, names: Sequence[str], ids: np.ndarray, seed: int) -> Fleet:
    shown = printable(str(path))
    if not path.exists():
        hint = closest(str(options.fleet), [*TIERS, "mixed"], f"name a file, mixed, or {', '.join(TIERS)}.")
        raise InputError(f"fleet '{shown}' is neither a tier nor a file; {hint}")
    content = read_content(path, "fleet")
    trace = read_trace(content, shown)
    if trace is not None:
        return traced_fleet(trace, shown, seed, ids, options.trace_flops)
    return fleet_of_devices(read_devices(content, shown), names, shown)

"""Fleets from files: a table of devices by client, or the traces of FedScale.

A table is CSV with a header, a JSON list of objects, or JSON lines, with these names:

    client         name of the client, as in split.json
    gflops         rate that training reaches, 10^9 operations per second
    memory_gb      memory that training may use, 10^9 bytes
    down_mbit      10^6 bits per second to the client
    up_mbit        10^6 bits per second from the client
    failure_rate   probability of failing in a round; 0 if it is left out
    from_hour      hour of the day from which the client is present, in [0, 24); 0 if it is left out
    to_hour        hour until which it is present, in (0, 24]; 24 if it is left out. Before `from_hour`: of the next day
    tier           name of the kind of device, for tables of results; "file" if it is left out

FedScale (Lai et al., ICML 2022) publishes two pickled dictionaries by the number of a device:

    client_device_capacity    {"computation": milliseconds per example of a forward pass, "communication": kbit/s}
    client_behave_trace       {"active": [s, ...], "inactive": [s, ...], "finish_time": s, ...}: the device is present from
                              active[i] to inactive[i], and all repeats after finish_time

They are read as they are, or as JSON of the same layout, with a reader that knows plain values only: a pickle that names any
class or function is refused, because it could run code. Their numbers are not those of a run's clients, so every client is
given one of the devices by a draw. FedScale's devices have no memory; it is drawn as a phone's.
"""

import csv
import io
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devft_jax.errors import InputError
from devft_jax.files import MOST_BYTES, decoded, json_objects, parse_json, printable
from devft_jax.fleets.drawn import drawn_memory
from devft_jax.fleets.draws import DEVICES, uniform_draws
from devft_jax.fleets.presence import Presence
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.tiers import GIGABYTE, MEGABIT, TIERS

NUMBERS = ("gflops", "memory_gb", "down_mbit", "up_mbit")
OPTIONAL = {"failure_rate": 0.0, "from_hour": 0.0, "to_hour": 24.0}


@dataclass(frozen=True)
class Device:
    """A line of a table; see the module's docstring for the names.

    Attributes:
      gflops: 10^9 operations per second.
      memory_gb: 10^9 bytes.
      down_mbit: 10^6 bits per second.
      up_mbit: 10^6 bits per second.
      failure_rate: probability of failing in a round.
      from_hour: hour of the day.
      to_hour: hour of the day.
      tier: name of the kind of device.
    """

    gflops: float
    memory_gb: float
    down_mbit: float
    up_mbit: float
    failure_rate: float
    from_hour: float
    to_hour: float
    tier: str


def read_content(path: Path, what: str) -> bytes:
    """The bytes of a file.

    Args:
      path: the file.
      what: what it is, for messages.

    Raises:
      InputError: it is no regular file, cannot be read, or is too large.
    """
    shown = printable(str(path))
    if not path.is_file():
        raise InputError(f"{what} {shown} is not a file; give the path of one.")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{what} {shown} has more than the limit of {MOST_BYTES:,} bytes; shorten it.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} {shown} cannot be read ({error.strerror or error}); give the path of one.") from error


# ---- a table ---------------------------------------------------------------------------------------------------------


def read_devices(content: bytes, name: str) -> dict[str, Device]:
    """The devices of a table, by client.

    Args:
      content: CSV, a JSON list or JSON lines.
      name: the file's name, for messages.

    Raises:
      InputError: a line is broken or names a client again; names file and line.
    """
    text = decoded(content, name)
    begin = text.lstrip()[:1]
    if begin == "[":
        listed = parse_json(text, name)
        lines: Iterable[tuple[str, Any]] = ((f"{name}, entry {number}", each) for number, each in enumerate(listed, 1))
    else:
        lines = json_objects(text, name) if begin == "{" else _csv_lines(text, name)
    devices: dict[str, Device] = {}
    for where, fields in lines:
        client, device = _device(fields, where)
        if client in devices:
            raise InputError(f"{where} names the client '{printable(client)}' again; keep one line for each client.")
        devices[client] = device
    if not devices:
        raise InputError(f"{name} names no client; write one line for each client.")
    return devices


def _csv_lines(text: str, name: str) -> Iterable[tuple[str, dict[str, str]]]:
    """The lines of CSV after the header, each with its place."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] | None = None
    try:
        for cells in reader:
            where, cells = f"{name}:{reader.line_num}", [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if header is None:
                header = [cell.lower() for cell in cells]
                missing = [each for each in ("client", *NUMBERS) if each not in header]
                if missing:
                    raise InputError(
                        f"{where} lacks the column {', '.join(missing)}; begin the file with a line such as "
                        f"client,{','.join(NUMBERS)}."
                    )
            elif len(cells) != len(header):
                raise InputError(f"{where} has {len(cells)} values for {len(header)} columns; correct the line.")
            else:
                # An empty cell is a value that is left out.
                yield where, {key: cell for key, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num} is not valid CSV ({error}); correct the line.") from error


def _device(fields: Any, where: str) -> tuple[str, Device]:
    """The client and the device of a line."""
    if not isinstance(fields, Mapping):
        raise InputError(f"{where} is no JSON object; write one with client, {', '.join(NUMBERS)}.")
    client = fields.get("client")
    if not isinstance(client, str | int) or isinstance(client, bool) or client == "":
        raise InputError(f"{where} names no client; write its name under client.")
    values = {key: _number(fields.get(key), key, where) for key in NUMBERS}
    values |= {key: _number(fields.get(key, usual), key, where) for key, usual in OPTIONAL.items()}
    for key in NUMBERS:
        if values[key] <= 0:
            raise InputError(f"{where}: {key} {values[key]:g} is not positive; leave the client out of the data instead.")
    for key, most in (("failure_rate", 1), ("from_hour", 24), ("to_hour", 24)):
        if not 0 <= values[key] <= most:
            raise InputError(f"{where}: {key} {values[key]:g} is outside 0 to {most}; correct it.")
    return str(client), Device(**values, tier=str(fields.get("tier", "file")))


def _number(value: Any, key: str, where: str) -> float:
    try:
        number = float("nan") if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        shown = "no value" if value is None else f"'{printable(str(value))}', which is not a number"
        raise InputError(f"{where}: {key} has {shown}; write a number.")
    return number


def fleet_of_devices(devices: Mapping[str, Device], names: Sequence[str], file: str) -> Fleet:
    """The fleet of some clients.

    Args:
      devices: by client; further clients are ignored.
      names: names of the clients, in the run's order.
      file: name of the file, for messages.

    Raises:
      InputError: a client is missing.
    """
    missing = [name for name in names if name not in devices]
    if missing:
        count = f" ({len(missing)} clients are missing)" if len(missing) > 1 else ""
        raise InputError(
            f"the fleet {file} has no line for the client '{printable(missing[0])}' of the data{count}; add one, as "
            "client,gflops,memory_gb,down_mbit,up_mbit."
        )
    chosen = [devices[name] for name in names]
    tiers = tuple(dict.fromkeys(each.tier for each in chosen))

    def column(name: str) -> np.ndarray:
        return np.array([getattr(each, name) for each in chosen], float)

    first, last = column("from_hour") % 24, column("to_hour")
    stay = np.mod(last - first, 24)
    return Fleet(
        tiers=tiers,
        tier=np.array([tiers.index(each.tier) for each in chosen], np.int64),
        flops_per_second=column("gflops") * 1e9,
        memory=column("memory_gb") * GIGABYTE,
        down=column("down_mbit") * MEGABIT,
        up=column("up_mbit") * MEGABIT,
        failure=column("failure_rate"),
        presence=Presence.daily(first, np.where(stay == 0, 24, stay)),
    )


# ---- FedScale's traces -----------------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of plain values: numbers, text, lists and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever is not a plain value."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_trace(content: bytes, name: str) -> dict[str, Mapping[str, Any]] | None:
    """A dictionary of devices, as FedScale writes them; None if the content is something else.

    Args:
      content: a pickle, or JSON.
      name: the file's name, for messages.

    Raises:
      InputError: the pickle is damaged or holds more than plain values.
    """
    if content[:1] == b"\x80":
        try:
            value = _PlainUnpickler(io.BytesIO(content)).load()
        except Exception as error:
            raise InputError(
                f"{name} is a pickle that cannot be read as plain values ({printable(str(error))}); give one of numbers, "
                "text, lists and dictionaries, or JSON."
            ) from error
    elif content.lstrip()[:1] == b"{" and b"\n{" not in content.strip():
        value = parse_json(content, name)
    else:
        return None
    if not isinstance(value, dict) or not value or not all(isinstance(each, dict) for each in value.values()):
        return None
    return {str(key): each for key, each in value.items()}


def _of_trace(entry: Mapping[str, Any], key: str, device: str, name: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        shown = "no value" if value is None else printable(repr(value))
        raise InputError(f"{name}, device {printable(device)}: {key} has {shown}; it needs a positive number.")
    return float(value)


def traced_fleet(
    trace: Mapping[str, Mapping[str, Any]], name: str, seed: int, ids: np.ndarray, flops_per_example: float
) -> Fleet:
    """A fleet of FedScale's devices; every client is given one by a draw, and is always present.

    Args:
      trace: the contents of client_device_capacity.
      name: the file's name, for messages.
      seed: seed of the run.
      ids: u32[N], the clients' ids.
      flops_per_example: operations of the forward pass that "computation" times.

    Raises:
      InputError: an entry lacks a figure.
    """
    draws = uniform_draws(seed, DEVICES, ids, 2)
    devices = list(trace)
    chosen = [devices[place] for place in (draws[:, 0] * len(devices)).astype(int).tolist()]
    figures = [
        [_of_trace(trace[device], key, device, name) for key in ("computation", "communication")] for device in chosen
    ]
    milliseconds, kilobits = np.array(figures).reshape(-1, 2).T
    tier, rate = np.zeros(len(ids), np.int64), kilobits * 1e3 / 8
    return Fleet(
        tiers=("fedscale",),
        tier=tier,
        flops_per_second=flops_per_example / (milliseconds / 1e3),
        memory=drawn_memory([TIERS["phone"]], tier, draws[:, 1]),
        down=rate,
        up=rate,
        failure=np.zeros(len(ids)),
        presence=Presence.daily(np.zeros(len(ids)), np.full(len(ids), 24.0)),
    )


def traced_presence(trace: Mapping[str, Mapping[str, Any]], name: str, seed: int, ids: np.ndarray) -> Presence:
    """When clients are present by FedScale's trace; every client is given one of its devices by a draw.

    Args:
      trace: the contents of client_behave_trace.
      name: the file's name, for messages.
      seed: seed of the run.
      ids: u32[N], the clients' ids.

    Raises:
      InputError: an entry's times are not ascending numbers.
    """
    # Another draw than that of the device: the two files number different devices.
    draws = uniform_draws(seed, DEVICES, ids, 3)[:, 2]
    devices = list(trace)
    intervals, periods = [], []
    for place in (draws * len(devices)).astype(int).tolist():
        device = devices[place]
        period = _of_trace(trace[device], "finish_time", device, name)
        intervals.append(_intervals(trace[device], period, device, name))
        periods.append(period)
    return Presence.of(intervals, periods)


def _intervals(entry: Mapping[str, Any], period: float, device: str, name: str) -> list[tuple[float, float]]:
    """The intervals of one device; one that is open at the end lasts until the end of the period."""
    starts, ends = entry.get("active"), entry.get("inactive")
    times = [*starts, *ends] if isinstance(starts, list) and isinstance(ends, list) else [None]
    usable = all(isinstance(each, int | float) and not isinstance(each, bool) and each >= 0 for each in times)
    if usable and isinstance(starts, list) and isinstance(ends, list):
        if len(starts) == len(ends) + 1:
            ends = [*ends, period]
        pairs = list(zip(starts, ends, strict=False))
        line = [time for pair in pairs for time in pair]
        if len(starts) == len(ends) and line == sorted(line):
            cut = [(float(start), min(float(end), period)) for start, end in pairs]
            return [(start, end) for start, end in cut if start < end]
    raise InputError(
        f"{name}, device {printable(device)}: active and inactive are not ascending times in turn; give as many of each, in "
        "seconds."
    )

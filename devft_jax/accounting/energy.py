"""Energy of the training rounds: read from hardware counters where there are any, otherwise estimated from FLOPs.

    nvml                   the total-energy counters of the NVIDIA GPUs in use, through the package `pynvml`: whole boards
    rapl                   the package and memory counters of Intel and AMD CPUs under /sys/class/powercap, where they may be
                           read (many systems let only root): whole sockets, other processes on them included
    estimate from FLOPs    counted operations x joules per operation; no measurement, and marked as an estimate

A counter measures everything between two readings, including the time when the host waits; the estimate counts only
matrix products. On a GPU the host's own consumption is not included. Rounds are covered, including the compilation inside
them; building stages and evaluation are not. Emissions are the energy times the carbon intensity of the grid, which is
recorded with them.
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from devft_jax.accounting.options import EnergyOptions
from devft_jax.storage.records import EnergyRecord

POWERCAP = Path("/sys/class/powercap")
ESTIMATE = "estimate from FLOPs"
JOULES_PER_KWH = 3.6e6

JOULES_PER_FLOP = {"cpu": 1e-9, "accelerator": 5e-12}
"""Documented defaults of the estimate: 10 W for a CPU core at 10 GFLOP/s, 500 W for an accelerator at 100 TFLOP/s."""


def resolve_joules_per_flop(options: EnergyOptions, platform: str) -> float:
    """Joules per operation: the option's value, or the default of the platform ("cpu", "gpu", "tpu")."""
    if options.joules_per_flop is not None:
        return options.joules_per_flop
    return JOULES_PER_FLOP["cpu" if platform == "cpu" else "accelerator"]


def emissions(joules: float, options: EnergyOptions) -> dict[str, float]:
    """`kwh`, `kgco2e` and the carbon intensity of the grid that was used."""
    kwh = joules / JOULES_PER_KWH
    factor = options.grid_kgco2e_per_kwh
    return {"kwh": kwh, "kgco2e": kwh * factor, "grid_kgco2e_per_kwh": factor}


@dataclass(frozen=True)
class _Counter:
    """A reading of a hardware counter: its `name`, the `joules` so far, and the `span` after which it wraps to 0."""

    name: str
    joules: float
    span: float | None = None


class EnergyMeter:
    """Measures the joules between two readings, from the best source that the devices have.

    Args:
      options: factors of the estimate.
      devices: the local devices in use.
      powercap: the folder of the kernel's power zones.
      nvml: a module with pynvml's functions; by default pynvml itself.

    Attributes:
      source: "nvml", "rapl" or "estimate from FLOPs".
    """

    def __init__(
        self,
        options: EnergyOptions,
        devices: Sequence[jax.Device],
        *,
        powercap: Path = POWERCAP,
        nvml: ModuleType | Any | None = None,
    ):
        platform = devices[0].platform
        self.joules_per_flop = resolve_joules_per_flop(options, platform)
        self._nvml = None
        self._handles: list[Any] = []
        self._zones: list[Path] = []
        if platform == "gpu":
            self._open_nvml(devices, nvml)
        elif platform == "cpu":
            self._zones = readable_zones(powercap)
        self.source = "nvml" if self._handles else "rapl" if self._zones else ESTIMATE

    def _open_nvml(self, devices: Sequence[jax.Device], nvml: Any) -> None:
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError:
                return
        try:
            nvml.nvmlInit()
            handles = [_nvml_handle(nvml, device) for device in devices]
            # GPUs before Volta have no such counter.
            for handle in handles:
                nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:
            return
        self._nvml, self._handles = nvml, handles

    def read(self) -> tuple[_Counter, ...] | None:
        """The counters' current values; None if energy is estimated, or if a counter can no longer be read."""
        if self.source == ESTIMATE:
            return None
        if self._nvml is None:
            try:
                return tuple(_read_zone(zone) for zone in self._zones)
            except (OSError, ValueError):
                return None
        try:
            millijoules = [self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]
        except self._nvml.NVMLError:
            return None
        return tuple(_Counter(str(index), value / 1e3) for index, value in enumerate(millijoules))

    def spent_since(self, before: tuple[_Counter, ...] | None, flops: int) -> tuple[str, float]:
        """The source, and the joules since a reading.

        A counter may wrap to 0 once between two readings. Intel's usually wrap at 262 kJ, a quarter of an hour at 300 W, and
        AMD's at 65 kJ, under four minutes; for a longer round too little is counted.

        Args:
          before: the earlier reading; None for an estimate.
          flops: operations since then, for an estimate.
        """
        after = self.read()
        if before is None or after is None:
            return ESTIMATE, flops * self.joules_per_flop
        total = 0.0
        for earlier, later in zip(before, after, strict=True):
            spent = later.joules - earlier.joules
            total += spent + later.span if spent < 0 and later.span is not None else max(spent, 0.0)
        return self.source, total


def _nvml_handle(nvml: Any, device: jax.Device) -> Any:
    """NVML's handle of a JAX device; JAX numbers only the visible GPUs, NVML all of them."""
    index = getattr(device, "local_hardware_id", None) or 0
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[index] if index < len(visible) else str(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def readable_zones(powercap: Path) -> list[Path]:
    """The zones that together count each socket and its memory once; empty if any of them cannot be read.

    A socket is `intel-rapl:0`, on AMD too. Its zone "dram" (`intel-rapl:0:1`) is not part of it and is added; its zones
    "core" and "uncore" are part of it, and the top zone "psys" is the whole platform, sockets included.
    """
    wanted = []
    try:
        for zone in sorted(powercap.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                _read_zone(zone)
                wanted.append(zone)
    except (OSError, ValueError):
        return []
    return wanted


def _read_zone(zone: Path) -> _Counter:
    microjoules, span = ((zone / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
    return _Counter(zone.name, int(microjoules) / 1e6, int(span) / 1e6)


def energy_summary(joules: dict[str, float], options: EnergyOptions, joules_per_flop: float) -> EnergyRecord:
    """The `energy` entry of `summary.json`.

    Args:
      joules: of all rounds, by source; several sources if the run was resumed on another machine.
      options: the carbon intensity of the grid.
      joules_per_flop: the factor of the estimated part.
    """
    factors = emissions(sum(joules.values()), options)
    return EnergyRecord(
        kwh=factors["kwh"],
        kgco2e=factors["kgco2e"],
        grid_kgco2e_per_kwh=options.grid_kgco2e_per_kwh,
        source=" + ".join(joules) or "no round yet",
        joules_per_flop=joules_per_flop if ESTIMATE in joules else None,
    )

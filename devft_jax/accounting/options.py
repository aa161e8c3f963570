"""The options of the energy of a run."""

from dataclasses import dataclass

from devft_jax.options import execution


@dataclass(frozen=True, kw_only=True)
class EnergyOptions:
    """How emissions follow from energy, and how energy is estimated if nothing measures it."""

    grid_kgco2e_per_kwh: float = execution(0.475, at_least=0)
    """Carbon intensity of the grid, kg of CO2 equivalent per kWh; the default is close to the world's average."""
    joules_per_flop: float | None = execution(None, at_least=0)
    """Energy of one floating-point operation in joules, for the estimate if no counter can be read; by default 1e-9 on a
    CPU and 5e-12 on an accelerator."""

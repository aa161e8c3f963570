"""What a run costs: communication, operations, memory and energy, computed from shapes or measured."""

from devft_jax.accounting.energy import EnergyMeter, EnergyOptions, energy_summary
from devft_jax.accounting.flops import (
    Adaptation,
    evaluation_flops,
    forward_breakdown,
    prefix_flops,
    training_breakdown,
    training_flops,
)
from devft_jax.accounting.memory import MemoryMeter

__all__ = [
    "Adaptation",
    "EnergyMeter",
    "EnergyOptions",
    "MemoryMeter",
    "energy_summary",
    "evaluation_flops",
    "forward_breakdown",
    "prefix_flops",
    "training_breakdown",
    "training_flops",
]

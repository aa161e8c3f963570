"""Simulated fleets: the clients' devices, and how long they would take for a round.

A run with a fleet trains exactly the clients that would finish in time on their own devices, and reports simulated seconds
beside the real ones of the simulator.

    profile     what one device can do, for every client       `Fleet`, `Presence`
    tiers       a fleet drawn from named kinds of device        devft_jax.fleets.tiers
    traces      a fleet read from a file                        devft_jax.fleets.traces
    demand      what a stage asks of a device                   devft_jax.fleets.demand
    timing      seconds of a participant                        devft_jax.fleets.timing
    simulation  who takes part, who is lost, how long it takes  devft_jax.fleets.simulation
    buffered    the same without rounds that wait for all       devft_jax.fleets.buffered
"""

from devft_jax.fleets.buffered import BufferedSimulation, Course, Flight, discount
from devft_jax.fleets.demand import Demand, stage_demand
from devft_jax.fleets.opening import open_fleet, tiers_or_file
from devft_jax.fleets.options import FleetOptions
from devft_jax.fleets.presence import Presence
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.simulation import Rules, SimulatedRound, Simulation
from devft_jax.fleets.timing import Load

__all__ = [
    "BufferedSimulation",
    "Course",
    "Demand",
    "Fleet",
    "FleetOptions",
    "Flight",
    "Load",
    "Presence",
    "Rules",
    "SimulatedRound",
    "Simulation",
    "discount",
    "open_fleet",
    "stage_demand",
    "tiers_or_file",
]

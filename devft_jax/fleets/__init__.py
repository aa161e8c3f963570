"""Simulated fleets: the clients' devices, and how long they would take for a round.

A run with a fleet trains exactly the clients that would finish in time on their own devices, and reports simulated seconds
beside the real ones of the simulator.

    profile     what one device can do, for every client       devft_jax.fleets.profile, .presence
    tiers       named kinds of device                           devft_jax.fleets.tiers
    drawn       a fleet drawn from them                         devft_jax.fleets.drawn
    traces      a fleet read from a file                        devft_jax.fleets.traces
    demand      what a stage asks of a device                   devft_jax.fleets.demand
    timing      seconds of a participant                        devft_jax.fleets.timing
    simulation  who takes part, who is lost, how long it takes  devft_jax.fleets.simulation
    buffered    the same without rounds that wait for all       devft_jax.fleets.buffered
"""

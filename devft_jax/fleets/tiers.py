"""Named kinds of device, and the shares of a fleet that are named.

Every figure is the middle of a kind; a client's own figures vary around it (drawn.py). Published figures are marked with
their source, the others are assumptions of this package.

    compute     A rate that training reaches. Phone: matrix products of an Apple A16 in single precision, 279.8 GFLOP/s
                (Geekbench, as listed by gadgetversus.com). Laptop: 3.01 TFLOP/s, the peak of an 8-core Apple M4 GPU
                (hmc-tech.com). Single-board: 8 GFLOP/s in double precision on a Raspberry Pi 4 (High Performance Linpack,
                Feiereisen, 2022), assumed to be twice that in single precision. Workstation: 82.6 TFLOP/s, the peak of an
                NVIDIA RTX 4090 (notebookcheck). Of the two peaks training is assumed to reach `UTILISATION`.
    memory      Common sizes of main memory (workstation: of the GPU's), of which training is assumed to get the share
                `memory_share`.
    network     Means of Ookla's Speedtest Global Index: mobile 55.80 Mbit/s down (June 2024), fixed lines 93.93 Mbit/s down
                (mid 2024) and 34.92 Mbit/s up (first quarter of 2023). Assumed: 10 Mbit/s up on mobile lines, 940 Mbit/s
                both ways for workstations.
    failure     6 to 10 % of phones drop out of a round (Bonawitz et al., Towards Federated Learning at Scale, MLSys
                2019). The other tiers are assumed.
    presence    Phones take part while they are idle, charging and on an unmetered network, mostly at night (the same paper).
                The hours themselves are assumed.
"""

from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable, whole_path
from devft_jax.options import closest

UTILISATION = 0.3
"""Share of a GPU's peak that training is assumed to reach."""
GIGABYTE = 1e9
MEGABIT = 1e6 / 8


@dataclass(frozen=True)
class Tier:
    """A kind of device; see the module's docstring for the sources.

    Attributes:
      flops_per_second: operations per second that training reaches.
      memory: sizes of memory, GB; equally frequent.
      memory_share: share of it that training gets.
      down: Mbit/s to the client.
      up: Mbit/s from the client.
      failure: probability of failing in a round.
      hour: earliest and latest hour of the day at which a client comes.
      hours: shortest and longest stay, in hours; 24 for always.
    """

    flops_per_second: float
    memory: tuple[float, ...]
    memory_share: float
    down: float
    up: float
    failure: float
    hour: tuple[float, float] = (0, 0)
    hours: tuple[float, float] = (24, 24)


TIERS = {
    "phone": Tier(2.798e11, (4, 6, 8, 12), 0.5, 55.80, 10, 0.08, (21, 24), (6, 9)),
    "laptop": Tier(3.01e12 * UTILISATION, (8, 16, 32), 0.5, 93.93, 34.92, 0.05, (8, 20), (4, 10)),
    "single-board": Tier(1.6e10, (2, 4, 8), 0.75, 93.93, 34.92, 0.02),
    "workstation": Tier(82.6e12 * UTILISATION, (12, 16, 24), 0.9, 940, 940, 0.01),
}
"""The kinds of device by name."""

MIXED = {"phone": 0.5, "laptop": 0.3, "single-board": 0.1, "workstation": 0.1}
"""Shares of the fleet `mixed`."""


def parse_shares(text: str) -> dict[str, float] | None:
    """The shares of the tiers that a fleet names; None if the text names no tier, so that it may be a file.

    Args:
      text: mixed, a tier, or shares such as phone=0.7,laptop=0.3, which need not add up to 1.

    Raises:
      InputError: a tier is unknown or named twice, or a share is not a positive number.
    """
    name = text.strip().lower()
    if name == "mixed":
        return dict(MIXED)
    if name in TIERS:
        return {name: 1.0}
    if "=" not in name:
        return None
    shares: dict[str, float] = {}
    for part in name.split(","):
        tier, _, share = (word.strip() for word in part.partition("="))
        if tier not in TIERS:
            hint = closest(tier, TIERS, f"choose from {', '.join(TIERS)}.")
            raise InputError(f"fleet '{printable(text)}': the tier '{printable(tier)}' is unknown; {hint}")
        if tier in shares:
            raise InputError(f"fleet '{printable(text)}' names {tier} twice; name it once.")
        try:
            shares[tier] = float(share)
        except ValueError:
            shares[tier] = float("nan")
        if not 0 < shares[tier] < float("inf"):
            raise InputError(
                f"fleet '{printable(text)}': the share '{printable(share)}' of {tier} is not a positive number; write one "
                "such as phone=0.7,laptop=0.3."
            )
    return shares


def tiers_or_file(fleet: str) -> str:
    """A fleet as it is named in every working folder: shares of tiers as they are, a file by its absolute path.

    Args:
      fleet: as the option of that name.
    """
    return fleet if parse_shares(fleet) is not None else str(whole_path(checked_path(fleet, "fleet")))

"""The time of this project's stage changes: entering and leaving DevFT's stages of 2, 4, 8 and 16 layers.

Each part is run once cold, including compilation, and then repeatedly, from the same state:

    build       similarity, grouping, fusion, quantisation, and the submodel's adapters
    round       a round of the stage
    transfer    what was learned is transferred back to every layer

Answers the command `stages` with, for every stage, its layers and the seconds of each repetition, wall and CPU, and of the
cold run, wall. There is no held-out data, so no evaluation follows a change of stage.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from engine import start_trainer
from protocol import Work, own_output, versions

from devft_jax.commands.jax_setup import configure_jax
from devft_jax.training.state import State

CAPACITIES = (2, 4, 8, 16)
"""Layers of the stages."""


def own_copy(state: State) -> State:
    """A copy of the state that can be advanced independently; arrays are never changed in place, and FedIT's bank is
    empty."""
    return replace(state, totals=copy.deepcopy(state.totals), bank=copy.copy(state.bank))


def repeated(state: State, step: Callable[[State], Any], times: int) -> tuple[dict[str, Any], State]:
    """Wall and CPU seconds of a step from `state`, first cold and then repeated; and the state after it."""
    walls, cpus = [], []
    for _ in range(times + 1):
        after = own_copy(state)
        began, cpu = time.perf_counter(), time.process_time()
        step(after)
        jax.block_until_ready((after.server, after.full))
        walls.append(time.perf_counter() - began)
        cpus.append(time.process_time() - cpu)
    return {"cold": walls[0], "wall": walls[1:], "cpu": cpus[1:]}, after


def measure(work: Work, quantization: str, times: int, capacities: tuple[int, ...] = CAPACITIES) -> list[dict[str, Any]]:
    """Every stage's parts."""
    trainer, state = start_trainer(
        work, growth="devft", capacities=capacities, rounds=len(capacities), quantization=quantization
    )
    stages = []
    for layers in capacities:
        build, state = repeated(state, lambda state: trainer.begin_stage(state, []), times)
        rounds, state = repeated(state, trainer.round, times)
        transfer, state = repeated(state, trainer.end_stage, times)
        stages.append({"layers": layers, "build": build, "round": rounds, "transfer": transfer})
    return stages


def main() -> None:
    """Measure on each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that benchmarks/works.py wrote")
    parser.add_argument("--quantization", default="none", help="quantization of the base, as in RunConfig")
    parser.add_argument("--repeat", type=int, default=5, help="warm repetitions of every part")
    options = parser.parse_args()
    answers = own_output()
    configure_jax()
    print(json.dumps({"versions": versions()}), file=answers)
    for line in sys.stdin:
        if line.strip() != "stages":
            return
        stages = measure(Work(options.work), options.quantization, options.repeat)
        print(json.dumps({"stages": stages}), file=answers)


if __name__ == "__main__":
    main()

"""No decomposition by LAPACK where several devices run one program, and every algorithm ends on few cores."""

import dataclasses
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import GROWTHS, LayerMap, SkipGrow, fuse, make_growth, next_stage
from devft_jax.developmental.growths import GrowthOptions
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.round.chunk import chunk_shapes, jit_chunk, zero_sums
from devft_jax.federated.round.client import LocalTraining, participant_shapes, uplink_shapes
from devft_jax.federated.round.server import broadcast_of
from devft_jax.models.llama import Compute
from devft_jax.models.sharding import placed_shapes
from devft_jax.runtime.devices import client_mesh
from tests.conftest import REPOSITORY
from tests.federated.harness import BASE, SGD, WHOLE, client, engine, run_round
from tests.tiny import CONFIG, random_adapter

OPTIONS = MethodConfig(rank=3, alpha=6.0, dropout=0.0, targets=("v", "down"), clients_per_round=2)
DEVICES = 2
FUSED = LayerMap(jnp.full((2, 4), 0.25), jnp.array([0, 0, 1, 1]), align=True)
ALL = np.ones(2, bool)

# A process that may use some cores only: stages by every growth, then rounds of algorithms on many devices, with factors
# that are turned alike before they are fused, on the server and in clients' rows.
PROGRAM = """
import dataclasses, os, sys
cores, devices, *names = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
import tests.conftest
import jax
jax.config.update("jax_num_cpu_devices", int(devices))
from tests.federated.test_decompositions import growths, rounds
growths()
for name in names:
    rounds(name, int(devices))
print("ended")
"""
# Algorithms in which something is decomposed or turned.
DECOMPOSING = ("fedrot-lora", "federa", "ffa-lora", "flexlora", "lora-fair", "fedsvd", "fedmomentum", "local-only")


def growths() -> None:
    """A stage of every growth on the tiny model."""
    tree = BASE.blocks, random_adapter(OPTIONS).lora
    for name in GROWTHS:
        growth = make_growth(GrowthOptions(growth=name, capacities=(2, 4)), CONFIG.layers)
        if isinstance(growth, SkipGrow):
            growth = growth.prepared(lambda: np.arange(4.0))
        assert next_stage(growth, 0, tree, [], jax.random.key(0)) is not None


def rounds(name: str, devices: int) -> None:
    """Two rounds of an algorithm in a stage of fused layers, two clients a device."""
    population = Clients(2 * devices)
    options = dataclasses.replace(OPTIONS, rank=8, clients_per_round=population.size, ffa_initialisation="orthonormal")
    algorithm = ALGORITHMS[name](options)
    full = random_state(algorithm, population)
    server = algorithm.enter(algorithm.submodel(full, FUSED), BASE.replace(blocks=fuse(FUSED, BASE.blocks)))
    rows = algorithm.init_bank(population, full)
    bank = jax.vmap(lambda row: algorithm.submodel_row(row, FUSED), axis_size=population.size)(rows)
    cohort = engine(algorithm, SGD, devices, population.size)
    for _ in range(2):
        result = run_round(cohort, server, [client(each) for each in range(population.size)], bank=bank, train_rows=ALL)
        server = jax.block_until_ready(result.server)
    assert result.finite.all()


def random_state(algorithm: Algorithm, population: Clients):
    """A first state whose low-rank factors are none of them zero."""
    full = algorithm.init_server(jax.random.key(0), CONFIG, population)
    return jax.tree.map(lambda leaf: leaf + 0.1 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, full)


def targets_of(program: str) -> set[str]:
    """What a lowered program calls outside of XLA."""
    return set(re.findall(r"custom_call @([\w.]+)", program))


def chunk_of(algorithm: Algorithm) -> str:
    """An algorithm's chunk over devices, lowered."""
    clients = Clients(DEVICES)

    def stage():
        full = algorithm.init_server(jax.random.key(0), CONFIG, clients)
        server = algorithm.submodel(full, LayerMap.identity(CONFIG.layers))
        return broadcast_of(algorithm, server), algorithm.init_bank(clients, full)

    broadcast, bank = jax.eval_shape(stage)
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), bank)
    up = uplink_shapes(algorithm, participant_shapes(algorithm, broadcast, row))
    mesh = client_mesh(jax.local_devices()[:DEVICES])
    batch = jax.ShapeDtypeStruct((1, 2, 16), "int32"), jax.ShapeDtypeStruct((1, 2, 16), "bool")
    learning = jax.ShapeDtypeStruct((CONFIG.layers,), "bool")
    inputs = chunk_shapes(mesh, placed_shapes(BASE, mesh), broadcast, row, batch, learning, clients=DEVICES)
    training = LocalTraining(algorithm, CONFIG, Compute(), OptimizerOptions(), WHOLE)
    sums = jax.eval_shape(lambda: zero_sums(algorithm, up, DEVICES))
    return jit_chunk(training, mesh).lower(inputs, sums).as_text()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_chunk_calls_nothing_outside_of_xla(name):
    # Nor does it broadcast silently, which is seen while it is traced.
    with jax.numpy_rank_promotion("raise"):
        program = chunk_of(ALGORITHMS[name](OPTIONS))
    assert targets_of(program) <= {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}


def test_factors_are_turned_alike_without_decomposition():
    averaging, alone = ALGORITHMS["fedit"](OPTIONS), ALGORITHMS["local-only"](OPTIONS)
    server = jax.eval_shape(lambda: random_adapter(OPTIONS))
    for turned, state in ((averaging.submodel, server), (alone.submodel_row, server.lora)):
        lowered = jax.jit(lambda state, turned=turned: turned(state, FUSED)).lower(state).as_text()
        assert "while" in lowered
        assert not targets_of(lowered)


def test_a_decomposition_would_be_seen():
    lowered = jax.jit(jnp.linalg.svd).lower(jnp.eye(3)).as_text()
    assert {name for name in targets_of(lowered) if "lapack" in name}


def ends(names, *, devices: int, cores: int, within: float) -> None:
    """Run `PROGRAM` under a watchdog."""
    words = [sys.executable, "-c", PROGRAM, str(cores), str(devices), *names]
    done = subprocess.run(words, capture_output=True, text=True, timeout=within, cwd=REPOSITORY)
    assert done.stdout.split()[-1:] == ["ended"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "cores"), [(2, 2), (8, 1)])
def test_algorithms_that_decompose_end_on_few_cores(devices, cores):
    ends(DECOMPOSING, devices=devices, cores=cores, within=240)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_algorithm_and_growth_ends_on_few_cores(devices, cores):
    ends(ALGORITHMS, devices=devices, cores=cores, within=1200)

"""Sums over devices in their order, by one program, have the bits of sums that are added one after the other."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from devft_jax.federated.round.server import add_over_devices
from devft_jax.federated.round.together import add_over_processes
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import OVER_DEVICES, client_mesh


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_program_adds_in_the_order_of_the_devices(count):
    rng = np.random.default_rng(count)
    devices = jax.local_devices()[:count]
    split = NamedSharding(client_mesh(devices), OVER_DEVICES)
    # Sizes that the number of devices does not divide, magnitudes whose sum depends on the order, and an empty leaf.
    shapes = {"a": (7, 3), "b": (), "c": (0, 4)}
    sums = {
        name: jax.device_put((rng.normal(size=(count, *shape)) * 10.0 ** rng.integers(-6, 6, (count, *shape))), split)
        for name, shape in shapes.items()
    }
    sums = jax.tree.map(lambda leaf: leaf.astype("float32"), sums)
    one = add_over_processes(CompiledPrograms(), sums, Mesh(np.array(devices), ("device",)))
    other = add_over_devices(CompiledPrograms(), sums)
    for name in shapes:
        assert one[name].devices() == {devices[0]}
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]))

"""Devices, rounding of clients per step, and compiled programs that are counted and never mixed up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.models.llama import Compute
from devft_jax.programs import (
    CLIENT_AXIS,
    MODEL_AXIS,
    CompiledPrograms,
    ExecutionOptions,
    client_mesh,
    local_devices,
    resolve_clients_per_step,
    resolve_compute,
    validate_execution,
)


def test_all_devices_by_default_or_as_many_as_asked_for():
    assert local_devices(ExecutionOptions()) == jax.local_devices()
    assert local_devices(ExecutionOptions(devices=3)) == jax.local_devices()[:3]
    with pytest.raises(InputError) as caught:
        local_devices(ExecutionOptions(devices=9))
    assert str(caught.value) == "devices 9 exceeds the 8 cpu device(s) found; use 8 or fewer."


@pytest.mark.parametrize(
    ("devices", "asked", "clients"),
    [(1, "auto", 1), (8, "auto", 8), (1, 3, 3), (2, 3, 4), (8, 1, 8), (8, 16, 16), (8, 17, 24)],
)
def test_clients_per_step_are_a_multiple_of_the_devices(devices, asked, clients):
    options = ExecutionOptions(clients_per_step=asked)
    assert resolve_clients_per_step(options, jax.local_devices()[:devices]) == clients


def test_auto_precision_is_float32_on_a_cpu():
    assert resolve_compute(ExecutionOptions()) == Compute(dtype="float32", remat="dots")
    options = ExecutionOptions(dtype="bfloat16", remat="full", attention="xla", head_rows=100)
    assert resolve_compute(options) == Compute(dtype="bfloat16", remat="full", attention="xla", head_rows=100)


def test_an_attention_kernel_that_the_platform_lacks_is_refused():
    with pytest.raises(InputError, match="attention 'cudnn' needs an NVIDIA GPU and JAX runs on cpu; use auto or xla"):
        resolve_compute(ExecutionOptions(attention="cudnn"))


def test_the_mesh_is_of_groups_that_hold_the_base_together():
    for shards in (1, 2, 3):
        mesh = client_mesh(jax.local_devices()[2:8], shards)
        assert mesh.axis_names == (CLIENT_AXIS, MODEL_AXIS)
        assert mesh.devices.shape == (6 // shards, shards)
        assert list(mesh.devices.flat) == jax.local_devices()[2:8]


@pytest.mark.parametrize(
    ("devices", "shards", "sentence"),
    [
        (6, 4, "devices 6 is not a multiple of model_shards 4; use 4 devices, or a number of shards that divides them."),
        (2, 4, "model_shards 4 exceeds the 2 device(s) of the run; use 2 or fewer, or more devices."),
        (None, 3, "devices 8 is not a multiple of model_shards 3; use 6 devices, or a number of shards that divides them."),
        (None, 16, "model_shards 16 exceeds the 8 device(s) of the run; use 8 or fewer, or more devices."),
    ],
)
def test_devices_are_whole_groups_of_shards(devices, shards, sentence):
    with pytest.raises(InputError) as caught:
        local_devices(ExecutionOptions(devices=devices, model_shards=shards))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is unknown; choose from auto, float32, bfloat16."),
        ({"remat": "some"}, "remat 'some' is unknown; choose from auto, none, full, dots."),
        ({"devices": 0}, "devices 0 is not positive; use 1 or more."),
        ({"model_shards": 0}, "model_shards 0 is not positive; use 1 or more."),
        (
            {"devices": 3, "model_shards": 2},
            "devices 3 is not a multiple of model_shards 2; use 2 devices, or a number of shards that divides them.",
        ),
        ({"bank_in_memory": -1}, "bank_in_memory -1 is negative; use 0 to keep all of it in a file."),
        ({"clients_per_step": -1}, "clients_per_step -1 is not positive; use 1 or more."),
        ({"head_rows": 0}, "head_rows 0 is not positive; use 1 or more."),
    ],
)
def test_a_bad_option_is_named_with_its_remedy(options, sentence):
    with pytest.raises(InputError) as caught:
        validate_execution(ExecutionOptions(**options))
    assert str(caught.value) == sentence


def test_the_defaults_are_valid():
    validate_execution(ExecutionOptions())


def test_a_program_is_compiled_once_for_its_shapes_dtypes_and_structure():
    programs = CompiledPrograms()
    add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree))
    for value in (1.0, 2.0):
        found = programs.call("add", add, {"x": jnp.full(3, value)})
        np.testing.assert_array_equal(found["x"], np.full(3, value + 1))
    assert programs.count == 1
    programs.call("add", add, {"x": jnp.zeros(4)})
    programs.call("add", add, {"x": jnp.zeros(3, "int32")})
    programs.call("add", add, {"y": jnp.zeros(3)})
    assert programs.count == 4
    programs.call("add", add, {"x": jnp.zeros(3)})
    assert programs.count == 4
    assert programs.seconds > 0


def test_two_functions_of_one_name_are_two_programs():
    programs = CompiledPrograms()
    assert programs.call("scale", jax.jit(lambda x: 2 * x), jnp.float32(3)) == 6
    assert programs.call("scale", jax.jit(lambda x: 5 * x), jnp.float32(3)) == 15
    assert programs.count == 2


def test_scratch_memory_is_that_of_the_largest_program():
    programs = CompiledPrograms()
    product = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x) @ x))
    programs.call("product", product, jnp.ones((64, 64)))
    small = programs.scratch_bytes
    programs.call("product", product, jnp.ones((256, 256)))
    large = programs.scratch_bytes
    programs.call("product", product, jnp.ones((32, 32)))
    assert 0 < small < large == programs.scratch_bytes
    assert large >= 256 * 256 * 4


def test_peak_memory_is_that_of_the_programs_called_since_it_was_reset():
    programs = CompiledPrograms()
    add = jax.jit(lambda x: x + 1)
    for size in (100_000, 1_000):
        programs.call("add", add, jnp.ones(size))
    assert 2 * 4 * 100_000 <= programs.peak_bytes < 3 * 4 * 100_000
    programs.peak_bytes = 0
    programs.call("add", add, jnp.ones(1_000))
    assert 2 * 4 * 1_000 <= programs.peak_bytes < 4 * 100_000


def test_memory_shared_with_a_donated_argument_is_counted_once():
    programs = CompiledPrograms()
    programs.call("add", jax.jit(lambda x: x + 1, donate_argnums=0), jnp.ones(100_000))
    assert 4 * 100_000 <= programs.peak_bytes < 2 * 4 * 100_000

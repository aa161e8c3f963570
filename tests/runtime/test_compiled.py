"""Devices, rounding of clients per step, and compiled programs that are counted and never mixed up."""

import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from devft_jax.config.execution import (
    ExecutionOptions,
    local_devices,
    resolve_clients_per_step,
    resolve_compute,
    validate_execution,
)
from devft_jax.errors import InputError
from devft_jax.federated.round.chunk_size import LAYER_FLOPS
from devft_jax.models.llama import Compute
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import CLIENT_AXIS, MODEL_AXIS, client_mesh, shapes_on


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
    assert resolve_clients_per_step(options, jax.local_devices()[:devices], 100, LAYER_FLOPS) == clients


def test_auto_precision_is_float32_on_a_cpu():
    assert resolve_compute(ExecutionOptions()) == Compute(dtype="float32", remat="dots")
    options = ExecutionOptions(dtype="bfloat16", remat="full", attention="xla", head_rows=100)
    assert resolve_compute(options) == Compute(dtype="bfloat16", remat="full", attention="xla", head_rows=100)


def test_an_attention_kernel_that_the_platform_lacks_is_refused():
    with pytest.raises(InputError, match="attention 'splash' needs a TPU and JAX runs on cpu; use auto or xla"):
        resolve_compute(ExecutionOptions(attention="splash"))
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
        ({"dtype": "int8"}, "dtype 'int8' is unknown; choose from auto, float32, bfloat16."),
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


# ---------------------------------------------------------------------------------------------------
# Shared programs, and programs compiled ahead


def shape(*sizes, sharding=None):
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)


def held_up(released, begun):
    """A jitted function whose compilation begins, says so, and waits until it is released."""

    def function(x):
        begun.set()
        assert released.wait(60)
        return 3 * x

    return jax.jit(function)


def test_a_function_that_another_run_compiled_is_found_and_not_counted():
    double = jax.jit(lambda x: 2 * x)
    first, second = CompiledPrograms(), CompiledPrograms()
    for programs in (first, second):
        np.testing.assert_array_equal(programs.call("double", double, jnp.ones(5)), 2 * np.ones(5))
    # What it would have taken is known all the same.
    assert second.compile_seconds == first.compile_seconds
    assert first.compile_seconds["double"] > 0
    second.call("double", double, jnp.ones(6))
    assert first.count == 1
    assert second.count == 1


def test_what_is_compiled_ahead_is_not_compiled_again():
    programs, double = CompiledPrograms(), jax.jit(lambda tree: 2 * tree["x"])
    for _ in range(2):
        programs.prepare("double", double, {"x": shape(5)})
    for _ in range(2):
        np.testing.assert_array_equal(programs.call("double", double, {"x": jnp.ones(5)}), 2 * np.ones(5))
    assert programs.count == 1


def test_a_program_under_way_is_waited_for_and_its_seconds_are_told_apart():
    programs, released, begun = CompiledPrograms(), threading.Event(), threading.Event()
    triple = held_up(released, begun)
    programs.prepare("triple", triple, shape(5))
    assert begun.wait(60)
    assert programs.ahead == {"programs": 0, "seconds": 0, "unused": 0}
    threading.Timer(0.05, released.set).start()
    np.testing.assert_array_equal(programs.call("triple", triple, jnp.ones(5)), 3 * np.ones(5))
    assert programs.count == 1
    ahead = programs.ahead
    assert (ahead["programs"], ahead["unused"]) == (1, 0)
    # The thread worked before anyone waited for it.
    assert ahead["seconds"] > 0
    assert programs.seconds > 0


def test_what_has_not_been_begun_is_compiled_by_its_caller():
    programs, released, begun = CompiledPrograms(), threading.Event(), threading.Event()
    double = jax.jit(lambda x: 2 * x)
    programs.prepare("triple", held_up(released, begun), shape(5))
    programs.prepare("double", double, shape(5))
    assert begun.wait(60)
    # The thread is held up: waiting for it would never end.
    np.testing.assert_array_equal(programs.call("double", double, jnp.ones(5)), 2 * np.ones(5))
    assert (programs.count, programs.ahead["programs"]) == (1, 0)
    released.set()


def test_what_goes_wrong_ahead_is_raised_where_it_is_called():
    def broken(x):
        raise RuntimeError("a layer is missing")

    programs, function = CompiledPrograms(), jax.jit(broken)
    programs.prepare("broken", function, shape(5))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a layer is missing"):
            programs.call("broken", function, jnp.ones(5))
    assert (programs.count, programs.ahead["programs"]) == (0, 0)


def test_what_fails_ahead_alone_is_compiled_where_it_is_called():
    traced = []

    def crowded(x):
        traced.append(x)
        if len(traced) == 1:
            raise MemoryError("a round takes it all")
        return x + 1

    programs, function = CompiledPrograms(), jax.jit(crowded)
    programs.prepare("crowded", function, shape(5))
    while not traced:
        time.sleep(0.01)
    np.testing.assert_array_equal(programs.call("crowded", function, jnp.ones(5)), 2 * np.ones(5))
    assert len(traced) == 2


def test_what_is_compiled_ahead_has_the_callers_precision():
    found = []

    def product(x):
        found.append(jax.config.jax_default_matmul_precision)
        return x @ x

    programs, function = CompiledPrograms(), jax.jit(product)
    with jax.default_matmul_precision("highest"):
        programs.prepare("product", function, shape(4, 4))
        while not found:
            time.sleep(0.01)
        programs.call("product", function, jnp.ones((4, 4)))
    assert found == ["highest"]


def test_closing_waits_for_nothing_and_begins_nothing():
    programs, released, begun = CompiledPrograms(), threading.Event(), threading.Event()
    traced = []
    double = jax.jit(lambda x: traced.append(x) or 2 * x)
    before = threading.enumerate()
    programs.prepare("triple", held_up(released, begun), shape(5))
    programs.prepare("double", double, shape(5))
    assert begun.wait(60)
    [thread] = set(threading.enumerate()) - set(before)
    programs.close()
    programs.close()
    assert thread.is_alive()
    released.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not traced
    assert (programs.ahead["programs"], programs.ahead["unused"]) == (1, 1)
    np.testing.assert_array_equal(programs.call("double", double, jnp.ones(5)), 2 * np.ones(5))


def test_a_program_compiled_for_another_placement_is_counted_as_unused():
    programs, double = CompiledPrograms(), jax.jit(lambda x: 2 * x)
    placed = NamedSharding(client_mesh(jax.local_devices()[:2]), PartitionSpec(CLIENT_AXIS))
    programs.prepare("double", double, shape(4, sharding=placed))
    while programs.ahead["programs"] == 0:
        time.sleep(0.01)
    np.testing.assert_array_equal(programs.call("double", double, jnp.ones(4)), 2 * np.ones(4))
    assert programs.count == 2
    assert programs.ahead["unused"] == 1


def test_a_program_compiled_for_a_placement_runs_there():
    programs, double = CompiledPrograms(), jax.jit(lambda x: 2 * x)
    placed = NamedSharding(client_mesh(jax.local_devices()[:2]), PartitionSpec(CLIENT_AXIS))
    programs.prepare("double", double, shapes_on(placed, np.ones(3, np.float32), 4))
    while programs.ahead["programs"] == 0:
        time.sleep(0.01)
    result = programs.call("double", double, jax.device_put(np.ones((4, 3), np.float32), placed))
    assert result.sharding.is_equivalent_to(placed, 2)
    assert (programs.count, programs.ahead["unused"]) == (1, 0)


def test_a_dropped_program_is_freed_and_compiled_again_when_it_is_called():
    programs, function = CompiledPrograms(), jax.jit(lambda x: x * 5)
    programs.call("rounds", function, jnp.ones(3))
    programs.call("evaluation", function, jnp.ones(3))
    program = next(iter(programs._programs.values()))
    programs.drop("rounds")
    assert program.executable is None
    assert [name for name, *_ in programs._programs] == ["evaluation"]
    np.testing.assert_array_equal(programs.call("rounds", function, jnp.ones(3)), np.full(3, 5.0))
    assert len(programs._programs) == 2


def test_the_program_that_was_called_last_can_be_kept():
    programs, function = CompiledPrograms(), jax.jit(lambda x: x * 6)
    for size in (2, 4, 8, 4):
        programs.call("chunk", function, jnp.ones(size))
    programs.drop("chunk", but_newest=True)
    [(*_, shapes)] = programs._programs
    assert shapes == (((4,), "float32"),)


def test_what_was_compiled_ahead_and_called_stays_used_when_it_is_dropped():
    programs, function = CompiledPrograms(), jax.jit(lambda x: x * 7.25)
    programs.prepare("chunk", function, shape(5))
    while programs.ahead["programs"] == 0:
        time.sleep(0.01)
    programs.call("chunk", function, jnp.ones(5))
    programs.drop("chunk")
    assert (programs.ahead["programs"], programs.ahead["unused"]) == (1, 0)
    programs.close()


def test_a_process_of_one_command_keeps_no_lowered_module():
    script = (
        "import jax, jax.numpy as jnp\n"
        "from devft_jax.runtime.compiled import CompiledPrograms\n"
        "from devft_jax.runtime.stopping import own_process\n"
        "own_process()\n"
        "traced = []\n"
        "function = jax.jit(lambda x: traced.append(1) or x + 1)\n"
        "programs = CompiledPrograms()\n"
        "for _ in range(3):\n"
        "    assert programs.call('chunk', function, jnp.ones(2)).tolist() == [2.0, 2.0]\n"
        "assert len(traced) == 1\n"
        "function.lower(jnp.ones(2))\n"
        "assert len(traced) == 2\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

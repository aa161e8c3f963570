import re
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.developmental import streaming
from devft_jax.developmental.streaming import blocks as blocks_module
from devft_jax.developmental.streaming import device, host
from devft_jax.developmental.streaming.blocks import Blocks
from tests.developmental.weights import block_quantised, layer_quantised

LLAMA2_7B_UP = (32, 4096, 11008)
LLAMA2_13B_UP = (40, 5120, 13824)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 300), st.integers(1, 16))
def test_blocks_cover_every_entry_once(trailing, layers, elements, at_once):
    shape = (layers, *trailing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "SMALLEST_BLOCK", 1)
        patch.setattr(blocks_module, "LARGEST_BLOCK", elements)
        blocks = Blocks.of(shape, at_once=at_once)
    visits = np.zeros(shape, int)
    for index in blocks.indices():
        visits[:, *index] += 1
    assert (visits == 1).all()


@pytest.mark.parametrize("shape", [LLAMA2_7B_UP, LLAMA2_13B_UP, (32, 4096, 4096), (32, 2, 2**23), (40, 2**24)])
def test_a_block_and_its_product_fit_in_one_layer_and_in_the_caches(shape):
    blocks = Blocks.of(shape)
    elements = int(np.prod(shape)) // shape[blocks.axis] * blocks.size
    assert 4 * elements <= np.prod(shape[1:])
    assert 2**20 < elements <= 2**21


@pytest.mark.parametrize("layers", [1, 3, 16, 32, 80, 126])
@pytest.mark.parametrize("columns", [0, 1, 1023, 4096, 5000])
def test_long_rows_are_multiplied_in_pieces(layers, columns):
    rows = np.random.default_rng(0).standard_normal((layers, columns)).astype(np.float32)
    product = host._product_in_pieces(rows)
    exact = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.testing.assert_allclose(product, exact, rtol=1e-5, atol=1e-4 * max(columns, 1) ** 0.5)
    assert product.dtype == np.float32
    assert (product == product.T).all()


def float32_layer(shape) -> int:
    return 4 * int(np.prod(shape[1:]))


def lowered(shape, dtype) -> dict:
    """Every compiled function, traced for a leaf of `shape` and a submodel of 8 layers."""
    leaf, small = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((8, *shape[1:]), dtype)
    matrix = jax.ShapeDtypeStruct((8, shape[0]), jnp.float32)
    source = jax.ShapeDtypeStruct((shape[0],), jnp.int32)
    return {
        "gram": (device.gram, (leaf,)),
        "combine": (device.combine, (matrix, leaf)),
        "replace": (device.replace, (source, small, leaf)),
        "shift": (device.shift, (matrix, source, small, leaf)),
    }


@pytest.mark.parametrize("shape", [LLAMA2_7B_UP, LLAMA2_13B_UP])
@pytest.mark.parametrize(
    ("dtype", "names"), [(jnp.bfloat16, ("gram", "replace")), (jnp.float32, ("gram", "combine", "replace", "shift"))]
)
def test_compiled_scratch_stays_within_one_float32_layer(shape, dtype, names):
    for name in names:
        function, arguments = lowered(shape, dtype)[name]
        scratch = function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
        assert scratch <= float32_layer(shape), name


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_hold_no_leaf_and_no_result_in_float32(platform):
    for name, (function, arguments) in lowered(LLAMA2_7B_UP, jnp.bfloat16).items():
        program = jax.export.export(function, platforms=[platform])(*arguments).mlir_module()
        assert "x4096x11008xbf16>" in program, name
        # `replace` selects in bfloat16; nothing of full width may appear in float32.
        assert "x4096x11008xf32>" not in program, name


def test_halves_are_compared_as_they_are_stored_where_there_are_matrix_units():
    block = jax.random.normal(jax.random.key(0), (16, 40, 30)).astype(jnp.bfloat16)
    exact = device._gram_in_float32(block)
    np.testing.assert_allclose(device._gram_in_bfloat16(block), exact, rtol=1e-5, atol=1e-5 * float(exact.max()))
    leaf = jax.ShapeDtypeStruct((32, 1000, 64), jnp.bfloat16)
    for platform, operand in (("tpu", "bf16"), ("cuda", "bf16"), ("cpu", "f32")):
        program = jax.export.export(device.gram, platforms=[platform])(leaf).mlir_module()
        products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
        assert products, platform
        wanted = re.compile(rf"x{operand}>, tensor<[0-9x]+x{operand}>\) -> tensor<32x32xf32>")
        assert all(wanted.search(line) for line in products), platform


def test_quantised_weights_are_dequantised_block_by_block():
    def scratch(pieces: int) -> int:
        code = jax.ShapeDtypeStruct((16, pieces, 64, 2048), jnp.int8)
        scale = jax.ShapeDtypeStruct((16, pieces, 2048), jnp.float32)
        leaf = type(block_quantised(0, 1))(code, scale)
        return device.gram.lower(leaf).compile().memory_analysis().temp_size_in_bytes

    assert scratch(64) <= 4 * 64 * 64 * 2048
    assert scratch(128) <= 1.1 * scratch(64)


def test_the_backward_pass_keeps_no_float32_copy_of_the_leaf():
    leaf = jax.ShapeDtypeStruct((16, 1024, 2048), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda x: streaming.gram(x)[0, 1]))
    scratch = gradient.lower(leaf).compile().memory_analysis().temp_size_in_bytes
    assert scratch < 16 * float32_layer(leaf.shape)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_host_scratch_stays_within_one_float32_layer(kind):
    shape = (16, 1024, 1024)
    leaf = kind(np.random.default_rng(0).standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16))
    matrix = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    source = np.arange(16, dtype=np.int32) % 4
    trained = leaf[:4].copy()
    calls = {
        "gram": (lambda: streaming.gram(leaf), 0),
        "combine": (lambda: streaming.combine(matrix, leaf), trained.nbytes),
        "replace": (lambda: streaming.replace(source, trained, leaf), leaf.nbytes),
        "shift": (lambda: streaming.shift(matrix, source, trained, leaf), leaf.nbytes),
    }
    for name, (call, output) in calls.items():
        call()
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - output <= float32_layer(shape), name


def test_results_on_cpu_are_jax_arrays_where_the_leaf_was():
    device = jax.devices()[-1]
    leaf = jnp.ones((4, 3, 5), jnp.bfloat16)
    matrix, source = np.ones((2, 4), np.float32), np.array([0, 1, -1, 0])
    for placed, committed in ((leaf, False), (jax.device_put(leaf, device), True)):
        for result in (streaming.combine(matrix, placed), streaming.replace(source, placed[:2], placed)):
            assert isinstance(result, jax.Array)
            assert result.devices() == placed.devices()
            assert result.committed == committed


def test_arrays_spread_over_devices_stay_there():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    leaf = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    matrix = np.ones((2, 4), np.float32)
    spread = jax.device_put(leaf, sharding)
    result = streaming.combine(matrix, spread)
    assert result.devices() == spread.devices()
    np.testing.assert_allclose(result, streaming.combine(matrix, leaf), rtol=1e-5)
    np.testing.assert_allclose(streaming.gram(spread), streaming.gram(leaf), rtol=1e-5)


def test_a_memory_mapped_file_gives_the_numbers_of_the_array_it_holds(tmp_path):
    array = np.random.default_rng(0).standard_normal((6, 50, 70)).astype(ml_dtypes.bfloat16)
    array.tofile(tmp_path / "leaf")
    mapped = np.memmap(tmp_path / "leaf", ml_dtypes.bfloat16, "r", shape=array.shape)
    matrix = np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)
    np.testing.assert_array_equal(streaming.gram(mapped), streaming.gram(array))
    fused = streaming.combine(matrix, mapped)
    assert type(fused) is np.ndarray
    np.testing.assert_array_equal(fused, streaming.combine(matrix, array))


def test_a_transposed_view_is_read_as_what_it_shows(small_blocks):
    view = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32).transpose(0, 2, 1)
    plain = np.ascontiguousarray(view)
    np.testing.assert_allclose(streaming.gram(view), streaming.gram(plain), rtol=1e-6)
    matrix = np.eye(2, 5, dtype=np.float32) * 3
    np.testing.assert_array_equal(streaming.combine(matrix, view), streaming.combine(matrix, plain))


@pytest.mark.parametrize("make", [block_quantised, layer_quantised])
def test_quantised_weights_are_used_at_their_dequantised_values(make, small_blocks):
    leaf = make(3, 5)
    dense = leaf.dequantize(jnp.float32)
    matrix = jnp.asarray(np.random.default_rng(4).standard_normal((2, 5)), jnp.float32)
    np.testing.assert_allclose(streaming.gram(leaf), streaming.gram(dense), rtol=1e-5)
    fused = streaming.combine(matrix, leaf)
    assert fused.dtype == jnp.float32
    np.testing.assert_allclose(fused, jnp.einsum("gl,l...->g...", matrix, dense), rtol=1e-5, atol=1e-3)


def test_leaves_without_columns_and_single_layers_pass(small_blocks):
    for leaf in (np.zeros((4, 0), np.float32), jnp.zeros((4, 0))):
        np.testing.assert_array_equal(streaming.gram(leaf), np.zeros((4, 4)))
        assert streaming.combine(np.ones((2, 4), np.float32), leaf).shape == (2, 0)
    assert streaming.gram(jnp.full((1, 3), 2.0)) == 12.0

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from devft_jax.developmental import (
    LayerGrams,
    LayerMap,
    fuse,
    fusion_matrix,
    inherit,
    layer_gram,
    layer_map,
    layer_similarity,
    transition_gap,
)
from devft_jax.developmental.maps import check_layer_map
from tests.developmental.weights import (
    assert_trees_close,
    assert_trees_equal,
    block_quantised,
    on_device,
    rows,
    stack,
)

LAYERS = 6
KEY = jax.random.key(0)
ASSIGN = np.array([0, 1, 0, 2, 1, 1], np.int32)
MODES = ("copy", "anchor_only", "delta", "anchor_delta")
seeds = st.integers(0, 10**6)


def fusing_map(method: str = "dblf", assign=ASSIGN, **options) -> LayerMap:
    return LayerMap(fusion_matrix(assign, method=method, key=KEY, **options), jnp.asarray(assign))


def dense_fuse(matrix, tree):
    def leaf_sum(leaf):
        leaf = np.asarray(leaf)
        total = np.einsum("gl,l...->g...", np.asarray(matrix, np.float64), leaf.astype(np.float64))
        return total.astype(leaf.dtype)

    return jax.tree.map(leaf_sum, tree)


def layers_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[np.asarray(index)], tree)


class TestLayerMap:
    def test_all_rows_train_unless_told_otherwise(self):
        mapped = fusing_map()
        assert mapped.train.tolist() == [True] * 3
        assert (mapped.num_groups, mapped.num_layers) == (3, LAYERS)

    def test_is_a_pytree_of_three_leaves_that_survives_transformations(self):
        mapped = fusing_map()
        assert len(jax.tree.leaves(mapped)) == 3
        again = jax.jit(lambda m: m)(mapped)
        assert isinstance(again, LayerMap)
        assert_trees_equal(again, mapped)
        stacked = jax.vmap(lambda beta: fusing_map().fuse * beta)(jnp.arange(2.0))
        assert stacked.shape == (2, 3, LAYERS)
        assert jax.tree.map(lambda leaf: None, mapped).fuse is None

    def test_of_layers_selects_them_in_the_given_order_and_no_other_layer_takes_part(self):
        tree = on_device(stack(0, LAYERS))
        mapped = LayerMap.of_layers(LAYERS, [4, 1])
        check_layer_map(mapped, LAYERS)
        assert mapped.selected().tolist() == [4, 1]
        assert mapped.assign.tolist() == [-1, 1, -1, -1, 0, -1]
        assert_trees_equal(fuse(mapped, tree), layers_of(tree, [4, 1]))
        assert LayerMap.of_layers(LAYERS, range(LAYERS)).is_identity

    @pytest.mark.parametrize("layers", [[], [0, 0], [-1], [LAYERS], [0.5], [[0, 1]]])
    def test_of_layers_refuses_what_is_no_selection(self, layers):
        with pytest.raises(ValueError, match=r"give one or more of the layers 0\.\.5, each once"):
            LayerMap.of_layers(LAYERS, layers)

    def test_identity_is_recognised_and_nothing_else_is(self):
        assert LayerMap.identity(4).is_identity
        assert LayerMap(np.eye(4), np.arange(4)).is_identity
        assert not LayerMap(jnp.eye(4).at[0, 0].set(1.001), jnp.arange(4)).is_identity
        assert not LayerMap(jnp.eye(3, 4), jnp.arange(4)).is_identity
        assert not fusing_map().is_identity
        assert not jax.jit(lambda m: jnp.asarray(m.is_identity))(LayerMap.identity(4))


class TestFuse:
    def test_identity_returns_the_very_same_objects(self):
        for tree in (stack(0, LAYERS), on_device(stack(0, LAYERS)), {"q": block_quantised(0, LAYERS)}):
            assert fuse(LayerMap.identity(LAYERS), tree) is tree

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("method", ["dblf", "sum", "mean"])
    def test_both_routes_equal_the_dense_product(self, dtype, method, small_blocks):
        tree, mapped = stack(0, LAYERS, dtype), fusing_map(method)
        expected = dense_fuse(mapped.fuse, tree)
        tolerance = 1e-5 if dtype == "float32" else 1e-2
        host, device = fuse(mapped, tree), fuse(mapped, on_device(tree))
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(host))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(device))
        assert_trees_close(host, expected, tolerance)
        assert_trees_close(device, expected, tolerance)
        # A traced tree goes through the compiled loops, numpy's or not.
        assert_trees_close(jax.jit(fuse)(mapped, tree), expected, tolerance)

    def test_large_leaves_in_default_blocks(self):
        tree = {"w": np.random.default_rng(0).standard_normal((LAYERS, 301, 1001)).astype(np.float32)}
        mapped = fusing_map()
        expected = dense_fuse(mapped.fuse, tree)
        assert_trees_close(fuse(mapped, tree), expected)
        assert_trees_close(fuse(mapped, on_device(tree)), expected)

    @settings(max_examples=5)
    @given(seed=seeds)
    def test_is_linear_in_the_tree_and_in_the_map(self, seed):
        x, y = on_device(stack(seed, LAYERS)), on_device(stack(seed + 1, LAYERS))
        first, second = fusing_map("dblf"), fusing_map("sum")
        total = jax.tree.map(lambda a, b: 2 * a - 3 * b, x, y)
        assert_trees_close(
            fuse(first, total), jax.tree.map(lambda a, b: 2 * a - 3 * b, fuse(first, x), fuse(first, y)), 1e-4
        )
        both = LayerMap(first.fuse + second.fuse, first.assign)
        assert_trees_close(fuse(both, x), jax.tree.map(jnp.add, fuse(first, x), fuse(second, x)), 1e-4)

    def test_commutes_with_the_structure_of_the_tree(self):
        tree, mapped = stack(0, LAYERS), fusing_map()
        fused = fuse(mapped, tree)
        nested = ([tree["gain"], None, {"x": tree["odd"]}], (tree["large"],))
        assert_trees_equal(fuse(mapped, nested), ([fused["gain"], None, {"x": fused["odd"]}], (fused["large"],)))

    def test_nothing_comes_of_nothing(self):
        zeros = jax.tree.map(np.zeros_like, stack(0, LAYERS))
        for tree in (zeros, on_device(zeros)):
            assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(fuse(fusing_map(), tree)))

    def test_beta_zero_is_anchor_selection(self):
        tree = stack(0, LAYERS, "bfloat16")
        assert_trees_equal(fuse(fusing_map(beta=0.0), tree), fuse(fusing_map("anchor"), tree))
        assert_trees_equal(fuse(fusing_map("anchor"), tree), layers_of(tree, [0, 1, 3]))

    def test_beta_one_is_lacos_merge_and_not_its_last_layer(self):
        tree, mapped = stack(0, LAYERS), fusing_map(assign=np.zeros(LAYERS, np.int32), beta=1.0)

        def merge(leaf):
            return leaf[0] + sum(leaf[k] - leaf[0] for k in range(1, LAYERS))

        assert_trees_close(fuse(mapped, tree), jax.tree.map(lambda leaf: np.asarray(merge(leaf))[None], tree), 1e-4)
        last = layers_of(tree, [LAYERS - 1])
        assert np.abs(fuse(mapped, tree)["large"] - last["large"]).max() > 0.1

    def test_a_fused_map_changes_every_leaf_of_its_groups_only(self):
        tree = stack(0, LAYERS)
        fused = fuse(fusing_map(), tree)
        for name, leaf in tree.items():
            assert (fused[name][:2] != leaf[[0, 1]]).any()
            np.testing.assert_array_equal(fused[name][2], leaf[3])

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_one_hot_rows_take_layers_bit_for_bit(self, dtype):
        tree = stack(0, LAYERS, dtype)
        picked = LayerMap(jnp.eye(LAYERS)[np.array([4, 0, 5])], jnp.array([1, -1, -1, -1, 0, 2]))
        assert_trees_equal(fuse(picked, tree), layers_of(tree, [4, 0, 5]))
        taken = fuse(picked, on_device(tree))
        assert_trees_equal(taken, on_device(layers_of(tree, [4, 0, 5])))
        # A traced map goes through the product.
        assert_trees_close(jax.jit(fuse)(picked, on_device(tree)), taken, 1e-6)

        def loss(function):
            return lambda t: sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(function(t)))

        by_take = jax.grad(loss(lambda t: fuse(picked, t)))(on_device(tree))
        by_product = jax.jit(lambda m, t: jax.grad(loss(lambda u: fuse(m, u)))(t))(picked, on_device(tree))
        assert_trees_close(by_take, by_product, 1e-6)

    def test_picked_layers_of_a_quantised_weight_keep_their_codes(self):
        weight = block_quantised(0, LAYERS)
        picked = fusing_map("anchor")
        taken = fuse(picked, {"q": weight})["q"]
        assert type(taken) is type(weight)
        np.testing.assert_array_equal(taken.code, weight.code[np.array([0, 1, 3])])
        fused = jax.jit(fuse)(picked, {"q": weight})["q"]
        np.testing.assert_allclose(fused, taken.dequantize(jnp.float32), rtol=1e-6)

    def test_quantised_weights_fuse_to_floats(self):
        weight, mapped = block_quantised(0, LAYERS), fusing_map()
        fused = fuse(mapped, {"q": weight})["q"]
        assert fused.dtype == jnp.float32
        expected = np.einsum("gl,lio->gio", mapped.fuse, weight.dequantize(jnp.float32))
        np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-3)

    def test_gradients_agree_with_finite_differences(self, small_blocks):
        tree, mapped = on_device(stack(0, LAYERS)), fusing_map()

        def function(tree, matrix):
            return fuse(LayerMap(matrix, mapped.assign), tree)

        check_grads(function, (tree, mapped.fuse), order=1, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2)

    def test_numpy_trees_can_be_differentiated_in_the_map(self):
        tree, mapped = {"w": stack(0, LAYERS)["large"]}, fusing_map()
        slope = jax.grad(lambda m: fuse(LayerMap(m, mapped.assign), tree)["w"].sum())(mapped.fuse)
        np.testing.assert_allclose(slope[1], tree["w"].sum(axis=(1, 2)), rtol=1e-3, atol=1e-3)

    def test_refuses_a_tree_of_another_depth(self):
        with pytest.raises(ValueError, match="must hold the 6 layers of the layer map"):
            fuse(fusing_map(), stack(0, 5))

    @pytest.mark.parametrize("platform", ["tpu", "cuda"])
    def test_lowers_for_accelerators_at_13b_size(self, platform):
        leaf = jax.ShapeDtypeStruct((40, 5120, 13824), jnp.bfloat16)
        mapped = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fusing_map(assign=np.arange(40) // 10))
        exported = jax.export.export(jax.jit(fuse), platforms=[platform])(mapped, {"up": leaf})
        assert exported.out_avals[0].shape == (4, 5120, 13824)
        small = jax.ShapeDtypeStruct((4, 5120, 13824), jnp.bfloat16)
        for mode in MODES:
            function = jax.jit(lambda m, t, f, mode=mode: inherit(m, t, f, mode=mode))
            exported = jax.export.export(function, platforms=[platform])(mapped, {"up": small}, {"up": leaf})
            assert exported.out_avals[0].shape == leaf.shape


class TestInherit:
    def dense(self, mapped, trained, full, mode):
        """The formulas of the docstring, layer by layer in numpy."""
        trained, full = jax.tree.map(np.asarray, (trained, full))
        fused = dense_fuse(mapped.fuse, full)
        assign, train = np.asarray(mapped.assign), np.asarray(mapped.train)
        result = jax.tree.map(np.array, full)
        for name, leaf in result.items():
            for layer, group in enumerate(assign):
                anchor = int(np.argmax(assign == group))
                if group < 0 or not train[group] or (mode == "anchor_only" and layer != anchor):
                    continue
                change = {
                    "copy": trained[name][group] - full[name][layer],
                    "anchor_only": trained[name][group] - full[name][layer],
                    "delta": trained[name][group] - fused[name][group],
                    "anchor_delta": trained[name][group] - full[name][anchor],
                }[mode]
                leaf[layer] = full[name][layer] + change
        return result

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("train", [(True, True, True), (True, False, True)])
    def test_both_routes_equal_the_formulas(self, mode, train, small_blocks):
        assign = np.array([0, 1, 0, -1, 1, 2], np.int32)
        matrix = fusion_matrix(assign)
        mapped = LayerMap(matrix, jnp.asarray(assign), jnp.asarray(train))
        full, trained = stack(0, LAYERS), stack(1, 3)
        expected = self.dense(mapped, trained, full, mode)
        host = inherit(mapped, trained, full, mode=mode)
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(host))
        assert_trees_close(host, expected)
        device = inherit(mapped, on_device(trained), on_device(full), mode=mode)
        assert_trees_close(device, expected)
        traced = jax.jit(lambda m, t, f: inherit(m, t, f, mode=mode))(mapped, trained, full)
        assert_trees_close(traced, expected)
        mixed = inherit(mapped, on_device(trained), full, mode=mode)
        assert_trees_close(mixed, expected)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_absent_and_untrained_layers_keep_their_bits(self, mode, dtype):
        assign = np.array([0, -1, 0, 1, -1, 1], np.int32)
        mapped = LayerMap(fusion_matrix(assign), jnp.asarray(assign), jnp.array([True, False]))
        full, trained = stack(0, LAYERS, dtype), stack(1, 2, dtype)
        for old, new in ((full, trained), (on_device(full), on_device(trained))):
            result = inherit(mapped, new, old, mode=mode)
            assert_trees_equal(layers_of(result, [1, 3, 4, 5]), layers_of(old, [1, 3, 4, 5]))
            assert (result["large"][0] != old["large"][0]).any()

    def test_nothing_is_mixed_in_from_layers_that_do_not_matter(self):
        full = {"w": np.ones((LAYERS, 3), np.float32)}
        full["w"][3] = np.nan
        assign = np.array([0, 0, 0, -1, 1, 1], np.int32)
        mapped = LayerMap(fusion_matrix(assign), jnp.asarray(assign))
        for tree in (full, on_device(full)):
            result = inherit(mapped, fuse(mapped, tree) if tree is full else {"w": jnp.ones((2, 3))}, tree)
            assert np.isfinite(result["w"][np.array([0, 1, 2, 4, 5])]).all()

    @pytest.mark.parametrize("mode", MODES)
    def test_an_identity_map_returns_what_was_trained(self, mode):
        full, trained = stack(0, LAYERS), stack(1, LAYERS)
        assert inherit(LayerMap.identity(LAYERS), trained, full, mode=mode) is trained
        some = LayerMap(jnp.eye(LAYERS), jnp.arange(LAYERS), jnp.arange(LAYERS) % 2 == 0)
        result = inherit(some, trained, full, mode="copy")
        assert_trees_equal(layers_of(result, [1, 3, 5]), layers_of(full, [1, 3, 5]))
        assert_trees_equal(layers_of(result, [0, 2, 4]), layers_of(trained, [0, 2, 4]))

    @settings(max_examples=5)
    @given(seed=seeds)
    def test_what_is_copied_fuses_to_itself(self, seed):
        # Rows of DBLF and of the mean sum to one, so copying and fusing with the same map undo each other.
        trained, full = stack(seed, 3), stack(seed + 1, LAYERS)
        for method in ("dblf", "mean", "anchor", "r_one"):
            mapped = fusing_map(method)
            assert_trees_close(fuse(mapped, inherit(mapped, trained, full)), trained, 1e-4)

    @settings(max_examples=5)
    @given(seed=seeds)
    def test_a_stage_that_learned_nothing_changes_nothing_in_delta_mode(self, seed):
        full, mapped = stack(seed, LAYERS), fusing_map()
        assert_trees_close(inherit(mapped, fuse(mapped, full), full, mode="delta"), full, 1e-5)
        anchored = inherit(mapped, layers_of(full, [0, 1, 3]), full, mode="anchor_delta")
        assert_trees_close(anchored, full, 1e-5)

    @settings(max_examples=5)
    @given(seed=seeds)
    def test_delta_carries_the_learned_change_to_the_whole_group(self, seed):
        full, change, mapped = stack(seed, LAYERS), stack(seed + 1, 3), fusing_map()
        trained = jax.tree.map(np.add, fuse(mapped, full), change)
        moved = inherit(mapped, trained, full, mode="delta")
        difference = jax.tree.map(np.subtract, moved, full)
        assert_trees_close(difference, layers_of(change, ASSIGN), 1e-4)

    def test_a_state_that_is_constant_over_layers_is_a_fixed_point_of_every_remap(self):
        constant = jax.tree.map(lambda leaf: np.repeat(leaf[:1], LAYERS, axis=0), stack(0, LAYERS))
        first, second = fusing_map(), fusing_map(assign=np.array([0, 0, 1, 2, 3, 1]), beta=0.4)
        for mode in MODES:
            carried = inherit(first, fuse(first, constant), constant, mode=mode)
            assert_trees_close(carried, constant)
            assert_trees_close(fuse(second, carried), layers_of(constant, range(4)))

    def test_nested_groups_make_copy_and_anchor_delta_the_same(self):
        coarse = fusing_map(assign=np.array([0, 0, 0, 1, 1, 1]))
        fine = fusing_map(assign=np.array([0, 0, 1, 2, 2, 3]))
        state = inherit(coarse, stack(0, 2), stack(1, LAYERS))
        trained = stack(2, 4)
        copied = inherit(fine, trained, state)
        assert_trees_close(inherit(fine, trained, state, mode="anchor_delta"), copied)

    def test_kept_layers_that_learned_nothing_leave_the_model_as_it_was(self):
        full = stack(0, LAYERS, "bfloat16")
        kept = LayerMap(jnp.eye(LAYERS)[np.array([0, 5])], jnp.array([0, -1, -1, -1, -1, 1]))
        assert_trees_equal(inherit(kept, fuse(kept, full), full), full)
        copied = LayerMap(kept.fuse, jnp.array([0, 0, 0, 1, 1, 1]))
        assert (inherit(copied, fuse(copied, full), full)["large"] != full["large"]).any()

    def test_the_result_has_the_dtype_of_the_full_tree(self):
        full, trained = stack(0, LAYERS, "bfloat16"), stack(1, 3, "float32")
        for mode in MODES:
            for old in (full, on_device(full)):
                result = inherit(fusing_map(), trained, old, mode=mode)
                assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {full["large"].dtype}

    def test_quantised_weights_inherit_as_floats(self):
        weight, mapped = block_quantised(0, LAYERS), fusing_map()
        dense = weight.dequantize(jnp.float32)
        result = inherit(mapped, {"q": dense[:3]}, {"q": weight})["q"]
        np.testing.assert_array_equal(result, dense[:3][ASSIGN])

    @pytest.mark.parametrize("mode", MODES)
    def test_gradients_agree_with_finite_differences(self, mode, small_blocks):
        full, trained, mapped = on_device(stack(0, LAYERS)), on_device(stack(1, 3)), fusing_map()

        def function(trained, full):
            return inherit(mapped, trained, full, mode=mode)

        check_grads(function, (trained, full), order=1, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2)

    def test_refusals_name_the_value(self):
        full, trained, mapped = stack(0, LAYERS), stack(1, 3), fusing_map()
        with pytest.raises(ValueError, match="'paste' is unknown: choose from copy, anchor_only, delta, anchor_delta"):
            inherit(mapped, trained, full, mode="paste")
        with pytest.raises(ValueError, match=r"Leaf \['flat'\] of trained has shape \(2, 13\).*3 groups"):
            inherit(mapped, stack(1, 2), full)
        with pytest.raises(ValueError, match=r"differ at leaf \['gain'\]"):
            inherit(mapped, {k: v for k, v in trained.items() if k != "gain"}, full)
        with pytest.raises(ValueError, match="must hold the 6 layers"):
            inherit(mapped, trained, stack(0, 7))


class TestLayerMapFunction:
    def test_is_the_composition_of_its_parts(self):
        tree = on_device(stack(0, LAYERS))
        mapped = layer_map(tree, 3, beta=0.2)
        from devft_jax.developmental import group_layers

        np.testing.assert_array_equal(mapped.assign, group_layers(layer_similarity(tree), 3))
        np.testing.assert_allclose(mapped.fuse, fusion_matrix(mapped.assign, beta=0.2))
        assert mapped.train.all()

    def test_lora_alone_base_and_lora_and_numpy_trees_all_do(self):
        base, lora = stack(0, LAYERS), stack(1, LAYERS)
        for tree in (lora, (base, lora), on_device((base, lora)), LayerGrams((base, lora))):
            assert layer_map(tree, 2).fuse.shape == (2, LAYERS)
        np.testing.assert_array_equal(layer_map((base, lora), 2).fuse, layer_map(on_device((base, lora)), 2).fuse)

    def test_select_decides_what_is_compared(self):
        draw = np.random.default_rng(0)
        planted = {
            "head": np.repeat(draw.standard_normal((2, 40)), 3, axis=0),
            "tail": np.tile(draw.standard_normal((2, 40)), (3, 1)),
        }
        tree = {name: leaf.astype(np.float32) for name, leaf in planted.items()}
        assert layer_map(tree, 2, select=lambda path: "head" in path).assign.tolist() == [0, 0, 0, 1, 1, 1]
        assert layer_map(tree, 2, select=lambda path: "tail" in path).assign.tolist() == [0, 1, 0, 1, 0, 1]

    @pytest.mark.parametrize("fusion", ["dblf", "sum", "r_one", "mean", "anchor"])
    @pytest.mark.parametrize("grouping", ["dglg", "random", "even_blocks", "even_strides"])
    def test_every_pair_of_methods_makes_a_map_and_full_depth_is_the_identity(self, grouping, fusion):
        tree = on_device({"w": stack(0, LAYERS)["large"]})
        mapped = layer_map(tree, 2, grouping=grouping, fusion=fusion, key=KEY)
        assert fuse(mapped, tree)["w"].shape == (2, 24, 10)
        assert layer_map(tree, LAYERS, grouping=grouping, fusion=fusion, key=KEY).is_identity

    def test_weights_are_read_only_for_groups_that_depend_on_them(self, monkeypatch):
        def refuse(leaf):
            raise AssertionError("read the weights")

        monkeypatch.setattr("devft_jax.developmental.streaming.gram", refuse)
        tree = stack(0, LAYERS)
        layer_map(tree, LAYERS)
        layer_map(tree, 1)
        layer_map(tree, 3, grouping="even_blocks")
        with pytest.raises(AssertionError, match="read the weights"):
            layer_map(tree, 3)

    @pytest.mark.parametrize(
        ("num_groups", "options", "words"),
        [
            (7, {}, "num_groups 7 is not between 1 and the 6 layers"),
            (0, {}, "num_groups 0"),
            (2, {"grouping": "kmeans"}, "grouping method 'kmeans' is unknown"),
            (2, {"fusion": "max"}, "fusion method 'max' is unknown"),
            (2, {"grouping": "random"}, "'random' draws groups at random: give it a key"),
            (2, {"fusion": "r_one"}, "'r_one' draws one layer per group: give it a key"),
            (6, {"fusion": "r_one"}, "give it a key"),
        ],
    )
    def test_refuses_before_any_weight_is_read(self, num_groups, options, words, monkeypatch):
        monkeypatch.setattr("devft_jax.developmental.streaming.gram", None)
        with pytest.raises(ValueError, match=words):
            layer_map(stack(0, LAYERS), num_groups, **options)


class TestTransitionGap:
    @settings(max_examples=5)
    @given(seed=seeds, beta=st.sampled_from([0.1, 0.15, 1.0]))
    def test_is_lemma_1s_sum_over_the_groups(self, seed, beta):
        tree, mapped = stack(seed, LAYERS), fusing_map(beta=beta)
        vectors = rows(tree)
        expected = 0.0
        for group in range(3):
            first, *others = np.flatnonzero(group == ASSIGN)
            expected += sum(beta * np.linalg.norm(vectors[j] - vectors[first]) for j in others)
        np.testing.assert_allclose(transition_gap(layer_gram(tree), mapped), expected, rtol=1e-4)
        np.testing.assert_allclose(transition_gap(np.asarray(layer_gram(tree)), mapped), expected, rtol=1e-4)

    def test_is_zero_where_nothing_is_fused(self):
        gram = layer_gram(stack(0, LAYERS))
        assert transition_gap(gram, LayerMap.identity(LAYERS)) == 0
        assert transition_gap(gram, fusing_map("anchor")) == 0
        absent = np.array([0, -1, -1, 1, -1, 2])
        assert transition_gap(gram, LayerMap(fusion_matrix(absent), jnp.asarray(absent))) == 0
        same = layer_gram({"w": np.ones((LAYERS, 3), np.float32)})
        assert transition_gap(same, fusing_map()) == 0

    def test_is_differentiable_where_layers_coincide(self):
        tree = {"w": jnp.ones((LAYERS, 3))}
        slope = jax.grad(lambda t: transition_gap(layer_gram(t), fusing_map()))(tree)
        assert np.isfinite(slope["w"]).all()

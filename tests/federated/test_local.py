"""One client's steps against optax on a loss small enough to differentiate by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from devft_jax.errors import InputError
from devft_jax.federated.local import (
    LENGTH_FLOPS,
    PASS_TOKENS,
    Passes,
    choose_passes,
    local_step,
    local_train,
    make_optimizer,
    step_gradients,
)
from devft_jax.federated.options import OptimizerOptions
from devft_jax.models.adapter import LoraFactors
from devft_jax.options import check_options
from tests.federated.harness import assert_close, assert_identical

LAYERS, STEPS = 3, 4
ALL = jnp.ones(LAYERS, bool)
SOME = jnp.array([True, False, True])
KEY = jax.random.key(4, impl="threefry2x32")
WHOLE = Passes(2, (5,))
ADAMW = OptimizerOptions(weight_decay=0.2, clip_norm=0.0, beta1=0.8, beta2=0.95, epsilon=1e-3)


def start() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(LAYERS, 2, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(LAYERS, 5)), jnp.float32),
    }


def batches() -> tuple[jax.Array, jax.Array]:
    tokens = np.random.default_rng(1).integers(-3, 4, (STEPS, 2, 5))
    return jnp.asarray(tokens, jnp.int32), jnp.ones((STEPS, 2, 5), bool)


def reported(value):
    """A loss without a penalty, of a step in one pass, with the key of its first example: what is reduced is reported."""

    def loss(train, batch, keys, count, share):
        assert share == 1
        found = value(train, batch, keys[0])
        return found, found

    return loss


def plain_loss(train, batch, key):
    """Depends on every leaf, on the batch and on the step's key."""
    tokens, mask = batch
    noise = jax.random.normal(key, train["a"].shape)
    target = jnp.sum(tokens * mask, axis=0)
    return jnp.sum((train["a"] - noise) ** 2) + jnp.mean((train["b"] - target) ** 2)


loss = reported(plain_loss)


def first_key(key):
    """Of a step's first example."""
    return jax.random.fold_in(key, 0)


def by_hand(rule, train):
    """The steps in a Python loop."""
    state = rule.init(train)
    losses = []
    for step, batch in enumerate(zip(*batches(), strict=True)):
        value, gradient = jax.value_and_grad(plain_loss)(train, batch, first_key(jax.random.fold_in(KEY, step)))
        updates, state = rule.update(gradient, state, train)
        train = optax.apply_updates(train, updates)
        losses.append(value)
    return train, np.array(losses)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (OptimizerOptions(optimizer="sgd", clip_norm=0.0), optax.sgd(0.01)),
        (
            OptimizerOptions(optimizer="sgd", clip_norm=0.7),
            optax.chain(optax.clip_by_global_norm(0.7), optax.sgd(0.01)),
        ),
        (ADAMW, optax.adamw(0.01, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.2)),
        (
            OptimizerOptions(),
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.0)),
        ),
    ],
    ids=["sgd", "sgd clipped", "adamw", "default"],
)
def test_local_training_is_the_optax_loop(options, rule):
    wanted, losses = by_hand(rule, start())
    # The rate may be traced, as it is in a chunk.
    train = jax.jit(lambda rate: local_train(loss, make_optimizer(options, rate), start(), batches(), KEY, ALL, WHOLE))
    trained, statistics = train(jnp.float32(0.01))
    assert_close(trained, wanted)
    np.testing.assert_allclose(statistics.loss, losses, rtol=1e-5)
    moved = [np.ravel(new - old) for new, old in zip(wanted.values(), start().values(), strict=True)]
    np.testing.assert_allclose(statistics.update_norm, np.linalg.norm(np.concatenate(moved)), rtol=1e-4)
    assert statistics.finite


def one_step(options: OptimizerOptions, train_rows=ALL, rate: float = 0.1):
    rule = make_optimizer(options, rate)
    batch = jax.tree.map(lambda leaf: leaf[0], batches())
    (trained, _), _ = local_step(loss, rule, train_rows, WHOLE, (start(), rule.init(start())), batch, KEY)
    gradient = jax.grad(plain_loss)(start(), batch, first_key(KEY))
    return jax.tree.map(jnp.subtract, trained, start()), gradient


def test_clip_norm_bounds_a_step_and_zero_leaves_it_alone():
    sgd = OptimizerOptions(optimizer="sgd", clip_norm=0.5)
    clipped, gradient = one_step(sgd)
    assert optax.tree.norm(gradient) > 5
    np.testing.assert_allclose(optax.tree.norm(clipped), 0.1 * 0.5, rtol=1e-5)
    unclipped, _ = one_step(dataclasses.replace(sgd, clip_norm=0.0))
    assert_close(unclipped, jax.tree.map(lambda leaf: -0.1 * leaf, gradient))
    loose, _ = one_step(dataclasses.replace(sgd, clip_norm=1e3))
    assert_close(loose, unclipped)


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_b_learns_at_a_rate_of_its_own(optimizer, clip):
    options = OptimizerOptions(
        optimizer=optimizer, clip_norm=clip, **({"weight_decay": 0.3} if optimizer == "adamw" else {})
    )
    rng = np.random.default_rng(1)
    train = {"v": LoraFactors(a=rng.normal(size=(2, 3, 2)), b=rng.normal(size=(2, 2, 4))), "b": rng.normal(size=3)}
    train = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), train)
    steps = {}
    for ratio in (1.0, 4.0):
        rule = make_optimizer(dataclasses.replace(options, lora_plus_ratio=ratio), 0.1)
        steps[ratio], _ = rule.update(jax.tree.map(jnp.sin, train), rule.init(train), train)
    equal, faster = steps[1.0], steps[4.0]
    assert_identical((faster["v"].a, faster["b"]), (equal["v"].a, equal["b"]))
    assert_close(faster["v"].b, 4 * equal["v"].b)
    # The rate of b in AdamW's decay too: as an optimiser of its own at four times the rate.
    if optimizer == "adamw" and clip == 0:
        own = optax.adamw(0.4, weight_decay=0.3)
        wanted, _ = own.update(jnp.sin(train["v"].b), own.init(train["v"].b), train["v"].b)
        assert_close(faster["v"].b, wanted)


@pytest.mark.parametrize(
    "options",
    [OptimizerOptions(optimizer="sgd"), OptimizerOptions(weight_decay=0.5)],
    ids=["sgd", "adamw with weight decay"],
)
def test_rows_that_do_not_learn_stay_bit_identical(options):
    rule = make_optimizer(options, 0.1)
    trained, _ = local_train(loss, rule, start(), batches(), KEY, SOME, WHOLE)
    for name, old in start().items():
        assert_identical(trained[name][1], old[1])
        assert np.abs(trained[name] - old)[np.array([0, 2])].min() > 0


def test_rows_that_do_not_learn_take_no_part_in_clipping():
    change, gradient = one_step(OptimizerOptions(optimizer="sgd", clip_norm=0.5), SOME)
    learning = {name: leaf.at[1].set(0.0) for name, leaf in gradient.items()}
    scale = 0.1 * 0.5 / optax.tree.norm(learning)
    assert_close(change, jax.tree.map(lambda leaf: -scale * leaf, learning))


def test_an_infinite_gradient_of_a_row_that_does_not_learn_breaks_nothing():
    def steep(train, batch, key):
        return jnp.sum(jnp.sqrt(train["a"])) + jnp.sum(train["b"])

    train = {"a": jnp.ones((LAYERS, 2)).at[1].set(0.0), "b": jnp.ones((LAYERS, 2))}
    rule = make_optimizer(OptimizerOptions(optimizer="sgd"), 0.1)
    trained, statistics = local_train(reported(steep), rule, train, batches(), KEY, SOME, WHOLE)
    assert statistics.finite
    assert_identical(trained["a"][1], train["a"][1])
    assert np.isfinite(trained["a"]).all()
    assert (trained["b"][0] < 1).all()


def test_a_nan_in_any_step_is_reported():
    def breaks_at(value):
        def rule_of_loss(train, batch, key):
            tokens, _ = batch
            return jnp.sum(train["a"] ** 2) + jnp.where(tokens[0, 0] == value, jnp.nan, 0.0)

        return rule_of_loss

    tokens = jnp.zeros((STEPS, 2, 5), jnp.int32).at[2, 0, 0].set(1)
    numbered = (tokens, jnp.ones((STEPS, 2, 5), bool))
    rule = make_optimizer(OptimizerOptions(optimizer="sgd"), 0.1)
    for value, finite in ((1, False), (2, True)):
        _, statistics = local_train(reported(breaks_at(value)), rule, start(), numbered, KEY, ALL, WHOLE)
        assert bool(statistics.finite) == finite
        assert np.isfinite(statistics.loss[:2]).all()
        assert np.isnan(statistics.loss[2]) == (not finite)


def test_an_overflow_in_the_last_step_is_reported_though_every_loss_is_finite():
    def flat(train, batch, key):
        return jnp.sum(train["a"]) + jnp.sum(train["b"])

    rule = make_optimizer(OptimizerOptions(optimizer="sgd", clip_norm=0.0), jnp.inf)
    one = jax.tree.map(lambda leaf: leaf[:1], batches())
    _, statistics = local_train(reported(flat), rule, start(), one, KEY, ALL, WHOLE)
    assert np.isfinite(statistics.loss).all()
    assert not statistics.finite


# ---------------------------------------------------------------------------------------------------
# Passes

# Five examples of 16 positions: completions that end at 3, 16, 7, none, and 8.
ENDS = (3, 16, 7, 0, 8)
LENGTHS = (4, 8, 16)


def uneven() -> tuple[jax.Array, jax.Array]:
    tokens = np.random.default_rng(2).integers(1, 9, (len(ENDS), 16))
    mask = [[(1 <= position < end and position % 3 != 1) or position == end - 1 for position in range(16)] for end in ENDS]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask) & (jnp.arange(16) > 0)


def rowwise(train, rows, keys, count, share):
    """A mean over the completion tokens of the step, each row with noise of its own key, and a penalty."""
    tokens, mask = rows
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    score = jnp.sum(jnp.sin(tokens[..., None] * (train["a"][0, 0] + noise[:, None])), axis=-1)
    value = jnp.sum(jnp.where(mask, score, 0.0)) / count
    return value + share * jnp.sum(train["b"] ** 2), value


@pytest.mark.parametrize("examples", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(16,), LENGTHS])
def test_any_passes_give_the_steps_loss_and_gradient(examples, lengths):
    whole = step_gradients(rowwise, Passes(5, (16,)), start(), uneven(), KEY)
    parts = jax.jit(lambda train: step_gradients(rowwise, Passes(examples, lengths), train, uneven(), KEY))(start())
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    assert_close(parts[1], whole[1])
    assert all(np.abs(leaf).max() > 1e-2 for leaf in whole[1].values())


def padding(train, rows, keys, count, share):
    """Counts positions: what is reported is how many were run."""
    tokens, _ = rows
    run = jnp.float32(tokens.size)
    return run + 0.0 * jnp.sum(train["a"]), run


@pytest.mark.parametrize(
    ("examples", "lengths", "positions"),
    [
        (5, (16,), 5 * 16),
        (5, LENGTHS, 5 * 16),
        # Longest first: 16, 8, 7, 3, none.
        (1, LENGTHS, 16 + 8 + 8 + 4 + 4),
        (2, LENGTHS, 2 * 16 + 2 * 8 + 2 * 4),
    ],
)
def test_a_pass_is_padded_to_the_shortest_length_that_holds_it(examples, lengths, positions):
    value, _ = step_gradients(padding, Passes(examples, lengths), start(), uneven(), KEY)
    assert value == positions


def test_clients_of_a_chunk_share_the_length_of_a_pass():
    tokens, mask = uneven()
    both = jnp.stack([tokens, tokens]), jnp.stack([mask, mask.at[:, 4:].set(False)])
    passes = Passes(1, LENGTHS, axis="clients")

    def run(batch):
        return step_gradients(padding, passes, start(), batch, KEY)[0]

    together = jax.vmap(run, axis_name="clients")(both)
    np.testing.assert_array_equal(together, [16 + 8 + 8 + 4 + 4] * 2)
    # A branch that is taken, not all of them and a choice between what they give.
    program = str(jax.make_jaxpr(jax.vmap(run, axis_name="clients"))(both))
    assert "cond[" in program


def test_passes_follow_the_platform_and_the_data():
    lengths = np.array([100] * 50 + [40] * 50)
    chosen = choose_passes(lengths, batch_size=16, examples=None, most_lengths=4, platform="cpu")
    assert chosen == Passes(round(PASS_TOKENS / 70), (40, 104))
    assert choose_passes(lengths, batch_size=2, examples=None, most_lengths=4, platform="cpu").examples == 2
    assert choose_passes(lengths, batch_size=16, examples=None, most_lengths=1, platform="gpu") == Passes(16, (104,))
    assert choose_passes(lengths, batch_size=16, examples=5, most_lengths=1, platform="gpu").examples == 5
    assert choose_passes(10 * lengths, batch_size=16, examples=None, most_lengths=1, platform="cpu").examples == 1


@pytest.mark.parametrize(
    ("platform", "saved", "fitted"), [("cpu", 0.99, (104,)), ("cpu", 1.01, (40, 104)), ("gpu", 0.0, (40, 104))]
)
def test_a_length_is_compiled_on_a_cpu_only_if_the_run_repays_it(platform, saved, fitted):
    lengths = np.array([100] * 50 + [40] * 50)
    # The second length saves 32 tokens an example on average.
    flops = saved * LENGTH_FLOPS / 32 + 1e-9
    assert (
        choose_passes(lengths, batch_size=4, examples=4, most_lengths=4, platform=platform, token_flops=flops).lengths
        == fitted
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "adam"}, "optimizer 'adam' is unknown; choose from adamw, sgd (did you mean 'adamw'?)."),
        ({"weight_decay": -0.1}, "weight_decay -0.1 is negative; use 0 or more."),
        ({"clip_norm": -1.0}, "clip_norm -1.0 is negative; use 0 or more."),
        (
            {"beta1": 1.0},
            "beta1 1.0 is outside [0, 1); 0.9 is usual.",
        ),
        (
            {"beta2": -0.5},
            "beta2 -0.5 is outside [0, 1); 0.999 is usual.",
        ),
        ({"epsilon": 0.0}, "epsilon 0.0 is not positive; 1e-8 is usual."),
    ],
)
def test_a_bad_option_is_named_with_its_remedy(options, sentence):
    with pytest.raises(InputError) as caught:
        check_options(OptimizerOptions(**options))
    assert str(caught.value) == sentence


def test_the_defaults_are_valid():
    check_options(OptimizerOptions())
    check_options(OptimizerOptions(optimizer="sgd", clip_norm=0.0, beta1=0.0))


@pytest.mark.parametrize("taken", [1, 3, STEPS])
def test_steps_that_are_not_taken_change_nothing(taken):
    rule = make_optimizer(ADAMW, 0.01)
    inputs = loss, rule, start()
    fewer = local_train(*inputs, tuple(leaf[:taken] for leaf in batches()), KEY, None, WHOLE)
    limited = local_train(*inputs, batches(), KEY, None, WHOLE, steps=jnp.int32(taken))
    assert_identical(limited[0], fewer[0])
    assert_identical(limited[1].update_norm, fewer[1].update_norm)
    assert limited[1].loss[:taken].tolist() == fewer[1].loss.tolist()
    assert limited[1].loss[taken:].tolist() == [0.0] * (STEPS - taken)

"""A run that begins with an adapter: the same update in the run's factors, for every algorithm, or one sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.federated.aggregation import product
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.federated.beginning import check_first_state, first_state
from devft_jax.federated.warm_start import WarmStart
from devft_jax.models.lora import LoraOptions, init_lora
from devft_jax.training.warm_start import truncated
from tests.tiny import CONFIG, random_adapter

OPTIONS = MethodConfig(rank=4, alpha=8.0, targets=("q", "v"))
KEY = jax.random.key(0, impl="threefry2x32")


def warm(rank=3, alpha=12.0, targets=("q",)):
    """An adapter of another rank, scale and choice of targets than the runs of this file."""
    return WarmStart(random_adapter(LoraOptions(rank=rank, alpha=alpha, targets=targets)), "the adapter X")


def fresh():
    return init_lora(KEY, CONFIG, rank=4, alpha=8.0, targets=("q", "v"))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "c2a"])
def test_the_first_models_of_every_algorithm_are_the_base_with_the_adapter(name):
    config = dataclasses.replace(OPTIONS, algorithm=name)
    algorithm, clients, start = ALGORITHMS[name](config), Clients(3), warm()
    server = algorithm.init_server(KEY, CONFIG, clients)
    began = first_state(algorithm, server, start)
    check_first_state(algorithm, began, clients, start)
    assert jax.tree.map(jnp.shape, began) == jax.tree.map(jnp.shape, server)
    # The check is of values: the algorithm's own beginning is not the adapter.
    with pytest.raises(InputError, match=f"algorithm {name} derives its first model from more than an adapter"):
        check_first_state(algorithm, server, clients, start)


def test_an_algorithm_without_a_place_for_it_is_refused():
    algorithm = ALGORITHMS["c2a"](MethodConfig(algorithm="c2a"))
    with pytest.raises(InputError, match="algorithm c2a has no low-rank adapter or correction in its first state"):
        first_state(algorithm, algorithm.init_server(KEY, CONFIG, Clients(3)), warm())


def test_a_smaller_rank_and_another_scale_give_the_same_update():
    start, new = warm(), fresh()
    found = start.factors(new.lora, new.scale)
    # Scales 12 / 3 and 8 / 4: the ratio is a power of two, so that every number is exact.
    np.testing.assert_array_equal(found["q"].a[..., :3], start.adapter.lora["q"].a)
    np.testing.assert_array_equal(found["q"].b[:, :3], 2 * start.adapter.lora["q"].b)
    np.testing.assert_array_equal(found["q"].a[..., 3:], new.lora["q"].a[..., 3:])
    assert not np.any(found["q"].b[:, 3:])
    np.testing.assert_array_equal(found["v"].a, new.lora["v"].a)
    assert not np.any(found["v"].b)


def test_directions_that_could_never_learn_begin_like_new_ones():
    start, new = warm(), fresh()
    q = start.adapter.lora["q"]
    padded = q.replace(a=q.a.at[1, :, 2].set(0), b=q.b.at[1, 2].set(0))
    found = WarmStart(start.adapter.replace(lora={"q": padded}), start.what).factors(new.lora, new.scale)["q"]
    np.testing.assert_array_equal(found.a[1, :, 2], new.lora["q"].a[1, :, 2])
    np.testing.assert_array_equal(found.a[0, :, 2], q.a[0, :, 2])
    assert not np.any(found.b[1, 2])


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (warm(rank=5), "rank 4 is below rank 5 of the adapter X; give --rank 5, or --truncate-adapter"),
        (warm(targets=("q", "k")), "targets q,v lacks k, which the adapter X adapts; give --targets q,k,v."),
        (
            WarmStart(
                random_adapter(LoraOptions(rank=2, alpha=2.0, targets=("v",)), dataclasses.replace(CONFIG, layers=3)), "X"
            ),
            r"X adapts 3 layers with v \[16 x 8\] but the model has 4 with \[16 x 8\]; give the model",
        ),
    ],
    ids=["rank", "targets", "depth"],
)
def test_what_cannot_begin_exactly_is_one_sentence(start, sentence):
    new = fresh()
    with pytest.raises(InputError, match=sentence):
        start.factors(new.lora, new.scale)


def test_a_method_that_corrects_weights_takes_any_rank():
    algorithm = ALGORITHMS["flora"](OPTIONS)
    start = warm(rank=9)
    began = first_state(algorithm, algorithm.init_server(KEY, CONFIG, Clients(3)), start)
    check_first_state(algorithm, began, Clients(3), start)


def test_truncation_is_the_nearest_adapter_of_the_rank():
    adapter = random_adapter(LoraOptions(rank=6, alpha=18.0, targets=("q", "v")))
    found = truncated(adapter, 4, 2.0)
    for name, factors in found.lora.items():
        assert factors.a.shape[-1] == 4
        for layer, whole in enumerate(3.0 * np.asarray(product(adapter.lora[name]))):
            left, values, right = np.linalg.svd(whole)
            best = (left[:, :4] * values[:4]) @ right[:4]
            np.testing.assert_allclose(2.0 * np.asarray(product(factors))[layer], best, atol=1e-4)

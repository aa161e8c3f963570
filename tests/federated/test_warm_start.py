"""A run that begins with an adapter: the same update in the run's factors, for every algorithm, or one sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.config.methods import algorithm_of
from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError
from devft_jax.federated.aggregation import product
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.federated.beginning import check_first_state, first_state
from devft_jax.federated.warm_start import WarmStart
from devft_jax.models.lora import init_lora
from devft_jax.models.loss import completion_loss
from devft_jax.models.options import LoraOptions
from devft_jax.training.warm_start import truncated
from tests.federated.harness import BASE, participant
from tests.tiny import CONFIG, random_adapter

OPTIONS = MethodConfig(rank=4, alpha=8.0, targets=("q", "v"))
KEY = jax.random.key(0, impl="threefry2x32")
IDENTITY = LayerMap.identity(CONFIG.layers)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, CONFIG.vocabulary - 1, (4, 9)), jnp.int32)
MASK = jnp.broadcast_to(jnp.arange(9) >= 3, TOKENS.shape)


def warm(rank=3, alpha=12.0, targets=("q",)):
    """An adapter of another rank, scale and choice of targets than the runs of this file."""
    return WarmStart(random_adapter(LoraOptions(rank=rank, alpha=alpha, targets=targets)), "the adapter X")


def fresh():
    return init_lora(KEY, CONFIG, rank=4, alpha=8.0, targets=("q", "v"))


@jax.jit
def loss(adapter):
    """The loss of the base with an adapter, as a run evaluates it."""
    return completion_loss(CONFIG, BASE, adapter, TOKENS, MASK)


def made(name, **changes):
    """An algorithm whose server can hold any adapter."""
    options = {"density_down": 1.0} if name == "flasc" else {}
    return algorithm_of(dataclasses.replace(OPTIONS, algorithm=name, **options, **changes))


def assert_begins_with(algorithm, start):
    """What is evaluated before the first stage, evaluated in it before the first round, and trained from."""
    clients = Clients(3)
    server = algorithm.init_server(KEY, CONFIG, clients)
    began = first_state(algorithm, server, start)
    check_first_state(algorithm, began, clients, start)
    assert jax.tree.map(jnp.shape, began) == jax.tree.map(jnp.shape, server)
    # The check is of values: the algorithm's own beginning is not the adapter.
    with pytest.raises(InputError, match=f"algorithm {algorithm.name} derives its first model from more than an adapter"):
        check_first_state(algorithm, server, clients, start)
    bank = algorithm.init_bank(clients, began)
    stage = algorithm.enter(algorithm.submodel(began, IDENTITY), BASE)
    row = algorithm.submodel_row(jax.tree.map(lambda leaf: leaf[1], bank), IDENTITY)
    models = [algorithm.adapter(*algorithm.start(participant(algorithm, stage, row)))]
    if algorithm.has_global_model:
        models += [
            algorithm.global_model(began, bank),
            algorithm.global_model(stage, jax.tree.map(lambda leaf: leaf[None], row)),
        ]
    if algorithm.personal is not None:
        models.append(algorithm.personal(stage, row))
    wanted = float(loss(start.adapter))
    assert abs(wanted - loss(None)) > 0.01
    for model in models:
        assert float(loss(model)) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "c2a"])
def test_every_algorithm_begins_with_the_loss_of_the_base_with_the_adapter(name):
    assert_begins_with(made(name), warm())


@pytest.mark.parametrize("name", ["fedit", "rolora", "scaffold", "fedmomentum", "lora-fair"])
def test_so_do_algorithms_whose_factors_begin_at_principal_directions(name):
    assert_begins_with(made(name, initialization="pissa"), warm(rank=5))


def test_so_do_algorithms_whose_factors_begin_at_a_gradients_directions():
    assert_begins_with(made("fedit", initialization="lora-ga"), warm(rank=5))


@pytest.mark.parametrize("channel", ["int8", "topk=0.1", "lowrank=2"])
@pytest.mark.parametrize("name", ["fedit", "fedsa-lora"])
def test_so_do_algorithms_whose_clients_send_through_a_channel(name, channel):
    assert_begins_with(made(name, channel=channel), warm())


def test_flasc_without_its_small_entries_is_refused():
    algorithm = algorithm_of(dataclasses.replace(OPTIONS, algorithm="flasc"))
    with pytest.raises(
        InputError, match=r"density_down 0\.25 keeps only the largest .* algorithm flasc cannot begin with the "
    ):
        first_state(algorithm, algorithm.init_server(KEY, CONFIG, Clients(3)), warm())


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

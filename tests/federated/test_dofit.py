"""DoFIT: federated averaging within domains, the step between them, and what travels."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError
from devft_jax.exporting.export import export
from devft_jax.federated.algorithm import Share
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.dofit import dofit
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.models.architecture import ARCHITECTURES
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.federated.harness import aggregated, assert_close, assert_identical, contributed, init, trained_messages
from tests.tiny import CONFIG
from tests.tiny_run import MODEL, write_run_inputs

QUIET = Progress(quiet=True)
OPTIONS = MethodConfig(rank=3, alpha=6.0, dropout=0.0, targets=("q", "v", "down"), domain_top=10)
DOMAINS = (0, 1, 0, 1, 0)
WEIGHTS = (3.0, 5.0, 2.0, 11.0, 7.0)


def random_server(options=OPTIONS, seed=0):
    """A server in the middle of training, each domain with an adapter of its own."""
    rng = np.random.default_rng(seed)
    server = init(dofit(options))
    lora = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), server.lora)
    return server.replace(lora=lora)


def a_round(options, server, domains=DOMAINS, weights=WEIGHTS, distance=1.0):
    """The clients' trained factors, in float64, and the server after their round."""
    algorithm = dofit(options)
    rng = np.random.default_rng(9)
    rows = [{"domain": jnp.int32(domain)} for domain in domains]
    move = lambda who, leaf: leaf + distance * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    ups, _ = trained_messages(algorithm, server, rows, move=move)
    sent = [
        jax.tree.map(lambda leaf, old, own=domain: np.asarray(leaf, np.float64) + np.asarray(old[own]), up[0], server.lora)
        for up, domain in zip(ups, domains, strict=True)
    ]
    return sent, *aggregated(algorithm, server, ups, weights)


def plain_round(server, sent, options, domains=DOMAINS, weights=WEIGHTS):
    """{(projection, factor): [J, L, ...]} after the round, matrix by matrix in numpy, and the set that is shared."""
    state = {}
    for name, factors in server.lora.items():
        for factor in ("a", "b"):
            old = np.asarray(getattr(factors, factor), np.float64)
            state[name, factor] = old.copy()
            for domain in range(options.domains):
                members = [index for index, own in enumerate(domains) if own == domain and weights[index] > 0]
                if members:
                    parts = [getattr(sent[index][name], factor) for index in members]
                    state[name, factor][domain] = np.average(parts, axis=0, weights=[weights[m] for m in members])
    depth = next(iter(state.values())).shape[1]
    top = max(1, round(options.domain_top * depth / CONFIG.layers))
    items = [(key, layer) for key in state for layer in range(depth)]
    offers = []
    for domain in range(options.domains):
        size = lambda item, who=domain: -np.linalg.norm(state[item[0]][who, item[1]])  # noqa: E731
        offers.append(set(sorted(items, key=size)[:top]))
    shared = set.intersection(*offers)
    for key, layer in shared:
        versions = state[key][:, layer].copy()
        mean = versions.mean(axis=0)
        for domain in range(options.domains):
            apart = np.abs(versions[domain] - mean)
            step = options.domain_step * apart / max(np.linalg.norm(apart), 1e-30)
            state[key][domain, layer] = mean if options.domain_rule == "mean" else versions[domain] + step
    return state, shared


@pytest.mark.parametrize(
    "changes", [{}, {"domain_step": 0.3, "domain_top": 4}, {"domain_rule": "mean"}, {"domains": 3}, {"domain_top": 1000}]
)
def test_a_round_is_what_numpy_computes_matrix_by_matrix(changes):
    options = dataclasses.replace(OPTIONS, **changes)
    server = random_server(options)
    sent, after, metrics = a_round(options, server)
    expected, shared = plain_round(server, sent, options)
    assert shared
    assert metrics["shared_matrices"] == len(shared)
    for (name, factor), leaf in expected.items():
        np.testing.assert_allclose(getattr(after.lora[name], factor), leaf, atol=2e-5)


def test_a_domain_without_participants_keeps_its_adapter():
    # With a step of zero nothing but the averages is left.
    options = dataclasses.replace(OPTIONS, domain_step=0.0)
    server = random_server(options)
    _, after, _ = a_round(options, server, domains=(0, 0), weights=(2.0, 3.0))
    for new, old in zip(jax.tree.leaves(after.lora), jax.tree.leaves(server.lora), strict=True):
        assert_identical(new[1], old[1])
        assert np.abs(new[0] - old[0]).max() > 0.1


def test_a_shared_matrix_moves_by_the_step_and_others_not_at_all():
    options = dataclasses.replace(OPTIONS, domain_step=0.7)
    server = random_server(options)
    still = dataclasses.replace(options, domain_step=0.0)
    sent, averaged, _ = a_round(still, server)
    _, after, _ = a_round(options, server)
    _, shared = plain_round(server, sent, options)
    for name in after.lora:
        for factor in ("a", "b"):
            new, old = (np.asarray(getattr(each.lora[name], factor)) for each in (after, averaged))
            assert_close(new[0] - new[1], old[0] - old[1], atol=1e-5)
            for layer in range(CONFIG.layers):
                moved = np.linalg.norm(new[:, layer] - old[:, layer], axis=(1, 2))
                np.testing.assert_allclose(moved, 0.7 if ((name, factor), layer) in shared else 0.0, atol=1e-4)


@pytest.mark.parametrize("rule", ["dofit", "mean"])
def test_one_domain_is_fedit(rule):
    options = dataclasses.replace(OPTIONS, domains=1, domain_rule=rule)
    server = init(dofit(options))
    sent, after, metrics = a_round(options, server, domains=(0, 0, 0), weights=(2.0, 9.0, 4.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics)))
    start = init(fedit(options))
    assert_identical(dofit(options).view(server).lora, start.lora)
    ups = [jax.tree.map(lambda leaf, old: jnp.asarray(leaf - old, jnp.float32), tree, start.lora) for tree in sent]
    expected, _ = aggregated(fedit(options), start, ups, (2.0, 9.0, 4.0))
    assert_close(dofit(options).view(after).lora, expected.lora, atol=1e-6)


def test_the_first_round_shares_a_alone_and_equal_domains_do_not_step():
    server = init(dofit(OPTIONS))
    rows = [{"domain": jnp.int32(domain)} for domain in (0, 1)]
    ups, _ = trained_messages(dofit(OPTIONS), server, rows, move=lambda who, leaf: leaf)
    after, metrics = aggregated(dofit(OPTIONS), server, ups, [1.0, 2.0])
    assert_identical(after, server)
    assert metrics["shared_matrices"] == 10


def test_what_the_rounding_of_a_mean_leaves_between_domains_is_no_step():
    server = init(dofit(OPTIONS))
    _, after, metrics = a_round(OPTIONS, server, distance=0.0)
    assert metrics["shared_matrices"] == 10
    assert_close(after.lora, server.lora, atol=1e-6)
    # What a round at the smallest rates teaches is well above it.
    _, after, _ = a_round(OPTIONS, server, distance=1e-4)
    moved = np.linalg.norm([after.lora[name].a[0] - server.lora[name].a[0] for name in ("q", "v")], axis=(2, 3))
    assert np.count_nonzero(moved > 0.9 * OPTIONS.domain_step) > 0


def test_messages_of_bfloat16_are_summed_in_float32():
    options = dataclasses.replace(OPTIONS, message_dtype="bfloat16", domain_step=0.0)
    server = random_server(options)
    sent, after, _ = a_round(options, server)
    expected, _ = plain_round(server, sent, options)
    for (name, factor), leaf in expected.items():
        np.testing.assert_allclose(getattr(after.lora[name], factor), leaf, atol=2e-6)


def test_padding_and_broken_clients_contribute_nothing():
    algorithm, server = dofit(OPTIONS), random_server()
    (up,), _ = trained_messages(algorithm, server, [{"domain": jnp.int32(1)}], move=lambda who, leaf: leaf)
    assert not any(leaf.any() for leaf in jax.tree.leaves(contributed(algorithm, [up], [0.0])))
    sums = algorithm.contribution(up, Share(jnp.float32(3), jnp.int32(0)))
    np.testing.assert_array_equal(sums.weight, [0, 3])


def test_each_domain_passes_a_stage_by_itself():
    algorithm, server = dofit(OPTIONS), random_server()
    matrix = np.array([[0.9, 0.1, 0, 0], [0, 0, 1, 0]], np.float32)
    layers = LayerMap(jnp.asarray(matrix), jnp.array([0, 0, 1, -1], jnp.int32), jnp.array([True, False]))
    stage = algorithm.submodel(server, layers)
    for small, full in zip(jax.tree.leaves(stage.lora), jax.tree.leaves(server.lora), strict=True):
        np.testing.assert_allclose(small, np.einsum("gl,jl...->jg...", matrix, full), atol=1e-6)
    moved = stage.replace(lora=jax.tree.map(lambda leaf: leaf + 1, stage.lora))
    after = algorithm.transfer(server, moved, layers, "copy")
    for new, old, trained in zip(*map(jax.tree.leaves, (after.lora, server.lora, moved.lora)), strict=True):
        assert_identical(new[:, 2:], old[:, 2:])
        assert_identical(new[:, :2], jnp.stack([trained[:, 0]] * 2, axis=1))
    identity = LayerMap.identity(CONFIG.layers)
    assert_identical(algorithm.submodel(server, identity), server)
    assert_identical(algorithm.transfer(server, server, identity, "copy"), server)


def test_layers_that_do_not_learn_make_no_step():
    options = dataclasses.replace(OPTIONS, domain_top=1000)
    algorithm, server = dofit(options), random_server(options)
    learns = np.array([False, True, True, False])
    identity = LayerMap.identity(CONFIG.layers)
    stage = algorithm.submodel(server, LayerMap(identity.fuse, identity.assign, jnp.asarray(learns)))
    rows = [{"domain": jnp.int32(domain)} for domain in DOMAINS]

    def move(who, leaf):
        return leaf + (1.0 + who) * learns.reshape(-1, 1, 1)

    ups, _ = trained_messages(algorithm, stage, rows, move=move)
    after, metrics = aggregated(algorithm, stage, ups, WEIGHTS)
    assert metrics["shared_matrices"] == 6 * 2
    for new, old in zip(jax.tree.leaves(after.lora), jax.tree.leaves(server.lora), strict=True):
        assert_close(new[:, ~learns], old[:, ~learns], atol=1e-6)
        assert np.abs(new - old)[:, learns].min() > 0.1
    # The next stage has learning layers of its own.
    deep = algorithm.transfer(server, after, identity, "copy")
    assert algorithm.submodel(deep, identity).learns.all()


def test_models_are_the_domains_and_their_mean():
    algorithm, server = dofit(OPTIONS), random_server()
    own = [algorithm.personal(server, {"domain": jnp.int32(domain)}) for domain in range(2)]
    assert_identical(own[1].lora["v"].b, server.lora["v"].b[1])
    mean = algorithm.consensus(server, {})
    assert_close(mean.lora, jax.tree.map(lambda one, two: (one + two) / 2, own[0].lora, own[1].lora), atol=1e-6)


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-2-13b-hf"])
def test_a_client_sends_and_receives_as_much_as_under_fedit(name):
    expected = {"Llama-2-7b-hf": 16_777_216, "Llama-3.1-8B": 13_631_488, "Llama-2-13b-hf": 26_214_400}[name.split("/")[1]]
    config, architecture = MethodConfig(message_dtype="bfloat16"), ARCHITECTURES[name]
    messages = round_messages(dofit(config), architecture, architecture.layers)
    assert messages.bytes_down == messages.bytes_up == 2 * expected
    assert round_messages(dofit(config), architecture, 4).bytes_up * architecture.layers == 4 * 2 * expected


# ---- as a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), MODEL))
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer, base=base)
    return dataclasses.replace(
        written, algorithm="dofit", domain_step=0.05, capacities=(2, 4), rounds=2, devices=1, checkpoint_every=1
    )


def run_twice(config, folder):
    """A run, and the same one gone on after its first round."""
    run = train(dataclasses.replace(config, out=str(folder)), progress=QUIET)
    before = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "2")
    again = train(dataclasses.replace(config, out=str(folder)), progress=QUIET)
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert again.summary.final_loss == run.summary.final_loss
    assert again.summary.personal == run.summary.personal
    return run


@pytest.mark.slow
@pytest.mark.parametrize("growth", ["devft", "end-to-end"])
def test_a_run_goes_on_bit_for_bit(config, tmp_path, growth):
    run = run_twice(dataclasses.replace(config, growth=growth), tmp_path / "run")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["bytes_up"] == row["bytes_down"] > 0 for row in rows)
    assert not run.summary.personal_models
    # Two domains over three clients: two models, of which two clients share one.
    assert len(set(run.summary.personal.losses)) == 2
    export(run.folder, tmp_path / "mean")
    written = [folder / "adapter_model.safetensors" for folder in (tmp_path / "mean", run.folder / "adapter")]
    assert written[0].read_bytes() == written[1].read_bytes()
    for client in ("client_0", "client_2"):
        export(run.folder, tmp_path / client, client=client)
        assert import_peft(tmp_path / client, MODEL).lora["q"].a.shape[0] == MODEL.layers


def test_more_domains_than_clients_are_refused(config, tmp_path):
    with pytest.raises(InputError, match="domains 4 exceeds the 3 clients of the data; use 3 or fewer"):
        train(dataclasses.replace(config, domains=4, out=str(tmp_path / "run")), progress=QUIET)
    # The folder holds no run, so that the next one may use it.
    assert not (tmp_path / "run" / "config.json").exists()

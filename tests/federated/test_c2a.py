"""C2A: the mean hypernetwork, whose text its adapters are for, its stages, and what travels."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import message_elements, round_messages
from devft_jax.accounting.flops import Adaptation, forward_breakdown, training_flops
from devft_jax.accounting.memory import Work, layer_kept, stage_memory
from devft_jax.commands.cli import run_command
from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError
from devft_jax.exporting.export import export
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.c2a import c2a
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.local import Passes
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.round.client import LocalTraining
from devft_jax.models.architecture import ARCHITECTURES, ModelConfig
from devft_jax.models.base import init_base
from devft_jax.models.llama import Compute
from devft_jax.reporting import Progress
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.federated.harness import (
    FIVE,
    SGD,
    aggregated,
    assert_close,
    assert_identical,
    contributed,
    engine,
    init,
    participant,
    run_round,
    trained_messages,
    weighted_mean,
)
from tests.tiny import CONFIG
from tests.tiny_run import MODEL, write_run_inputs

QUIET = Progress(quiet=True)
OPTIONS = MethodConfig(hyper_rank=3, hyper_width=5, hyper_clusters=4, clients_per_round=3)
WEIGHTS = [3.0, 11.0, 2.0]
DISTILBERT = ModelConfig(vocabulary=30_522, width=768, feed_forward=3072, layers=6, heads=12, kv_heads=12, head_size=64)
SIZES = {
    "distilbert": (DISTILBERT, 48_032),
    "meta-llama/Llama-2-7b-hf": (ARCHITECTURES["meta-llama/Llama-2-7b-hf"], 237_936),
    "meta-llama/Llama-3.1-8B": (ARCHITECTURES["meta-llama/Llama-3.1-8B"], 237_936),
    "meta-llama/Llama-2-13b-hf": (ARCHITECTURES["meta-llama/Llama-2-13b-hf"], 296_368),
}


def random_server(seed=0):
    """A server in the middle of training."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), init(c2a(OPTIONS)))


def rows_of(count):
    """Rows of clients whose histograms differ."""
    shares = np.random.default_rng(1).dirichlet(np.ones(4), count).astype(np.float32)
    return [{"histogram": each} for each in shares]


def moved(options=OPTIONS):
    """The messages of three clients that went different ways, and the server."""
    rng, server = np.random.default_rng(2), random_server()
    move = lambda who, leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)  # noqa: E731
    return trained_messages(c2a(options), server, rows_of(3), move=move)[0], server


@pytest.mark.parametrize("message_dtype", ["float32", "bfloat16"])
def test_the_server_takes_the_weighted_mean_in_float32(message_dtype):
    options = dataclasses.replace(OPTIONS, message_dtype=message_dtype)
    ups, server = moved(options)
    assert {leaf.dtype for leaf in jax.tree.leaves(ups)} == {jnp.dtype(message_dtype)}
    after, metrics = aggregated(c2a(options), server, ups, WEIGHTS)
    assert_close(after, jax.tree.map(np.add, server, weighted_mean(ups, WEIGHTS)), atol=1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    assert metrics["update_norm"] > 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(contributed(c2a(options), ups, [0.0] * 3)))


def test_a_client_trains_with_its_own_histogram_and_is_judged_with_a_flat_one():
    algorithm, server = c2a(OPTIONS), random_server()
    row = rows_of(1)[0]
    trained, frozen = algorithm.start(participant(algorithm, server, row))
    own = algorithm.adapter(trained, frozen).hyper
    assert_identical(own.histogram, row["histogram"])
    assert_identical(own.network, server)
    np.testing.assert_allclose(algorithm.view(server).hyper.histogram, 0.25)
    bank = algorithm.init_bank(Clients(6, histograms=lambda count: np.full((6, count), 0.5, np.float32)), server)
    np.testing.assert_array_equal(bank["histogram"], np.full((6, 4), 0.5))


def test_a_stage_changes_the_layer_tokens_alone():
    algorithm, server = c2a(OPTIONS), random_server()
    matrix = np.array([[0.9, 0.1, 0, 0], [0, 0, 1, 0]], np.float32)
    layers = LayerMap(jnp.asarray(matrix), jnp.array([0, 0, 1, -1], jnp.int32), jnp.ones(2, bool))
    stage = algorithm.submodel(server, layers)
    np.testing.assert_allclose(stage.layer_tokens, matrix @ server.layer_tokens, atol=1e-6)
    assert_identical(stage.replace(layer_tokens=server.layer_tokens), server)
    trained = jax.tree.map(lambda leaf: leaf + 1, stage)
    after = algorithm.transfer(server, trained, layers, "copy")
    assert_identical(after.layer_tokens[3], server.layer_tokens[3])
    assert_identical(after.layer_tokens[:3], trained.layer_tokens[jnp.array([0, 0, 1])])
    assert_identical(after.replace(layer_tokens=0), trained.replace(layer_tokens=0))
    identity = LayerMap.identity(CONFIG.layers)
    assert_identical(algorithm.submodel(server, identity), server)
    assert_identical(algorithm.transfer(server, trained := server, identity, "copy"), trained)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_a_message_is_the_hypernetwork(name, gate):
    architecture, elements = SIZES[name]
    algorithm = c2a(MethodConfig(message_dtype="bfloat16", hyper_ungated=not gate))
    messages = round_messages(algorithm, architecture, architecture.layers)
    # The gate is one element more than the published method's.
    assert message_elements(messages.up) == message_elements(messages.participant.down) == elements + gate
    assert messages.bytes_up == messages.bytes_down == 2 * (elements + gate)
    small = round_messages(algorithm, architecture, 2)
    assert message_elements(small.up) == elements + gate - 8 * (architecture.layers - 2)


def test_a_round_through_the_engine_moves_the_gate_first_and_then_all():
    algorithm, server = c2a(OPTIONS), init(c2a(OPTIONS))
    bank = jax.device_get(algorithm.init_bank(Clients(5), server))
    # Two clients at a time of three, so that one is padding.
    result = run_round(engine(algorithm, SGD, 1, 2), server, FIVE[:3], bank=bank)
    assert result.finite.all()
    assert_identical(result.bank_rows, jax.tree.map(lambda leaf: leaf[:3], bank))
    again = run_round(engine(algorithm, SGD, 1, 3), server, FIVE[:3], bank=bank)
    assert_close(result.server, again.server, atol=1e-5)
    for new, old in zip(jax.tree.leaves(result.server), jax.tree.leaves(server), strict=True):
        assert np.abs(new - old).max() > 0


def test_its_work_and_memory_are_counted():
    algorithm = c2a(OPTIONS)
    view = jax.eval_shape(algorithm.view, jax.eval_shape(lambda: init(algorithm)))
    adaptation = Adaptation.of(view, view.hyper.network, CONFIG.layers)
    width, rank, length = CONFIG.width, OPTIONS.hyper_rank, 64
    forward = 2 * CONFIG.layers * 2 * (2 * width * rank)
    making = 2 * CONFIG.layers * 2 * (8 * width + 8 * rank * width) // length
    counted = forward_breakdown(CONFIG, layers=CONFIG.layers, adaptation=adaptation, length=length)
    assert counted["low_rank"] == forward + making
    bare = dataclasses.replace(adaptation, factors=0, trained=0, example=0)
    training = [training_flops(CONFIG, layers=CONFIG.layers, adaptation=each, length=length) for each in (adaptation, bare)]
    assert training[0] - training[1] == 3 * (forward + making)
    kept = [
        layer_kept(each, CONFIG, Compute(), "none", 4, 64) for each in (algorithm, fedit(MethodConfig(rank=1, dropout=0)))
    ]
    # Each sublayer keeps its inner activations and the weights made for its examples.
    assert kept[0] > kept[1] + 2 * 4 * (4 * 64 * rank + 4 * rank * width)
    work = Work(clients=2, steps=3, batch=4, length=64)
    terms = stage_memory(LocalTraining(algorithm, CONFIG, Compute(), OptimizerOptions(), Passes(4, (64,))), work, layers=2)
    messages = round_messages(algorithm, CONFIG, 2)
    assert terms.lora == 2 * 4 * message_elements(messages.up)


# ---- as a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), MODEL))
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer, base=base)
    options = {"algorithm": "c2a", "hyper_rank": 4, "hyper_width": 4, "hyper_clusters": 3, "learning_rate": (0.02,)}
    return dataclasses.replace(written, **options, capacities=(2, 4), rounds=2, devices=1, checkpoint_every=1)


@pytest.mark.slow
@pytest.mark.parametrize("growth", ["devft", "end-to-end"])
def test_a_run_goes_on_bit_for_bit(config, tmp_path, growth, capfd):
    chosen = dataclasses.replace(config, growth=growth, out=str(tmp_path / "run"))
    run = train(chosen)
    assert "c2a has no adapter in PEFT's format" in capfd.readouterr().err
    assert not (run.folder / "adapter").exists()
    assert run.adapter.hyper.network.gate != 0
    assert run.summary.final_loss != run.summary.base_loss
    with RunFolder(run.folder) as folder:
        assert folder.checkpoints.latest_round() == 2
    shutil.rmtree(run.folder / "checkpoints" / "2")
    again = train(chosen, progress=QUIET)
    assert_identical(again.adapter, run.adapter)
    assert again.summary.final_loss == run.summary.final_loss
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows[-1]["adapter_norms"]) == MODEL.layers
    if growth == "devft":
        losses = [
            step.loss
            for client in rows[1]["clients"]
            for step in replay(run.folder, client=f"client_{client}", round=2, progress=QUIET).steps
        ]
        assert np.mean(losses) == pytest.approx(rows[1]["loss"], rel=1e-5)
        with pytest.raises(InputError, match=r"\(c2a\) has no low-rank adapter, the only kind that can"):
            export(run.folder, tmp_path / "adapter")
        assert run_command(["generate", str(run.folder), "--prompt", "a"]) == 2
        assert "(c2a) has no low-rank adapter, the only kind that can generate answers" in capfd.readouterr().err

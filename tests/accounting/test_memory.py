"""The formula for memory against XLA's analysis of the real chunk program, and its terms one by one."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting import memory as measured
from devft_jax.accounting.memory import MemoryMeter, Work, compiled_memory, kept_for_backward, layer_kept, stage_memory
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.local import Passes
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.options import OptimizerOptions
from devft_jax.federated.round.client import LocalTraining
from devft_jax.models.architecture import ARCHITECTURES, PROJECTIONS, ModelConfig
from devft_jax.models.llama import Compute
from devft_jax.models.quantization import base_shapes

SMALL = ModelConfig(vocabulary=1000, width=256, feed_forward=704, layers=9, heads=4, kv_heads=2, head_size=64)
LORA = MethodConfig(rank=8, dropout=0.0)
WORK = Work(clients=2, steps=3, batch=2, length=128)


def memory(
    function, *, config=SMALL, lora=LORA, compute=None, remat="full", work=WORK, layers=2, optimizer="adamw", **options
):
    compute = compute or Compute(remat=remat, attention="xla")
    passes = Passes(work.batch, (work.length,))
    training = LocalTraining(fedit(lora), config, compute, OptimizerOptions(optimizer=optimizer), passes)
    return function(training, work, layers=layers, **options)


def slow(**case):
    """One more case of what the default suite tries a few of."""
    return pytest.param(case, marks=pytest.mark.slow, id=named(case))


def named(case):
    return " ".join(str(value) for value in case.values())


SEVERAL = {"remat": "none", "layers": 8}
ALL_TARGETS = MethodConfig(rank=64, dropout=0.0, targets=PROJECTIONS)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(SEVERAL, id=named(SEVERAL)),
        pytest.param({"remat": "dots", "quantization": "nf4"}, id="dots nf4"),
        pytest.param({"remat": "full", "work": Work(8, 3, 1, 128)}, id="full 8 clients"),
        pytest.param({"remat": "dots", "layers": 8, "model_shards": 4}, id="dots 4 shards"),
        slow(remat="full", layers=8, quantization="nf4", model_shards=2),
        slow(remat="none", layers=8, model_shards=8),
        slow(remat="none"),
        slow(remat="none", quantization="nf4"),
        slow(remat="none", work=Work(1, 3, 2, 256)),
        slow(remat="none", lora=ALL_TARGETS),
        slow(remat="none", lora=MethodConfig(rank=8, dropout=0.05)),
        slow(remat="none", layers=8, quantization="int8"),
        slow(remat="dots", layers=8),
        slow(remat="dots", work=Work(1, 3, 2, 256)),
        slow(remat="dots", lora=ALL_TARGETS),
        slow(remat="full"),
        slow(remat="full", layers=8),
        slow(remat="full", lora=ALL_TARGETS),
        slow(remat="full", lora=MethodConfig(rank=8, dropout=0.05)),
        slow(remat="full", optimizer="sgd", lora=MethodConfig(rank=64, dropout=0.0)),
        slow(remat="full", config=dataclasses.replace(SMALL, vocabulary=8000)),
        slow(
            config=dataclasses.replace(SMALL, vocabulary=8000),
            compute=Compute(remat="full", attention="xla", head_rows=64),
        ),
    ],
)
def test_the_formula_agrees_with_the_compiled_program(case):
    formula, program = memory(stage_memory, **case), memory(compiled_memory, **case)
    assert 0.85 < formula.program / program.total < 1.2
    # Arguments are counted exactly but for a few numbers: rates, keys, weights of clients.
    weights = formula.embedding_and_head + formula.stage_layers + formula.message + formula.batches // 2
    assert 0 <= program.arguments - weights < 1000


def test_devices_that_hold_the_base_together_have_a_part_each():
    whole, parts = (memory(stage_memory, layers=3, quantization="nf4", model_shards=shards) for shards in (1, 4))
    kept = 4 * 256 + 3 * 2 * 4 * 256
    weights = whole.weights - whole.full_layers
    # Norms alone are not divided.
    assert parts.weights - parts.full_layers - kept == (weights - kept) / 4
    base = base_shapes(SMALL, dtype="float32", quantization="nf4")
    assert parts.loss_chunk - whole.loss_chunk == 4 * 256 * 1000
    assert parts.layer_workspace - whole.layer_workspace == message_bytes(base.blocks.gate) // SMALL.layers
    for name in ("message", "batches", "lora", "activations"):
        assert getattr(parts, name) == getattr(whole, name)
    client = memory(stage_memory, layers=3, quantization="nf4", model_shards=4, simulator=False)
    assert client.weights == weights


def test_a_program_of_more_shards_than_devices_cannot_be_compiled():
    with pytest.raises(InputError, match=r"model_shards 16 exceeds the 8 device\(s\) of this machine, on which --compile"):
        memory(compiled_memory, model_shards=16)


def test_backward_keeps_what_it_needs_and_nothing_that_is_given():
    x, w, v = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((5, 3), (3, 4), (4, 2)))
    # sin keeps its cosine [5, 4]; the product with the trained w keeps x [5, 3]; the frozen v is given.
    assert kept_for_backward(lambda x, w, v: jnp.sin(x @ w) @ v, x, w, v) == 4 * (5 * 4 + 5 * 3)


def test_remat_policies_keep_less_and_less_and_full_only_the_input():
    kept = [
        layer_kept(fedit(LORA), SMALL, Compute(remat=remat, attention="xla"), "none", 4, 128)
        for remat in ("none", "dots", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 4 * 4 * 128 * SMALL.width


def test_every_term_is_what_it_says():
    terms = memory(stage_memory, layers=3, quantization="nf4")
    base = base_shapes(SMALL, dtype="float32", quantization="nf4")
    trained = 4 * 2 * 3 * 8 * (256 + 256 + 256 + 128)
    assert terms.full_layers == message_bytes(base.blocks)
    assert terms.stage_layers == terms.full_layers // 3
    assert terms.embedding_and_head == 4 * (2 * 1000 * 256 + 256)
    assert (terms.lora, terms.gradients, terms.updates) == (trained, trained, 3 * trained)
    # Adam counts its steps besides.
    assert terms.moments == 2 * trained + 2 * 4
    assert terms.batches == 2 * 3 * 2 * 2 * 128 * 5
    assert terms.loss_chunk == 2 * 4 * 2 * 254 * 1000
    assert terms.total == sum(vars(terms).values()) - min(terms.layer_workspace, terms.loss_chunk)
    assert memory(stage_memory, optimizer="sgd").moments == 0


def test_a_fused_stage_may_be_kept_as_floats_and_the_full_model_is_never_fused():
    packed, floats = (
        memory(stage_memory, layers=3, quantization="int8", fused_precision=precision) for precision in ("packed", "float")
    )
    weights = sum(math.prod(SMALL.projection_shape(name)) for name in PROJECTIONS)
    assert floats.stage_layers == 4 * 3 * (weights + 2 * 256) > 3 * packed.stage_layers
    whole = memory(stage_memory, layers=9, quantization="int8", fused_precision="float")
    assert whole.full_layers == 0
    assert whole.stage_layers == packed.full_layers


@pytest.mark.parametrize("remat", ["none", "full"])
def test_on_a_clients_device_the_last_stage_is_end_to_end_training_and_earlier_ones_need_less(remat):
    seven = ARCHITECTURES["meta-llama/Llama-2-7b-hf"]
    compute = Compute(dtype="bfloat16", remat=remat, attention="xla")
    stages = [
        memory(
            stage_memory,
            config=seven,
            lora=MethodConfig(),
            compute=compute,
            work=Work(1, 10, 16, 512),
            layers=layers,
            quantization="nf4",
            simulator=False,
        )
        for layers in (4, 8, 16, 32)
    ]
    totals = [stage.total for stage in stages]
    assert totals == sorted(totals)
    assert all(stage.full_layers == 0 for stage in stages)
    # By arithmetic: 4.25 bits a weight give 3.44 GB of packed layers and 0.52 GB of embedding and head.
    assert stages[-1].stage_layers == pytest.approx(3.44e9, rel=0.01)
    assert stages[-1].embedding_and_head == pytest.approx(0.52e9, rel=0.01)
    assert stages[-1].lora + stages[-1].moments == pytest.approx(201e6, rel=0.01)


def test_memory_follows_the_clients_trained_at_once():
    one, four = (memory(stage_memory, work=dataclasses.replace(WORK, clients=clients)) for clients in (1, 4))
    for name in ("lora", "moments", "activations", "loss_chunk", "batches"):
        assert getattr(four, name) == 4 * getattr(one, name), name
    assert four.weights == one.weights


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak be forgotten")
def test_of_several_runs_in_a_process_each_has_its_own_peak():
    megabyte = 2**20
    earlier = np.ones(300 * megabyte, np.uint8)
    del earlier
    meter = MemoryMeter()
    later = np.ones(60 * megabyte, np.uint8)
    del later
    peak, source = meter.peak()
    assert 50 * megabyte < peak < 150 * megabyte
    assert source == "process resident set, rise over the run's start"


def test_a_peak_that_is_anothers_is_only_a_bound(monkeypatch):
    monkeypatch.setattr(measured, "_reset_peak", lambda: False)
    monkeypatch.setattr(measured, "_resident_bytes", lambda: (100, 900))
    meter = MemoryMeter()
    assert meter.peak() == (
        800,
        "process resident set, rise over the run's start, an upper bound: the process used more before the run",
    )
    monkeypatch.setattr(measured, "_resident_bytes", lambda: (100, 1000))
    assert meter.peak() == (900, "process resident set, rise over the run's start")


def test_a_devices_peak_is_the_runs_where_the_device_tells_it(monkeypatch):
    bytes_of = {"bytes_in_use": 10, "peak_bytes_in_use": 50}
    device = type("Device", (), {"memory_stats": lambda self: dict(bytes_of)})()
    monkeypatch.setattr(measured.jax, "local_devices", lambda: [device])
    meter = MemoryMeter()
    assert meter.peak() == (
        40,
        "device allocator, rise over the run's start, an upper bound: the process used more before the run",
    )
    bytes_of["peak_bytes_in_use"] = 70
    assert meter.peak() == (60, "device allocator, rise over the run's start")

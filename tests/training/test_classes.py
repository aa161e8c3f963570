"""Runs in which classes of clients hold different layers."""

import dataclasses

import numpy as np
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.errors import InputError
from devft_jax.federated.sampling import Purpose, uniform_draws
from devft_jax.planning.plan import PlanOptions
from devft_jax.planning.planner import make_plan
from devft_jax.planning.text import to_text
from devft_jax.reporting import Progress
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.parts import build_parts
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import CopiedInRound, adapter_bytes, flags

QUIET = Progress(quiet=True)
ROW = 4 * 4 * (16 + 16 + 16 + 8)
"""Bytes of a layer's factors of rank 4 on q and v of the tiny model."""


@pytest.fixture(scope="module")
def small(config):
    """A run of two rounds of all three clients, one at a time."""
    return dataclasses.replace(
        config, capacities=None, rounds=2, clients_per_round=3, devices=1, clients_per_step=1, checkpoint_every=1
    )


def trained(config, folder, **changes):
    return train(dataclasses.replace(config, out=str(folder), **changes), progress=QUIET)


def test_fedra_with_all_layers_is_the_plain_algorithm(small, tmp_path):
    """I29, bit for bit, through the command line: parameters, losses, bytes and operations."""
    plain = trained(small, tmp_path / "plain", growth="end-to-end")
    folder = tmp_path / "run"
    assert run_command(["run", *flags(small, growth="fedra", class_layers=(4,), out=str(folder))]) == 0
    assert adapter_bytes(folder) == adapter_bytes(plain.folder)
    rows = [RunFolder(each).metrics.read() for each in (folder, plain.folder)]
    for own, other in zip(*rows, strict=True):
        for name in ("loss", "bytes_up", "bytes_down", "train_flops", "adapter_norms", "clients", "tokens"):
            assert getattr(own, name) == getattr(other, name), name
        assert own.metrics["aggregation_error"] == other.metrics["aggregation_error"]
        assert own.classes == [0, 0, 0]
        assert own.metrics["layers_held"] == 4


def devices(folder, needs):
    """A fleet of which client_0 has half of the least memory, and the others what the classes need."""
    path = folder / "fleet.csv"
    memory = (needs[0] / 2, needs[0] * 1.001, needs[-1] * 1.001)
    lines = [f"client_{number},1e3,{each / 1e9:.12f},1e3,1e3,0,tier{number}" for number, each in enumerate(memory)]
    path.write_text("\n".join(["client,gflops,memory_gb,down_mbit,up_mbit,failure_rate,tier", *lines]))
    return str(path)


def test_devices_train_as_many_top_layers_as_they_hold(small, tmp_path):
    """LEGEND on a fleet: memory, bytes, operations and seconds of every class, in the run as in the plan."""
    options = {"growth": "legend", "class_layers": (1, 4), "lowest_rank_share": 0.25}
    config = dataclasses.replace(small, clients_per_round=2, **options)
    classes = build_parts(config, progress=QUIET).classes
    needs = [demand.memory for demand in classes.demands.demands(0)]
    assert needs[0] < needs[1]
    config = dataclasses.replace(config, fleet=devices(tmp_path, needs))
    plan = make_plan(config, PlanOptions(flops_per_second=1e12))
    run = train(dataclasses.replace(config, out=str(tmp_path / "run")), progress=QUIET)
    [stage] = run.summary.stages
    weak, strong = stage.classes
    # Ranks 1, 2, 3 and 4 from the lowest layer to the top.
    assert (weak.layers, weak.bare, weak.ranks, weak.message_up) == (1, 3, None, ROW)
    assert (strong.layers, strong.bare, strong.ranks, strong.message_up) == (4, 0, [1, 2, 3, 4], ROW * 10 // 4)
    assert [weak.clients, strong.clients] == [1, 1]
    assert stage.simulated.eligible == {"tier0": 0, "tier1": 1, "tier2": 1}
    assert stage.simulated.memory_bytes == weak.memory_bytes == needs[0]
    for row in run.history:
        assert (row.clients, row.classes) == ([1, 2], [0, 1])
        assert row.bytes_up == row.bytes_down == weak.message_up + strong.message_up
        # The lowest layers belong to one client only, and the other runs them without an adapter.
        assert row.metrics["layers_held"] == 4
        assert row.simulated.client_seconds[0] < row.simulated.client_seconds[1]
    [planned] = plan.stages
    assert [each.memory for each in planned.classes] == needs
    assert planned.bytes_up == sum(row.bytes_up for row in run.history)
    assert sum(row.train_flops for row in run.history) <= planned.train_flops
    assert plan.fleet.stages[0].eligible == stage.simulated.eligible
    text = to_text(plan)
    assert "classes of clients, each with its own layers" in text
    assert "1 client has too little memory for the weakest class" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_weak_clients_stay_at_an_earlier_stage_and_a_run_resumes(small, tmp_path):
    """DevFT by tier over two stages; a resumed run is the same bit for bit, with the weak class's old submodel."""
    options = {"growth": "devft", "capacities": (2, 4), "by_tier": True, "class_shares": (0.5, 0.5), "rounds": 3}
    options["stage_rounds"] = (1, 2)
    parts = build_parts(dataclasses.replace(small, **options), progress=QUIET)
    # Shares between the smallest draw and the others.
    draws = np.sort(uniform_draws(small.seed, Purpose.CLASSES, 0, parts.classes.ids, 1)[:, 0])
    weak = float(draws[:2].mean())
    config = dataclasses.replace(small, **{**options, "class_shares": (weak, 1 - weak)})
    copy = tmp_path / "copy"
    run = train(dataclasses.replace(config, out=str(tmp_path / "run")), progress=CopiedInRound(3, tmp_path / "run", copy))
    first, second = run.summary.stages
    assert [each.layers for each in first.classes] == [2, 2]
    assert [each.layers for each in second.classes] == [2, 4]
    assert [each.clients for each in second.classes] == [1, 2]
    # All receive the first submodel once; the second is the model itself.
    assert run.summary.bytes_stage == 3 * parts.classes.demands.submodel(0, 0) > 0
    resumed = train(dataclasses.replace(config, out=str(copy)), progress=QUIET)
    assert resumed.summary.resumed_after
    assert adapter_bytes(resumed.folder) == adapter_bytes(run.folder)
    with pytest.raises(InputError, match="hold different layers; only rounds in which all hold the same can be"):
        replay(run.folder, client="client_0", round=1, progress=QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "flora"}, "algorithm flora cannot be used where clients hold different layers: its server must"),
        ({"algorithm": "scaffold"}, "algorithm scaffold cannot be used where clients hold different layers: its server"),
        (
            {"channel": "int8"},
            "channel int8 cannot be used with growth fedra, whose clients hold different layers; leave it out.",
        ),
        (
            {"growth": "devft", "by_tier": True, "capacities": (2, 4), "class_layers": None, "stage_end": "gain"},
            "stage_end gain cannot be used with growth devft with by_tier, whose clients hold different layers; leave it",
        ),
        ({"class_shares": (0.5, 0.5)}, "class_shares 0.5,0.5 has 2 values for 3 classes of clients; give one for each."),
        ({"class_ranks": (2, 4, 8)}, "class_ranks 2,4,8 has a rank above rank 4; raise rank to the largest of them."),
        ({"class_layers": (2, 8)}, "class_layers 2,8 ends beyond the model's 4 layers: end at 4 or below."),
        ({"class_layers": (4, 2)}, "class_layers 4,2 does not ascend: give the weakest class first, such as 4,8,16."),
        ({"fleet": "phone", "aggregation": "buffered"}, "aggregation buffered cannot be used with growth fedra, whose"),
    ],
)
def test_what_classes_cannot_do_is_one_sentence(small, changes, message):
    with pytest.raises(InputError) as error:
        build_parts(dataclasses.replace(small, **{"growth": "fedra", **changes}), progress=QUIET)
    assert message in str(error.value)


def test_a_fleet_that_holds_no_class_and_a_deadline_that_none_can_meet(small, tmp_path):
    config = dataclasses.replace(small, growth="fedra", class_layers=(1, 4))
    needs = [demand.memory for demand in build_parts(config, progress=QUIET).classes.demands.demands(0)]
    few = dataclasses.replace(config, fleet=devices(tmp_path, [need * 1e-3 for need in needs]))
    with pytest.raises(InputError, match=r"no client can take part in stage 1, which needs .* by its least demanding class"):
        build_parts(few, progress=QUIET)
    hurried = dataclasses.replace(config, fleet=devices(tmp_path, needs), deadline=1e-9)
    with pytest.raises(InputError, match="deadline 1e-09: nobody can meet it in stage 1"):
        build_parts(hurried, progress=QUIET)


def test_a_clients_class_and_draws_do_not_depend_on_the_others(small):
    parts = build_parts(dataclasses.replace(small, growth="fedra"), progress=QUIET)
    classes, ids = parts.classes, parts.classes.ids
    fewer = dataclasses.replace(classes, of=classes.of[1:], ids=ids[1:])
    np.testing.assert_array_equal(classes.draws(np.array([1, 2]), 5), fewer.draws(np.array([0, 1]), 5))
    assert not np.array_equal(classes.draws(np.array([1]), 5), classes.draws(np.array([1]), 6))
    together = parts.classes.demands
    together = dataclasses.replace(together, config=dataclasses.replace(together.config, layer_draws="class"))
    drawn = dataclasses.replace(classes, demands=together, of=np.array([0, 0, 1])).draws(np.arange(3), 5)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])

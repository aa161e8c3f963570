"""Runs on a simulated fleet: who takes part, what is recorded, and that nothing else changes."""

import dataclasses
import json

import numpy as np
import pytest

from devft_jax.developmental import StageShape
from devft_jax.errors import InputError
from devft_jax.reporting import Progress
from devft_jax.training.needs import demand_of
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from tests.tiny_run import CopiedInRound, adapter_bytes

QUIET = Progress(quiet=True)
HEADER = "client,gflops,memory_gb,down_mbit,up_mbit,failure_rate,tier\n"
WILLING = HEADER + "".join(f"client_{number},1e6,1e6,1e6,1e6,0,server\n" for number in range(3))


def table(folder, text):
    path = folder / "fleet.csv"
    path.write_text(text)
    return str(path)


def trained(config, folder, **changes):
    return train(dataclasses.replace(config, out=str(folder), **changes), progress=QUIET)


def demands(config):
    """What every stage asks of a client."""
    parts = build_parts(config, progress=QUIET)
    shapes = parts.growth.shapes(parts.model.config.layers)
    return [demand_of(config, parts.training, shape) for shape in shapes]


def test_a_fleet_that_is_always_in_time_changes_nothing(finished, config, tmp_path):
    run = trained(config, tmp_path / "run", fleet=table(tmp_path, WILLING), deadline=1e6)
    assert adapter_bytes(run.folder) == adapter_bytes(finished.folder)
    clock = 0.0
    for row, without in zip(run.history, finished.history, strict=True):
        assert (row.clients, row.loss, row.bytes_down) == (without.clients, without.loss, without.bytes_down)
        assert without.simulated is None
        assert row.simulated.selected == row.clients
        assert row.simulated.lost == 0
        assert row.simulated.seconds == pytest.approx(max(row.simulated.client_seconds), rel=1e-5)
        clock += row.simulated.seconds
        assert row.simulated.clock == pytest.approx(clock)
    assert run.summary.fleet.seconds == run.history[-1].simulated.clock
    assert run.summary.fleet.tiers == {"server": 3}
    assert "fleet" not in json.loads((finished.folder / "summary.json").read_text())
    assert all(stage.simulated is None for stage in finished.summary.stages)


def test_devices_join_the_stages_that_fit(config, tmp_path):
    needs = [need.memory for need in demands(config)]
    assert needs[0] < needs[-1]
    middle = (needs[0] + needs[-1]) / 2e9
    small = f"client_1,1e6,{middle},1e6,1e6,0,small\n"
    fleet = table(tmp_path, WILLING.replace("client_1,1e6,1e6,1e6,1e6,0,server\n", small))
    run = trained(config, tmp_path / "run", fleet=fleet, clients_per_round=3)
    fits = [need / 1e9 <= middle for need in needs]
    assert [stage.simulated.eligible["small"] for stage in run.summary.stages] == [int(each) for each in fits]
    assert [stage.simulated.memory_bytes for stage in run.summary.stages] == needs
    for row in run.history:
        assert (1 in row.clients) == fits[row.stage]
        assert row.simulated.eligible == 2 + fits[row.stage]


def slow_fleet(config, folder):
    """client_0 is a thousand times slower than the others, and the seconds of its steps at full depth."""
    need = demands(config)[-1]
    flops = float(need.example_flops(np.array([16]))[0]) * config.batch_size
    text = WILLING.replace("client_0,1e6", f"client_0,{flops / 1e9}")
    return table(folder, text)


def test_late_clients_are_left_out_or_do_less(two_stages, tmp_path):
    config = dataclasses.replace(two_stages, clients_per_round=3, capacities=(4,), rounds=2)
    fleet = slow_fleet(config, tmp_path)
    alone = trained(config, tmp_path / "all", fleet=fleet)
    ends = alone.history[0].simulated.client_seconds
    assert ends[0] == max(ends)
    deadline = ends[0] * 0.75
    dropped = trained(config, tmp_path / "dropped", fleet=fleet, deadline=deadline)
    row = dropped.history[0]
    assert row.clients == [1, 2]
    assert row.simulated.late == [0]
    assert row.simulated.seconds == deadline
    assert row.bytes_down == alone.history[0].bytes_down
    assert row.bytes_up == alone.history[0].bytes_up * 2 // 3
    partial = trained(config, tmp_path / "partial", fleet=fleet, deadline=deadline, late_work="partial")
    row = partial.history[0]
    assert row.clients == [0, 1, 2]
    assert row.simulated.steps == [1, 2, 2]
    assert row.simulated.seconds <= deadline
    assert np.isfinite(row.loss)
    assert adapter_bytes(partial.folder) != adapter_bytes(alone.folder) != adapter_bytes(dropped.folder)


def test_a_resumed_run_has_the_same_fleet_and_clock(two_stages, tmp_path):
    config = dataclasses.replace(two_stages, fleet="phone=1,workstation=1", over_selection=1.5)
    folder, copy = tmp_path / "run", tmp_path / "copy"
    config = dataclasses.replace(config, out=str(folder))
    whole = train(config, progress=CopiedInRound(3, folder, copy))
    again = trained(config, copy)
    assert again.history[-1].simulated == whole.history[-1].simulated
    assert again.summary.fleet == whole.summary.fleet
    assert adapter_bytes(copy) == adapter_bytes(folder)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (
            HEADER + "client_0,1,1,1,1,0,a\n",
            {},
            r"no line for the client 'client_1' of the data \(2 clients are missing\); add one",
        ),
        (WILLING + "client_3,x,1,1,1,0,a\n", {}, r"fleet.csv:5: gflops has 'x', which is not a number"),
        (WILLING, {"deadline": 1e-12}, r"deadline 1e-12: nobody can meet it in stage 1, where the fastest client 'client_"),
        (WILLING.replace(",1e6,1e6,1e6,1e6", ",1e6,1e-6,1e6,1e6"), {}, "no client can take part in stage 1, which needs"),
        (WILLING, {"algorithm": "central"}, "fleet .* has no effect with central, which has no clients"),
    ],
)
def test_a_fleet_that_cannot_run_is_refused_before_anything_is_compiled(config, tmp_path, text, changes, message):
    with pytest.raises(InputError, match=message):
        trained(config, tmp_path / "run", fleet=table(tmp_path, text), **changes)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tier_that_fits_no_stage_is_reported(config, tmp_path, capsys):
    text = WILLING.replace("client_2,1e6,1e6,1e6,1e6,0,server", "client_2,1e6,1e-6,1e6,1e6,0,watch")
    build_parts(dataclasses.replace(config, fleet=table(tmp_path, text)), progress=Progress())
    assert "the tier watch (1 client, at most" in capsys.readouterr().err


def test_the_demand_of_a_stage_is_that_of_its_shape(config):
    shallow, *_, full = demands(config)
    assert shallow.memory < full.memory
    assert shallow.down < full.down
    parts = build_parts(config, progress=QUIET)
    again = demand_of(config, parts.training, StageShape(1, 1))
    assert again.up == shallow.up


def buffered(config, folder, **changes):
    """A configuration in which client_2 takes much longer than the others."""
    text = WILLING
    for client, gflops in (("client_0", "4e-2"), ("client_1", "2e-2"), ("client_2", "1e-3")):
        text = text.replace(f"{client},1e6", f"{client},{gflops}")
    fleet = table(folder, text)
    return dataclasses.replace(config, fleet=fleet, aggregation="buffered", concurrency=3, clients_per_round=1, **changes)


def test_a_buffered_run_has_old_changes_and_resumes_with_the_same(two_stages, tmp_path):
    folder, copy = tmp_path / "run", tmp_path / "copy"
    config = buffered(two_stages, tmp_path, capacities=(4,), rounds=7, checkpoint_every=2, out=str(folder))
    whole = train(config, progress=CopiedInRound(5, folder, copy))
    rows = whole.history
    assert all(len(row.clients) == 1 and len(row.simulated.staleness) == 1 for row in rows)
    assert any(row.simulated.staleness[0] for row in rows)
    assert [row.simulated.clock for row in rows] == sorted(row.simulated.clock for row in rows)
    assert np.isfinite([row.loss for row in rows]).all()
    assert whole.summary.fleet.flights is None
    again = trained(config, copy)
    assert [row.simulated for row in again.history] == [row.simulated for row in rows]
    assert adapter_bytes(copy) == adapter_bytes(folder)


def test_clients_are_sent_home_at_the_end_of_a_stage(two_stages, tmp_path):
    run = trained(buffered(two_stages, tmp_path), tmp_path / "run")
    for stage in run.summary.stages:
        assert stage.simulated.selected == stage.rounds + stage.simulated.surplus
        assert stage.simulated.surplus > 0


@pytest.mark.parametrize("changes", [{"algorithm": "scaffold"}, {"algorithm": "flora"}, {"channel": "int8"}])
def test_a_buffer_needs_plain_changes(two_stages, tmp_path, changes):
    with pytest.raises(InputError, match=r"aggregation buffered has no use with .*: the server must take a mean"):
        trained(buffered(two_stages, tmp_path, **changes), tmp_path / "run")

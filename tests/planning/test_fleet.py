"""Plans of runs on a fleet: who can take part is what a run finds, and simulated times bound its own from above."""

import dataclasses
import json

import pytest

from devft_jax.config.presets import preset
from devft_jax.planning.plan import PlanOptions, to_plain
from devft_jax.planning.planner import make_plan
from devft_jax.planning.text import to_text
from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)
OPTIONS = PlanOptions(flops_per_second=1e12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, word_tokenizer):
    folder = tmp_path_factory.mktemp("fleet")
    table = folder / "fleet.csv"
    table.write_text(
        "client,gflops,memory_gb,down_mbit,up_mbit,tier\n"
        "client_0,1,1,1,1,pi\nclient_1,10,4,10,5,laptop\nclient_2,1e-3,4,10,5,laptop\n"
    )
    return dataclasses.replace(write_run_inputs(folder, word_tokenizer), fleet=str(table))


def test_a_run_finds_the_planned_clients_in_no_more_than_the_planned_time(tiny, tmp_path):
    plan = make_plan(tiny, OPTIONS)
    run = train(dataclasses.replace(tiny, out=str(tmp_path / "run")), progress=QUIET)
    assert plan.fleet.tiers == run.summary.fleet.tiers
    for planned, stage in zip(plan.fleet.stages, run.summary.stages, strict=True):
        assert planned.memory == stage.simulated.memory_bytes
        assert planned.eligible == stage.simulated.eligible
        assert stage.simulated.seconds <= planned.seconds * (1 + 1e-9)
        assert planned.lost == 0
    assert run.summary.fleet.seconds <= plan.fleet.seconds * (1 + 1e-9)
    assert plan.fleet.stages[0].memory < plan.fleet.end_to_end.memory


def test_devices_that_join_early_stages_and_no_end_to_end_training(tmp_path):
    config = preset("paper-llama2-7b")
    known = make_plan(dataclasses.replace(config, fleet="workstation"), OPTIONS).fleet
    between = (known.stages[0].memory + known.end_to_end.memory) / 2e9
    table = tmp_path / "fleet.csv"
    lines = [f"client-{number},1000,{between},100,10,tablet" for number in range(config.clients)]
    table.write_text("\n".join(["client,gflops,memory_gb,down_mbit,up_mbit,tier", *lines]))
    plan = make_plan(dataclasses.replace(config, fleet=str(table)), OPTIONS)
    assert plan.fleet.stages[0].eligible == {"tablet": config.clients}
    assert plan.fleet.end_to_end.eligible == {"tablet": 0}
    assert plan.fleet.stages[0].round_seconds > 0
    assert plan.fleet.end_to_end.round_seconds is plan.fleet.seconds is None
    text = to_text(plan)
    assert f"the fleet fleet.csv of {config.clients} clients, in simulated time; the server waits for all" in text
    assert "nobody fits" in text
    assert max(map(len, text.splitlines())) <= 120
    plain = json.loads(json.dumps(to_plain(plan)))
    assert plain["fleet"]["stages"][0]["eligible"] == {"tablet": config.clients}


def test_a_plan_without_a_fleet_says_nothing_of_one():
    plan = make_plan(preset("demo"), OPTIONS)
    assert plan.fleet is None
    assert "simulated" not in to_text(plan)
    assert "fleet" not in to_plain(plan)

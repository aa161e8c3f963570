"""Records of a run made up from figures."""

from devft_jax.storage.records import (
    CheckpointRecord,
    CompiledAheadRecord,
    EnergyRecord,
    RoundRecord,
    RunRecord,
    RunTotals,
    SecondsRecord,
    StageRecord,
)
from devft_jax.storage.result_records import ScoreRecord
from devft_jax.storage.split_record import ClientRecord, SplitRecord

SECONDS = SecondsRecord(train=1.0, compile=2.0, build=3.0, evaluate=4.0)


def score_record(**changes):
    values = {"task": "own", "metric": "acc", "value": 0.5, "standard_error": 0.25, "items": 5, "shots": 0}
    return ScoreRecord(**(values | changes))


def stage_record(**changes):
    values = {
        "layers": 2,
        "depth": 2,
        "trained": None,
        "assign": [0, 1, 1, -1],
        "group_sizes": [1, 2],
        "anchor_coefficients": [1.0, 0.9],
        "transition_gap": 0.5,
        "similarity": [[1.0, 0.5], [0.5, 1.0]],
        "spectrum": None,
        "planned_rounds": 3,
        "submodel_bytes": 8,
        "cached_layers": 0,
    }
    return StageRecord(**(values | changes))


def round_record(**changes):
    values = dict.fromkeys(("stage", "bytes_up", "bytes_down", "bytes_missed", "train_flops", "program_bytes", "dropped"), 0)
    values |= {"round": 1, "layers": 2, "loss": 1.5, "learning_rate": 0.1, "metrics": {"update_norm": 2.0, "odd": None}}
    values |= {"client_update_norm": 1.0, "tokens": 8, "seconds": 2.0, "tokens_per_second": 4.0}
    return RoundRecord(**(values | {"adapter_norms": [0.5, None], "clients": [0, 2]} | changes))


def run_record(**changes):
    numbers = ("held_out_examples", "rounds", "lengthened_after", "programs_compiled", "bytes_up", "bytes_down")
    numbers += ("bytes_stage", "bytes_missed", "base_bytes", "train_flops", "peak_memory_bytes", "scratch_bytes")
    numbers += ("updates_dropped", "clients", "devices", "clients_per_step")
    unknown = ("final_loss", "base_loss", "accuracy", "base_accuracy", "personal", "progress_lost", "block_influence")
    values = dict.fromkeys(numbers, 1) | dict.fromkeys(unknown)
    values |= {
        "personal_models": False,
        "stage_rounds": [3],
        "resumed_after": [],
        "seconds": SecondsRecord(train=1.0, compile=2.0, build=3.0, evaluate=4.0),
    }
    values |= {"compiled_ahead": CompiledAheadRecord(programs=0, seconds=0, unused=0), "message_dtype": "float32"}
    values |= {"energy": EnergyRecord(kwh=1.0, kgco2e=0.5, grid_kgco2e_per_kwh=0.5, source="rapl")}
    return RunRecord(
        **(values | {"peak_memory_source": "x", "versions": {"jax": "1"}, "stages": [stage_record()]} | changes)
    )


def run_totals(**changes):
    values = {"stage_rounds": [3], "clients_per_step": 1, "devices": 1, "model_shards": 1, "data": "d", "base": "b"}
    return RunTotals(**(values | changes))


def checkpoint_record(**changes):
    values = {"totals": run_totals(stages=[stage_record()]), "round": 1, "stage": 0, "rounds_in_stage": 1}
    return CheckpointRecord(**(values | {"groups": 2, "bare": 0} | changes))


def split_record(*names, **changes):
    """The split over clients of these names."""
    clients = [ClientRecord(name=name, id=index, examples=5, tokens=50, groups={}) for index, name in enumerate(names)]
    values = {"partition": "iid", "template": "alpaca", "examples": 5 * len(names), "tokens": 50 * len(names)}
    return SplitRecord(**(values | {"grouped_by": None, "groups": {}, "clients": clients} | changes))

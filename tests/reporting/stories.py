"""Run folders written without a run: records of any shape, as `devft run` leaves them."""

import json
from pathlib import Path

import numpy as np

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import geometric_schedule
from devft_jax.storage.records import CompiledAheadRecord, SecondsRecord
from tests import run_records

VERSIONS = {"devft_jax": "1", "jax": "2", "jaxlib": "3", "python": "4", "system": "Linux", "device": "cpu, cpu"}


def assigned(depth, layers, generator):
    """Groups of any layers, numbered in order of their first."""
    if layers == depth:
        return list(range(depth))
    groups = np.concatenate([np.arange(layers), generator.integers(0, layers, depth - layers)])
    generator.shuffle(groups)
    numbers = {group: index for index, group in enumerate(dict.fromkeys(groups.tolist()))}
    return [numbers[group] for group in groups.tolist()]


def stage_record(depth, layers, generator, *, held_out=True, finished=True):
    """What a stage change and a stage leave."""
    full = layers == depth
    assign = assigned(depth, layers, generator)
    sizes = [assign.count(group) for group in range(layers)]
    similarity = generator.uniform(0.02, 0.07, (depth, depth)) + np.eye(depth)
    loss = (lambda: float(generator.uniform(1, 5))) if held_out else (lambda: None)
    record = run_records.stage_record(
        layers=layers,
        depth=layers,
        assign=assign,
        group_sizes=sizes,
        anchor_coefficients=None if full else [1 - 0.1 * (size - 1) for size in sizes],
        transition_gap=0.0 if full else 12.5,
        similarity=None if full else np.round(similarity, 5).tolist(),
        spectrum=None if full else np.round(np.sort(generator.uniform(0, 2, depth)), 5).tolist(),
        loss_start=loss(),
    )
    if finished:
        record.loss_end, record.loss_full_after_transfer = loss(), loss()
        record.accuracy_full_after_transfer = 0.25 if held_out else None
    return record


def write_story(
    folder: Path,
    *,
    depth=8,
    depths=None,
    rounds=12,
    planned=None,
    clients=5,
    names="client-{}",
    held_out=True,
    evaluate_every=1,
    resumed=(),
    seed=0,
    **config,
):
    """A run's folder with this many rounds in equal stages; `planned` beyond `rounds` leaves it unfinished."""
    generator = np.random.default_rng(seed)
    depths = geometric_schedule(depth, max(1, depth // 8), 2) if depths is None else depths
    planned = planned or rounds
    each = planned // len(depths)
    stage_rounds = [each] * (len(depths) - 1) + [planned - each * (len(depths) - 1)]
    ends = np.cumsum(stage_rounds)
    rows, stages = [], []
    for number in range(1, rounds + 1):
        stage = int(np.searchsorted(ends, number))
        if stage == len(stages):
            done = ends[stage] <= rounds
            stages.append(stage_record(depth, depths[stage], generator, held_out=held_out, finished=done))
        layers = depths[stage]
        row = run_records.round_record(
            round=number,
            stage=stage,
            layers=layers,
            loss=4 / number,
            learning_rate=None,
            seconds=0.1 * layers,
            bytes_up=100 * layers,
            bytes_down=100 * layers,
            train_flops=10**9 * layers,
            tokens=1000,
            program_bytes=10**6 * (layers + 1),
            adapter_norms=generator.uniform(0, 3, layers).tolist(),
            clients=sorted(generator.choice(clients, min(2, clients), replace=False).tolist()),
        )
        if held_out and evaluate_every and number % evaluate_every == 0 and number != ends[stage]:
            row.held_out_loss, row.held_out_accuracy = 3 / number, 0.1
        rows.append(row)
    record = run_records.run_record(
        final_loss=stages[-1].loss_full_after_transfer,
        base_loss=5.5 if held_out else None,
        base_accuracy=0.0 if held_out else None,
        held_out_examples=40 if held_out else 0,
        rounds=rounds,
        clients=clients,
        stage_rounds=stage_rounds,
        lengthened_after=0,
        resumed_after=list(resumed),
        seconds=SecondsRecord(train=9.0, compile=2.0, build=1.0, evaluate=3.0),
        compiled_ahead=CompiledAheadRecord(programs=3, seconds=4.0, unused=1),
        bytes_stage=1000 if len(depths) > 1 else 0,
        energy=None,
        peak_memory_bytes=10**9,
        peak_memory_source="process peak resident set",
        updates_dropped=0,
        versions=VERSIONS,
        stages=stages,
    )
    counts = generator.integers(1, 9, (clients, 3))
    members = [
        {
            "name": names.format(index),
            "id": index,
            "examples": int(row.sum()),
            "tokens": int(row.sum()) * 10,
            "groups": {f"kind {kind}": int(count) for kind, count in enumerate(row)},
        }
        for index, row in enumerate(counts)
    ]
    totals = {f"kind {kind}": int(count) for kind, count in enumerate(counts.sum(axis=0))}
    split = {"partition": "dirichlet", "template": "alpaca", "examples": int(counts.sum()), "tokens": 10}
    split |= {"grouped_by": "category", "groups": totals, "clients": members}
    objects = config.pop("objects", None)
    chosen = to_plain(RunConfig(rounds=planned, out=str(folder), **config))
    folder.mkdir(exist_ok=True)
    files = {"config.json": chosen | ({"objects": objects} if objects else {}), "split.json": split}
    files["summary.json" if planned == rounds else "record.json"] = record.to_plain()
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row.to_plain()) + "\n" for row in rows))
    return folder

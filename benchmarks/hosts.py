"""Rounds that several processes train together: large populations, and processes beside devices.

    python benchmarks/hosts.py --out results/hosts
    python benchmarks/hosts.py --out build/hosts --size tiny       # a trial of the command itself

    population   SCAFFOLD, whose clients keep rows, with cohorts from 10,000 and from 1,000,000 clients, in one process and
                 in two: memory of a process, seconds of a round and of a client, rows
    scaling      FedIT's rounds in 1 process with 1 device, 1 process with 2 devices, and 2 processes with 1 device each,
                 started in turn

The processes are on this machine, joined through loopback. The clients' examples are random tokens of a small pool, so that
a large population costs what its clients cost. Written to --out: results.json and results.md.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import paired_ratio
from tables import markdown, shown

PARTS = ("population", "scaling")
# Vocabulary, width, feed_forward, layers, heads, kv_heads, head_size.
TINY = (128, 32, 88, 2, 4, 2, 8)
SMALL = (768, 128, 352, 4, 4, 4, 32)
POOL = 4096
LAYOUTS = (("1 process, 1 device", 1, 1), ("1 process, 2 devices", 1, 2), ("2 processes, 1 device each", 2, 1))


def population_cases(full: bool) -> list[dict[str, Any]]:
    """Cohorts from a small and a large population, by one process and by two."""
    sizes, cohort = ((10_000, 1_000_000), 4096) if full else ((20, 200), 8)
    work = {"shape": TINY, "algorithm": "scaffold", "cohort": cohort, "steps": 2, "batch": 2, "length": 16, "rank": 4}
    return [
        {**work, "rounds": 6 if full else 2, "clients": size, "processes": count, "devices": 1}
        for size in sizes
        for count in (1, 2)
    ]


def scaling_case(full: bool, processes: int, devices: int) -> dict[str, Any]:
    """The same rounds in one of the layouts."""
    size = {"clients": 32, "cohort": 32, "steps": 10} if full else {"clients": 4, "cohort": 4, "steps": 1}
    work = {"shape": SMALL if full else TINY, "algorithm": "fedit", "batch": 4, "length": 64 if full else 8, "rank": 8}
    return {**work, **size, "rounds": 6 if full else 2, "processes": processes, "devices": devices}


# ---------------------------------------------------------------------------------------------------
# In a process that trains


def federated_data(case: dict[str, Any]) -> Any:
    """Clients that share a pool of full rows of random tokens."""
    import numpy as np

    from devft_jax.data import Client, Examples, FederatedData

    rows = np.random.default_rng(0).integers(0, case["shape"][0], (POOL, case["length"])).astype(np.int32)
    lengths = np.full(POOL, case["length"], np.int64)
    examples = Examples.of_rows(rows, lengths=lengths, prompt_lengths=np.ones(POOL, np.int32))
    each = case["steps"] * case["batch"]
    held = [np.arange(first, first + each) for first in range(0, POOL - each, each)]
    clients = tuple(Client(f"client-{index}", index, held[index % len(held)]) for index in range(case["clients"]))
    return FederatedData(examples, clients, "iid", None, "completion")


def trained(case: dict[str, Any], out: str) -> dict[str, Any]:
    """Rounds of a case in this process, or in this one of several."""
    from devft_jax.commands.jax_setup import configure_jax

    # Before JAX starts its threads.
    os.sched_setaffinity(0, case["cores"])
    # As many devices as the case has, whatever the machine has.
    os.sched_getaffinity = lambda process: set(range(case["devices"]))  # type: ignore[attr-defined]
    configure_jax()
    from devft_jax.runtime.joining import asked_for, join
    from devft_jax.runtime.options import HostOptions

    join(asked_for(HostOptions()))
    import jax

    import devft_jax
    from devft_jax import RunConfig
    from devft_jax.models import Model, ModelConfig, init_base
    from devft_jax.reporting import Progress

    names = ("vocabulary", "width", "feed_forward", "layers", "heads", "kv_heads", "head_size")
    shape: dict[str, Any] = dict(zip(names, case["shape"], strict=True))
    config = ModelConfig(**shape, max_length=64)
    options = RunConfig(
        algorithm=case["algorithm"],
        growth="end-to-end",
        rounds=case["rounds"],
        clients=case["clients"],
        clients_per_round=case["cohort"],
        local_steps=case["steps"],
        batch_size=case["batch"],
        max_length=case["length"],
        rank=case["rank"],
        alpha=2.0 * case["rank"],
        dropout=0.0,
        devices=case["devices"],
        weighting="uniform",
        checkpoint_every=case["rounds"],
        out=out,
    )
    began = time.perf_counter()
    model = Model(config, init_base(jax.random.key(0), config))
    data = federated_data(case)
    built = time.perf_counter() - began
    before = resident()
    run = devft_jax.train(options, model=model, data=data, progress=Progress(quiet=True))
    return {
        "seconds": [row.seconds for row in run.history],
        "loss": run.history[-1].loss,
        "building": built,
        "all": time.perf_counter() - began,
        "before": before,
        "peak": resident(),
    }


def resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------------------------------------------
# Around the processes


def cores_of(case: dict[str, Any], process: int) -> list[int]:
    """The cores of a process: its own, one for each of its devices, as hosts have their own; all if there are too few."""
    known = sorted(os.sched_getaffinity(0))
    each = case["devices"]
    return known[process * each :][:each] if case["processes"] * each <= len(known) else known


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """A case in processes of its own: what each of them measured, and the bytes of the clients' rows in the checkpoint.

    Raises:
      SystemExit: one of them failed.
    """
    with socket.socket() as held, tempfile.TemporaryDirectory() as folder:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        held.close()
        started = []
        for index in range(case["processes"]):
            own = {**os.environ, "JAX_PLATFORMS": "cpu", "DEVFT_CACHE": f"{folder}/cache"}
            if case["processes"] > 1:
                own |= {"DEVFT_HOSTS": f"127.0.0.1:{port}", "DEVFT_PROCESSES": str(case["processes"])}
                own |= {"DEVFT_PROCESS": str(index)}
            one = {**case, "cores": cores_of(case, index)}
            command = [sys.executable, __file__, "--case", json.dumps(one), "--out", f"{folder}/run"]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=own))
        answers = [process.communicate() for process in started]
        if any(process.returncode for process in started):
            raise SystemExit(f"error: {case} failed.\n" + "\n".join(said for _, said in answers))
        found = [json.loads(text.splitlines()[-1]) for text, _ in answers]
        rows = sum(file.stat().st_size for file in Path(folder, "run").rglob("*.safetensors") if "adapter" not in file.parts)
    return {"case": case, "of_processes": found, "stored_rows": rows}


def steady(found: dict[str, Any]) -> list[float]:
    """Seconds of the rounds after the first, by process 0."""
    return found["of_processes"][0]["seconds"][1:]


def population_table(cases: list[dict[str, Any]]) -> str:
    """Memory, time and rows by population and processes, and how a client's time at the largest compares."""
    rows, each = [], {}
    for found in cases:
        case, of = found["case"], found["of_processes"]
        median = statistics.median(steady(found))
        each[case["processes"], case["clients"]] = median / case["cohort"]
        rows.append(
            [
                f"{case['clients']:,}",
                str(case["processes"]),
                f"{median:.2f} ({min(steady(found)):.2f} to {max(steady(found)):.2f})",
                f"{1000 * median / case['cohort']:.3f}",
                " and ".join(f"{one['peak'] / 1e6:,.0f}" for one in of),
                " and ".join(f"{one['before'] / 1e6:,.0f}" for one in of),
                f"{found['stored_rows'] / 1e6:,.1f}",
                f"{of[0]['all']:.0f}",
            ]
        )
    head = ["clients", "processes", "s a round (range)", "ms a client", "peak MB of each process"]
    head += ["of it before training", "MB of rows in the checkpoint", "s in all"]
    text = markdown(head, rows)
    for count in sorted({processes for processes, _ in each}):
        sizes = sorted(clients for processes, clients in each if processes == count)
        ratio = each[count, sizes[-1]] / each[count, sizes[0]]
        text += f"\n\n{count} process(es): a client of {sizes[-1]:,} takes {ratio:.2f} times as long as one of {sizes[0]:,}."
    return text


def scaling_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Seconds of a round by layout, and the ratios to one process with two devices, paired by repetition."""
    medians = {name: [statistics.median(steady(found)) for found in runs[name]] for name in runs}
    reference = LAYOUTS[1][0]
    rows = []
    for name, found in medians.items():
        ratio = paired_ratio(found, medians[reference])
        rows.append([name, f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})", shown(ratio, 3)])
    return markdown(["layout", "s a round (range of runs)", f"by {reference}"], rows)


def report(results: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = ["# Several processes"]
    if results.get("population"):
        parts += ["## Populations", population_table(results["population"])]
    if results.get("scaling"):
        parts += ["## Processes and devices", scaling_table(results["scaling"])]
    return "\n\n".join(parts) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json and results.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured; by default all")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny tries the command itself")
    parser.add_argument("--repeat", type=int, default=5, help="runs of every layout of the part scaling (default: 5)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure what is requested; results are written after every case."""
    options = parse()
    if options.case is not None:
        print(json.dumps(trained(json.loads(options.case), str(options.out))))
        return
    if options.repeat < 1:
        raise SystemExit("error: --repeat must be 1 or more.")
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}

    def keep() -> None:
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "results.md").write_text(report(results))

    if "population" in options.parts:
        for case in population_cases(options.size == "full"):
            print(f"{case['clients']:,} clients, {case['processes']} process(es) ...", file=sys.stderr, flush=True)
            results.setdefault("population", []).append(run_case(case))
            keep()
    if "scaling" in options.parts:
        for repetition in range(options.repeat):
            for name, processes, devices in LAYOUTS:
                print(f"run {repetition + 1} of {options.repeat}: {name} ...", file=sys.stderr, flush=True)
                found = run_case(scaling_case(options.size == "full", processes, devices))
                results.setdefault("scaling", {}).setdefault(name, []).append(found)
            keep()
    print(report(results))


if __name__ == "__main__":
    main()

"""Starts a command as several processes on loopback, and compares the folders that runs have written."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np

from tests.tiny_run import adapter_bytes, flags

CORES = "import os; os.sched_getaffinity = lambda process: {0, 1, 2, 3}"
"""A process then has four devices to choose from, however many cores the machine has."""
MAIN = f"{CORES}\nfrom devft_jax.commands.cli import main; main()"
SEVERAL_RUNS = f"""
{CORES}
import json, sys
from devft_jax.commands.jax_setup import configure_jax
configure_jax()
from devft_jax.runtime.joining import asked_for, join
from devft_jax.runtime.options import HostOptions
join(asked_for(HostOptions()))
from devft_jax.commands.run import parse_run
from devft_jax.training.run import train
for words in json.loads(sys.argv[-1]):
    train(parse_run(words))
"""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def start(config, folder, count, *, scripts=None, own=None, more=(), patience=120):
    """The run as `count` processes, which wait for each other for `patience` seconds; `scripts` replaces what some of them
    run, and `own` adds words to their commands."""
    port, started = free_port(), []
    for index in range(count):
        words = ["run", *flags(config, out=str(folder)), "--hosts-timeout", str(patience)]
        words += [*more, *(own or {}).get(index, ())]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "DEVFT_HOSTS": f"127.0.0.1:{port}",
            "DEVFT_PROCESSES": str(count),
            "DEVFT_PROCESS": str(index),
        }
        code = (scripts or {}).get(index, MAIN)
        command, pipe = [sys.executable, "-c", code, *words], subprocess.PIPE
        started.append(subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, env=environment))
    return started


def together_in_turn(configs, folders, count):
    """Several runs one after the other in the same processes, which saves starting them."""
    words = [flags(config, out=str(folder)) for config, folder in zip(configs, folders, strict=True)]
    scripts = dict.fromkeys(range(count), SEVERAL_RUNS)
    return together(configs[0], folders[0], count, scripts=scripts, more=[json.dumps(words)])


def finish(started, seconds=240):
    """The exit codes and what the processes said, after all have ended."""
    deadline, found = time.monotonic() + seconds, []
    try:
        for process in started:
            _, said = process.communicate(timeout=max(1, deadline - time.monotonic()))
            found.append((process.returncode, said))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    return found


def together(config, folder, count, **changes):
    """Run to the end as several processes."""
    found = finish(start(config, folder, count, **changes))
    for code, said in found:
        assert code == 0, "\n".join(said for _, said in found)
    return [said for _, said in found]


TIMES = {"seconds", "tokens_per_second", "program_bytes", "energy", "joules"}


def assert_equal_runs(folder, other, *, adapters=True):
    """Two folders hold the same results, bit for bit: adapter, losses, norms, bytes, and what the checkpoint holds."""
    if adapters:
        assert adapter_bytes(folder) == adapter_bytes(other)
    lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (folder, other)]
    assert len(lines[0]) == len(lines[1])
    for mine, theirs in zip(*lines, strict=True):
        mine, theirs = json.loads(mine), json.loads(theirs)
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - TIMES:
            assert mine[name] == theirs[name], name
    mine, theirs = (json.loads((each / "summary.json").read_text()) for each in (folder, other))
    for name in ("base_loss", "final_loss", "accuracy", "bytes_up", "bytes_down", "bytes_stage", "train_flops", "devices"):
        assert mine[name] == theirs[name], name
    assert [each["assign"] for each in mine["stages"]] == [each["assign"] for each in theirs["stages"]]


def rows_of(folder, round_index):
    """What clients keep at a checkpoint, by client, of one process or several."""
    from safetensors.numpy import load_file

    files = sorted((folder / "checkpoints" / str(round_index) / "rows").glob("*.safetensors"))
    found = {}
    for file in files or [folder / "bank" / f"round_{round_index}.safetensors"]:
        held = load_file(file)
        for part in ("full", "stage"):
            for place, client in enumerate(held[f"{part}.positions"].tolist()):
                for name in held:
                    if name.startswith(f"{part}.") and name != f"{part}.positions":
                        key = (part, name, client)
                        assert key not in found, "two processes hold the same client"
                        found[key] = np.asarray(held[name][place])
    return found

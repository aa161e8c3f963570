"""Every measurement that needs an accelerator, in one command: JSON and Markdown tables.

    python benchmarks/accelerator.py --out results/accelerator
    python benchmarks/accelerator.py --out results/accelerator --parts llama peft     # some of it
    python benchmarks/accelerator.py --out build/accelerator --size tiny --platform cpu   # a trial of the command itself

    rate      the card's rate of matrix products, by which training is judged
    llama     rounds of LLaMA2-7B's shape with random weights in the paper's stages, in bfloat16 and packed as NF4
    peft      the same rounds at full depth by PyTorch and PEFT
    cohorts   the tiny and the small work with 8 to 4,096 clients a round
    smollm2   rounds of SmolLM2-135M's shape, or of its weights with --smollm2 FOLDER
    first     seconds from the start of a process to the end of its first round, without and with a cache of programs

Each measurement is a process of its own, so that its peak memory is its own and a failure ends nothing else. Results are
written after each one; the same command leaves out those that are there, so it can be run in several sittings (`--minutes`).
Needed are this package and, for `peft`, torch and peft; no data set and no network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = ("rate", "llama", "peft", "cohorts", "smollm2", "first")

# Shapes: vocabulary, width, feed_forward, layers, heads, kv_heads, head_size.
SHAPES = {
    "llama2-7b": (32_000, 4096, 11_008, 32, 32, 32, 128),
    "smollm2-135m": (49_152, 576, 1536, 30, 9, 3, 64),
    "tiny": (128, 32, 88, 2, 4, 2, 8),
    "small": (768, 128, 352, 4, 4, 4, 32),
    "trial": (64, 16, 24, 4, 4, 2, 4),
}
PAPER = {"clients": 2, "steps": 10, "batch": 16, "length": 512, "rank": 32, "rounds": 3}
TINY = {"steps": 10, "batch": 2, "length": 16, "rank": 8, "rounds": 4}
SMALL = {"steps": 10, "batch": 4, "length": 64, "rank": 8, "rounds": 4}
SMOLLM2 = {"clients": 2, "steps": 4, "batch": 4, "length": 256, "rank": 16, "rounds": 4}
TRIAL = {"clients": 2, "steps": 1, "batch": 1, "length": 8, "rank": 2, "rounds": 1}


def cases(size: str, smollm2: str | None) -> list[dict[str, Any]]:
    """All measurements: each with its part, its name and the options of its process."""
    full = size == "full"
    shape, work = ("llama2-7b", PAPER) if full else ("trial", TRIAL)
    found: list[dict[str, Any]] = [{"part": "rate", "name": "bfloat16", "side": 8192 if full else 64}]
    for storage in ("none", "nf4"):
        stages = (4, 8, 16, 32) if full else (2, 4)
        found.append({"part": "llama", "name": storage, "shape": shape, **work, "storage": storage, "stages": stages})
    found.append({"part": "peft", "name": "bfloat16", "shape": shape, **work})
    for name, given, counts in (("tiny", TINY, (8, 64, 512, 4096)), ("small", SMALL, (8, 64, 512, 4096))):
        for clients in counts if full else (2, 3):
            more = given if full else {**TRIAL, "length": 8}
            found.append({"part": "cohorts", "name": f"{name}, {clients}", "shape": name, **more, "clients": clients})
    shape, work = ("smollm2-135m", SMOLLM2) if full else ("trial", TRIAL)
    found.append({"part": "smollm2", "name": "rounds", "shape": shape, **work, "folder": smollm2})
    for name, given in (("tiny", {**TINY, "clients": 256}), ("small", {**SMALL, "clients": 32}))[: 2 if full else 1]:
        found.append({"part": "first", "name": name, "shape": name, **(given if full else TRIAL), "rounds": 1})
    return found


# ---------------------------------------------------------------------------------------------------
# In the process of a measurement


def matrix_rate(side: int) -> dict[str, Any]:
    """Operations per second of the fastest of several square products in bfloat16."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    left = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    jax.block_until_ready(product(left, left))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready([product(left, left) for _ in range(10)])
        best = min(best, (time.perf_counter() - began) / 10)
    return {"device": jax.devices()[0].device_kind, "flops_per_second": 2 * side**3 / best}


def peak_bytes() -> int:
    """The largest memory so far: of the device where it says so, else of the process."""
    import resource

    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats.get("peak_bytes_in_use", own)


def random_data(case: dict[str, Any], vocabulary: int) -> Any:
    """Full rows of random tokens, for every client those of one round."""
    import numpy as np

    from devft_jax.data import Client, Examples, FederatedData

    each, draw = case["steps"] * case["batch"], np.random.default_rng(0)
    count = case["clients"] * each
    rows = draw.integers(0, vocabulary, (count, case["length"])).astype(np.int32)
    lengths = np.full(count, case["length"], np.int64)
    examples = Examples.of_rows(rows, lengths=lengths, prompt_lengths=np.ones(count, np.int32))
    held = np.arange(count).reshape(case["clients"], each)
    clients = tuple(Client(str(index), index, own) for index, own in enumerate(held))
    return FederatedData(examples, clients, "iid", None, "completion")


def model_of(case: dict[str, Any]) -> Any:
    """The case's model with random weights, or the weights in its folder."""
    import jax

    from devft_jax.models import Model, ModelConfig, init_base, load_pretrained
    from devft_jax.models.quantization import quantize_base

    # Packed or not, what stays a float is in the precision of the platform's runs.
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if case.get("folder"):
        return load_pretrained(case["folder"], dtype=dtype)
    names = ("vocabulary", "width", "feed_forward", "layers", "heads", "kv_heads", "head_size")
    shape: dict[str, Any] = dict(zip(names, SHAPES[case["shape"]], strict=True))
    config = ModelConfig(**shape, max_length=max(case["length"], 64))
    base = init_base(jax.random.key(0), config, dtype=dtype)
    return Model(config, base if case.get("storage", "none") == "none" else quantize_base(base, case["storage"]))


def rounds(case: dict[str, Any]) -> dict[str, Any]:
    """Rounds of a case by this project, stage by stage, without held-out data."""
    import jax

    from devft_jax import RunConfig
    from devft_jax.reporting import Progress
    from devft_jax.training.parts import build_parts
    from devft_jax.training.trainer import Trainer

    model, stages = model_of(case), case.get("stages")
    config = RunConfig(
        algorithm="fedit",
        growth="devft" if stages else "end-to-end",
        capacities=tuple(stages) if stages else None,
        rounds=case["rounds"] * len(stages or [0]),
        clients=case["clients"],
        clients_per_round=case["clients"],
        local_steps=case["steps"],
        batch_size=case["batch"],
        max_length=case["length"],
        rank=case["rank"],
        alpha=2.0 * case["rank"],
        dropout=0.0,
        quantization=case.get("storage", "none"),
        remat="full" if stages else "auto",
        weighting="uniform",
        compile_ahead="off",
    )
    data = random_data(case, model.config.vocabulary)
    trainer = Trainer(build_parts(config, model=model, data=data, progress=Progress(quiet=True)))
    state = trainer.begin()
    found: list[dict[str, Any]] = []
    history: list[Any] = []
    while trainer.advance(state, history):
        began, compiled = time.perf_counter(), trainer.parts.programs.seconds
        row = trainer.step(state, history)
        jax.block_until_ready(state.server)
        if not found or found[-1]["layers"] != row.layers:
            found.append({"layers": row.layers, "seconds": [], "wall": [], "compiling": 0.0})
        stage = found[-1]
        stage["seconds"].append(row.seconds)
        stage["wall"].append(time.perf_counter() - began)
        stage["compiling"] += trainer.parts.programs.seconds - compiled
        stage |= {"tokens": row.tokens, "flops": row.train_flops, "clients_per_step": trainer.parts.cohort.clients_per_step}
        stage["peak_bytes"] = peak_bytes()
        stage.setdefault("since_start", process_seconds())
    return {"stages": found}


def process_seconds() -> float:
    """Seconds since this process was started."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def peft_rounds(case: dict[str, Any]) -> dict[str, Any]:
    """The same rounds by PyTorch and PEFT, one client after the other, at full depth, with its own checkpointing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    on_card = torch.cuda.is_available()
    vocabulary, width, feed_forward, layers, heads, kv_heads, _ = SHAPES[case["shape"]]
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        use_cache=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if on_card else torch.float32)
    with torch.device("cuda" if on_card else "cpu"):
        base = LlamaForCausalLM(shape)
        tokens = torch.randint(0, vocabulary, (case["clients"], case["steps"], case["batch"], case["length"]))
    base.gradient_checkpointing_enable({"use_reentrant": False})
    lora = LoraConfig(
        r=case["rank"], lora_alpha=2 * case["rank"], target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora).train()
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    seconds = []
    for _ in range(1 + case["rounds"]):
        began = time.perf_counter()
        for client in tokens:
            optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=on_card)
            for batch in client:
                optimizer.zero_grad()
                model(input_ids=batch, labels=batch).loss.backward()
                optimizer.step()
        if on_card:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    # The first round warms up, as compilation is not counted for this project either.
    peak = torch.cuda.max_memory_allocated() if on_card else None
    return {"layers": layers, "seconds": seconds[1:], "first": seconds[0], "tokens": tokens.numel(), "peak_bytes": peak}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in this process."""
    if case["part"] == "peft":
        return peft_rounds(case)
    from devft_jax.commands.jax_setup import configure_jax

    configure_jax()
    return matrix_rate(case["side"]) if case["part"] == "rate" else rounds(case)


# ---------------------------------------------------------------------------------------------------
# Around the processes


def run_apart(case: dict[str, Any], cache: str, seconds: float) -> dict[str, Any]:
    """A measurement in a process of its own: its result, or `error` with the last line that it printed."""
    started = {"BENCHMARK_STARTED": str(time.time()), "DEVFT_CACHE": cache}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env={**os.environ, **started}, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {seconds:.0f} seconds"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A measurement; the first round of a process is measured twice, with a cache of programs the second time."""
    with tempfile.TemporaryDirectory() as cache:
        found = run_apart(case, cache, seconds)
        if case["part"] == "first" and "error" not in found:
            found = {"cold": found, "warm": run_apart(case, cache, seconds)}
    return found


def platform_of_jax() -> str:
    """The platform that JAX chooses, found in another process, which gives the accelerator back."""
    code = "import jax; print(jax.default_backend())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]


def table(head: str, rows: list[list[str]]) -> str:
    """A Markdown table; `head` has its columns between bars."""
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)])


def stage_rows(name: str, found: dict[str, Any], rate: float | None) -> list[list[str]]:
    """A row for each stage: the fastest round, its rate, its share of the card's, memory and compilation."""
    rows = []
    for stage in found["stages"]:
        best = min(stage["seconds"])
        share = "" if not rate else f"{stage['flops'] / best / rate:.1%}"
        rows.append(
            [
                name,
                str(stage["layers"]),
                str(stage["clients_per_step"]),
                f"{best:.3g} s",
                f"{stage['tokens'] / best:,.0f}",
                share,
                f"{stage['peak_bytes'] / 2**30:.2f} GiB",
                f"{stage['compiling']:.1f} s",
            ]
        )
    return rows


def report(results: dict[str, dict[str, Any]]) -> str:
    """All tables as Markdown."""
    good = {part: {name: found for name, found in by.items() if "error" not in found} for part, by in results.items()}
    rate = next((found["flops_per_second"] for found in good.get("rate", {}).values()), None)
    parts = ["# Measured on an accelerator"]
    for name, found in good.get("rate", {}).items():
        parts.append(f"{found['device']}: {found['flops_per_second'] / 1e12:.3g} TFLOP/s in products of {name}.")
    head = "what | layers | clients at once | fastest round | tokens a second | share of the rate | peak memory | compiling"
    for part in ("llama", "smollm2", "cohorts"):
        rows = [row for name, found in good.get(part, {}).items() for row in stage_rows(name, found, rate)]
        if rows:
            parts += [f"## {part}", table(head, rows)]
    for found in good.get("peft", {}).values():
        best = min(found["seconds"])
        memory = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 2**30:.2f} GiB"
        row = [str(found["layers"]), f"{best:.3g} s", f"{found['tokens'] / best:,.0f}", memory]
        parts += ["## PyTorch and PEFT, bfloat16", table("layers | fastest round | tokens a second | peak memory", [row])]
    firsts = good.get("first", {})
    if firsts:
        rows = [
            [name, *(f"{found[kind]['stages'][0]['since_start']:.1f} s" for kind in ("cold", "warm"))]
            for name, found in firsts.items()
            if all("error" not in found[kind] for kind in ("cold", "warm"))
        ]
        title = "## From the start of a process to the end of its first round"
        parts += [title, table("work | without a cache of programs | with one", rows)]
    failed = [(part, name, found["error"]) for part, by in results.items() for name, found in by.items() if "error" in found]
    if failed:
        parts += ["Not measured:", "\n".join(f"- {part}, {name}: {error}" for part, name, error in failed)]
    return "\n\n".join(parts) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of results.json and results.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured; by default all")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny tries the command itself")
    parser.add_argument(
        "--platform", choices=("accelerator", "cpu"), default="accelerator", help="cpu tries the command itself"
    )
    parser.add_argument("--smollm2", help="folder of SmolLM2-135M's weights; by default random weights of its shape")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further measurement after so many minutes")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure what is requested and not there yet."""
    options = parse()
    if options.case is not None:
        print(json.dumps(measure(json.loads(options.case))))
        return
    if options.out is None:
        raise SystemExit("error: --out is missing; name the folder of the results.")
    if options.platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif platform_of_jax() == "cpu":
        raise SystemExit("error: JAX finds no accelerator here; --platform cpu --size tiny tries the command without one.")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    until = time.monotonic() + 60 * options.minutes
    for case in cases(options.size, options.smollm2):
        part, name = case["part"], case["name"]
        there = results.get(part, {}).get(name)
        if part not in options.parts or (there is not None and "error" not in there):
            continue
        left = until - time.monotonic()
        if left <= 0:
            print(f"the time is up before {part}, {name}; the same command continues.", file=sys.stderr)
            break
        print(f"{part}, {name} ...", file=sys.stderr, flush=True)
        results.setdefault(part, {})[name] = run_case(case, left)
        file.write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "results.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()

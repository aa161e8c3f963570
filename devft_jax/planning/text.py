"""A plan as text: the model and method, a table of stages, what is sent, memory, and communication as the paper counts it.

Figures marked with * are projections; see `devft_jax.planning.plan`.
"""

from pathlib import Path

from devft_jax.accounting.memory import MemoryTerms
from devft_jax.models.attention import kernel_for
from devft_jax.planning.fleet import FleetStagePlan
from devft_jax.planning.paper import PAPER_ROUNDS, paper_model
from devft_jax.planning.plan import Device, Plan, StagePlan
from devft_jax.reporting.progress import readable_bytes
from devft_jax.reporting.table import table
from devft_jax.reporting.units import counted
from devft_jax.reporting.waiting import readable_seconds


def to_text(plan: Plan) -> str:
    """The plan as text, in lines of at most 120 characters.

    Args:
      plan: the plan.
    """
    sections = [_heading(plan), _stage_table(plan), _classes(plan), _traffic(plan), _memory(plan)]
    sections += [_fleet(plan), _convention(plan)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def readable_count(count: float, unit: str = "") -> str:
    """A number with the prefix that suits it (powers of 1000), such as 6.74 G or 41.5 PFLOP.

    Args:
      count: the number.
      unit: what is counted, written after the prefix.
    """
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if count < 1000:
            return f"{count:.0f} {unit}".rstrip() if not prefix else f"{count:.2f} {prefix}{unit}"
        count /= 1000
    return f"{count:.2f} Z{unit}"


def _projected(seconds: float) -> str:
    return (readable_seconds(seconds) if seconds >= 10 else f"{seconds:.2g}s") + "*"


def _heading(plan: Plan) -> list[str]:
    config, work = plan.config, plan.work
    stored = plan.compute.dtype if config.quantization == "none" else f"{config.quantization} and {plan.compute.dtype}"
    sent = f"messages in {config.message_dtype}" if plan.total("bytes_up") else "no messages"
    if config.channel != "none":
        sent += f", up through {config.channel}"
    who = f"{config.clients_per_round} out of {config.clients} clients"
    if plan.pools:
        who = f"one participant with the examples of all {config.clients} clients"
    lines = [
        "From shapes alone: neither weights nor data are read. FLOPs are upper bounds; * marks a projection.",
        "",
        f"model   {config.model}: {plan.architecture.layers} layers, {readable_count(plan.parameters)} parameters, "
        f"{readable_bytes(plan.base_bytes)} in {stored}",
        f"method  {config.growth} with {config.algorithm}, rank {config.rank} on {','.join(config.targets)}, {sent}",
        f"work    {plan.total('rounds')} rounds of {who}, "
        f"{work.steps} steps of {config.batch_size} examples of {work.length} tokens",
    ]
    if plan.bounded:
        named = " and ".join(name.removeprefix("bytes_") for name in plan.bounded if name != "bytes_missed")
        lines += [
            f"        (bytes {named} are upper bounds, too: messages differ between clients or rounds, the largest counts)"
        ]
    if plan.counted:
        lines += [f"        (clients are the {config.clients} files of the data, including those with too few examples)"]
    elif config.partition in ("field", "file", "auto"):
        lines += [
            "        (data that is split by field or file has its own number of clients: give it as --clients; their names",
            "        decide who takes part, so the bytes of submodels and of catch-up differ a little in the run)",
        ]
    return lines


def _stage_table(plan: Plan) -> list[str]:
    def row(title: str, stage: StagePlan) -> tuple[str, ...]:
        return (
            title,
            f"{stage.layers} on {stage.bare}" if stage.bare else str(stage.layers),
            str(stage.rounds),
            readable_count(stage.parameters),
            readable_count(stage.trained),
            readable_bytes(stage.bytes_up),
            readable_bytes(stage.bytes_down),
            readable_bytes(stage.bytes_stage),
            readable_count(stage.train_flops, "FLOP"),
            _projected(plan.seconds(stage)),
        )

    def ratio(name: str) -> str:
        own, full = plan.total(name), plan.of(plan.end_to_end, name)
        return f"1/{full / own:.2f}" + "*" * (name == "seconds") if own and full else ""

    total = tuple(readable_bytes(plan.total(name)) for name in ("bytes_up", "bytes_down", "bytes_stage"))
    flops, seconds = readable_count(plan.total("train_flops"), "FLOP"), _projected(plan.total("seconds"))
    rows = [
        ("stage", "layers", "rounds", "parameters", "trained", "up", "down", "submodels", "training", "time"),
        *(row(str(index), stage) for index, stage in enumerate(plan.stages, 1)),
        ("total", "", str(plan.total("rounds")), "", "", *total, flops, seconds),
        row("end-to-end", plan.end_to_end),
        ("ratio", "", "", "", "", ratio("bytes_up"), ratio("bytes_down"), "", ratio("train_flops"), ratio("seconds")),
    ]
    energy, remat = plan.energy, plan.compute.remat
    recomputed = [f"training counts the work of the method: what remat {remat} recomputes is not counted"]
    server = readable_count(plan.total("server_flops"), "FLOP")
    distilled = [f"distilling fused layers takes the server {server} in all, which training, time and energy leave out"]
    return [
        *table(rows),
        *(recomputed if remat != "none" else ()),
        *(distilled if plan.total("server_flops") else ()),
        *_ends(plan),
        *_rate(plan),
        f"energy* {energy['kwh']:.3g} kWh, {energy['kgco2e']:.3g} kgCO2e at {energy['joules_per_flop']:.3g} J a FLOP, as "
        "estimates of runs here (--joules-per-flop)",
    ]


def _classes(plan: Plan) -> list[str]:
    """What the classes of clients hold, send and need; nothing if all clients hold the same."""
    if not plan.stages[0].classes:
        return []
    rows: list[tuple[str, ...]] = [
        ("stage", "class", "layers", "train", "ranks", "clients", "round up", "round down", "a round", "memory*")
    ]
    for number, stage in enumerate(plan.stages, 1):
        for index, each in enumerate(stage.classes, 1):
            ranks = (plan.config.rank,) if each.ranks is None else (min(each.ranks), max(each.ranks))
            rows.append(
                (
                    str(number) if index == 1 else "",
                    str(index),
                    f"{each.layers} on {each.bare}" if each.bare else str(each.layers),
                    str(each.trained),
                    "-".join(map(str, dict.fromkeys(ranks))),
                    str(each.clients),
                    readable_bytes(each.message_up),
                    readable_bytes(each.message_down),
                    readable_count(each.round_flops, "FLOP"),
                    readable_bytes(each.memory),
                )
            )
    known = sum(each.clients for each in plan.stages[-1].classes)
    left_out = plan.config.clients - known
    have = "has" if left_out == 1 else "have"
    return [
        "classes of clients, each with its own layers; up, down and training above are those of its participants",
        *table(rows),
        *(
            [f"{counted(left_out, 'client')} {have} too little memory for the weakest class and never take part"]
            if left_out
            else []
        ),
    ]


def _ends(plan: Plan) -> list[str]:
    """How the rounds of a run may differ from the plan's, as lines; nothing if stages do not end early."""
    end = plan.config.stage_end
    if end == "fixed" or len(plan.stages) == 1:
        return []
    heir = "the next stage" if end == "gain" else "the last stage"
    lines = [
        f"stage_end {end} may begin later stages sooner than here, never later; the rounds left over go to {heir},",
        "so that a run whose later stages cost more may cost more than this",
    ]
    measured = "measuring what stages promise takes the server operations that nothing here includes"
    return [*lines, *([measured] if end == "gain" else [])]


def _rate(plan: Plan) -> list[str]:
    """What the times assume, as lines."""
    rate = f"time at {readable_count(plan.flops_per_second, 'FLOP')}/s in all"
    left_out = "of training alone: compiling, evaluating and building stages are not included"
    if plan.speed is None:
        return [f"{rate}, as given (--flops-per-second), whatever this machine is;", left_out]
    kept = "" if plan.speed.kept_in is None else "measured once and stored as speed.json in the cache folder; "
    return [
        f"{rate}, what matrix products reach here ({plan.speed.device});",
        left_out,
        f"({kept}another machine: --flops-per-second, 1e14 for a GPU)",
    ]


def _traffic(plan: Plan) -> list[str]:
    """What one client receives and sends, and what is sent besides the messages."""
    if plan.pools:
        return ["nothing is sent: one participant holds the examples of all clients and trains for all of them"]
    rows: list[tuple[str, ...]] = [("per client", "round up", "round down", "submodel, once", "or group list and beta")]
    for index, stage in enumerate(plan.stages, 1):
        amounts = (stage.message_up, stage.message_down, stage.submodel, stage.recipe)
        rows.append((f"stage {index}", *map(readable_bytes, amounts)))
    fused = [stage for stage in plan.stages if stage.submodel]
    clients, besides = plan.config.clients, []
    if fused:
        besides = [
            ("submodels, to the clients that take part in their stage", plan.total("bytes_stage")),
            ("  of it catch-up: to newcomers after a stage's first round", sum(each.late * each.submodel for each in fused)),
            (f"  instead, if all {clients} clients get each one", clients * sum(each.submodel for each in fused)),
            (
                "  instead, if clients hold the base model and fuse it themselves",
                sum(each.clients * each.recipe for each in fused),
            ),
        ]
    besides += [
        *([("messages that absent clients missed and need later", plan.total("bytes_missed"))] * plan.cumulative),
        ("the base model, once to every client under any method; not counted above", clients * plan.base_bytes),
    ]
    return [
        *table(rows),
        "",
        *table([("besides messages, all clients", "bytes"), *((text, readable_bytes(count)) for text, count in besides)]),
    ]


def _memory(plan: Plan) -> list[str]:
    heads = ("weights", "training state*", "activations*", "workspace*", "peak*")

    def cells(memory: MemoryTerms) -> tuple[str, ...]:
        state = memory.lora + memory.gradients + memory.moments + memory.updates
        workspace = max(memory.layer_workspace, memory.loss_chunk)
        return tuple(map(readable_bytes, (memory.weights, state, memory.activations, workspace, memory.total)))

    compiled, shards = plan.options.compile, plan.config.model_shards
    held = f"of which {shards} hold the base together, " if shards > 1 else ""
    at_once = f"{plan.work.clients} client(s) at once"
    lines = []
    titles: dict[Device, str] = {
        "client": "memory of the participant's device" if plan.pools else "memory of a client's device",
        "simulator": f"memory of each of the simulator's {plan.devices} device(s), {held}{at_once}",
    }
    for kind, title in titles.items():
        checked = plan.fitting(kind) if plan.options.memory is not None else []
        with_program = compiled and kind == "simulator"
        rows = [("stage", *heads, *(("program*", "XLA's") if with_program else ()), *(("fits*",) if checked else ()))]
        for index, stage in enumerate(plan.stages):
            memory = stage.memory(kind)
            row: tuple[str, ...] = (str(index + 1), *cells(memory))
            if with_program:
                xla = "unknown" if stage.compiled is None else readable_bytes(stage.compiled.total)
                row += (readable_bytes(memory.program), xla)
            rows.append((*row, *(("yes" if checked[index] else "no",) if checked else ())))
        lines += [title + (f", against {plan.options.memory}" if checked else ""), *table(rows)]
        if kind == "client":
            grown = plan.stages[0].layers < plan.stages[-1].layers == plan.architecture.layers
            note = ["at full depth it equals end-to-end training: growth saves average memory, not peak memory"]
            lines += [*(note if grown else ()), ""]
    kernel = kernel_for(
        plan.compute.attention,
        dtype=plan.compute.dtype,
        head_size=plan.architecture.head_size,
        length=plan.work.length,
    )
    return [*lines, f"in {plan.compute.dtype}, remat {plan.compute.remat}, attention {kernel} as on this machine"]


def _fleet(plan: Plan) -> list[str]:
    """Who can take part in every stage, and simulated time; nothing without a fleet."""
    if plan.fleet is None:
        return []
    fleet, config, clients = plan.fleet, plan.config, sum(plan.fleet.tiers.values())

    def row(title: str, stage: FleetStagePlan) -> tuple[str, ...]:
        able = sum(stage.eligible.values())
        unknown = "nobody fits"
        return (
            title,
            readable_bytes(stage.memory),
            f"{able / clients:.0%}",
            *(f"{stage.eligible[name]} of {count}" for name, count in fleet.tiers.items()),
            unknown if stage.round_seconds is None else _projected(stage.round_seconds),
            "" if stage.seconds is None else _projected(stage.seconds),
            "" if stage.lost is None else f"{stage.lost:.0%}",
        )

    closes = "waits for all" if config.deadline is None else f"closes a round after {config.deadline:g} s"
    if config.aggregation == "buffered":
        closes = f"takes a step whenever {config.clients_per_round} changes have arrived"
    asked = f"asks {config.over_selection:g} times as many clients, " if config.over_selection > 1 else ""
    rows = [
        ("stage", "needs*", "can join", *fleet.tiers, "a round*", "all rounds*", "lost*"),
        *(row(str(index), stage) for index, stage in enumerate(fleet.stages, 1)),
        row("end-to-end", fleet.end_to_end),
    ]
    # Of a file the name says enough.
    named = Path(str(config.fleet)).name
    return [
        f"the fleet {named} of {clients} clients, in simulated time; the server {asked}{closes};",
        "needs: memory of a client; lost: participations that fail, leave or are late",
        *table(rows),
        *([] if fleet.seconds is None else [f"all stages {_projected(fleet.seconds)} of simulated time"]),
    ]


def _convention(plan: Plan) -> list[str]:
    """The paper's way of counting, beside its own figures if it has them for this model."""
    rounds = plan.total("rounds")
    rows: list[tuple[str, ...]] = [("low-rank parameters x rounds x 1 byte", f"{rounds} rounds")]
    known = [row for row in plan.convention.values() if row.paper_gigabytes is not None]
    implied = known[0].paper_rounds if known else None
    differs = known and implied != rounds
    if known:
        rows[0] += (f"{implied} rounds", "the paper") if differs else ("the paper",)
    for name, row in plan.convention.items():
        cells = [name, readable_bytes(row.bytes)]
        if known:
            cells += ["" if row.paper_bytes is None else readable_bytes(row.paper_bytes)] if differs else []
            cells += ["" if row.paper_gigabytes is None else f"{row.paper_gigabytes:.2f} GB"]
        rows.append(tuple(cells))
    lines = ["communication as the paper counts it: one client, one direction, no submodels", *table(rows)]
    stated = PAPER_ROUNDS.get(paper_model(plan.architecture) or "")
    if known and implied != stated:
        lines.append(f"the paper states {stated} rounds for this model, but its figures imply {implied}")
    if not known:
        lines.append("the paper gives no figures for this configuration: a prediction by its rule")
    return lines

"""The options of a comparison."""

from dataclasses import dataclass

from devft_jax.options import option, path

BENCHMARK_OPTIONS = ("tasks", "benchmark_files", "limit", "num_fewshot")
"""The options of `devft evaluate` that a comparison takes."""
BUDGETS = ("rounds", "bytes")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The methods to compare, and on what terms."""

    arms: tuple[str, ...] | None = None
    """The methods: ALGORITHM (the full model) or ALGORITHM+GROWTH, each with its own options as :option=value (values of a
    list joined by /). Two controls: fedit@bytes=ARM uses the rank with which it sends as much as another arm, and
    fedit@flops=ARM the number of rounds that compute as much as it. Example:
    fedit,fedit+devft,fedit+devft:beta=0.2:capacities=4/16,fedit@bytes=fedit+devft."""
    arms_file: str | None = path(None)
    """A YAML file of arms by title, in place of --arms, such as `FedIT: {algorithm: fedit}` and `DevFT: {algorithm: fedit,
    growth: devft, beta: 0.2}`; `bytes_of: TITLE` and `flops_of: TITLE` make controls."""
    seeds: tuple[int, ...] | None = option(None, within="[0, 2^32)", each_once=True, remedy="write them as 0,1,2")
    """Seeds of the runs, such as 0,1,2; each sets the split, the cohorts, the data order and the initialisation. By default
    only the configuration's seed, from which no interval can be computed."""
    reference: str | None = None
    """The arm to which differences are computed; by default the first."""
    budget: tuple[str, ...] = option(("rounds",), choices=BUDGETS, each_once=True)
    """What is equal for all arms: rounds, or bytes (of all messages up; an arm whose full length sends less has its full
    length), or rounds,bytes for a table of each."""
    budget_of: str | None = None
    """The arm whose bytes are the budget; by default the one that sends least, without controls and arms that send
    nothing."""
    target_loss: float | None = option(None, above=0, remedy="give a positive number of nats per token, such as 2.5")
    """Held-out loss, in nats per token, to whose cost runs are compared; by default the mean of the reference's final
    losses."""
    learning_rates: tuple[float, ...] | None = option(None, above=0, each_once=True, remedy="give positive rates")
    """Learning rates from which every arm gets the best by held-out loss, in one run each on every tuning seed; by default
    arms have the rates of the configuration."""
    evaluations: int = option(8, at_least=0, remedy="use 0 to evaluate only at the ends of stages")
    """About how often the full model is evaluated on held-out data during a run, at the same rounds in every arm; if
    evaluate_every is given, it is used instead. 0 evaluates only at the ends of stages, which are at different rounds in
    each arm. Arms in which every client has its own model, all of which would be evaluated, are always evaluated only at
    the ends."""
    tuning_seeds: tuple[int, ...] = option((1000,), within="[0, 2^32)", each_once=True, remedy="name others")
    """Seeds of the search for a learning rate, over which its losses are averaged; must not be among the seeds."""
    at_once: int = option(1, at_least=1, at_most=2**12)
    """Runs made at the same time, each on an equal share of this host's GPUs or CPU cores (a remainder is not used). Of
    several processes, each makes as many."""
    out: str = path("runs/compare")
    """The comparison's folder: absent, empty or a comparison's, whose runs are then shared."""

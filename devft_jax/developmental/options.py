"""The options of growths: those that all share (the growth, its stages, the layers of each), and those of single ones.

The metadata of a field say which values it may have, under which other options it is read, and with `of="growth"` that only
the growths read it that name it in `NamedGrowth.reads`; `devft_jax.options.option` documents every key. JAX is not imported
here, so that a command line is read and explained without it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

GROUPINGS = ("dglg", "random", "even_blocks", "even_strides", "contiguous")
"""How layers can be grouped."""
SIMILARITY_METHODS = ("dglg", "contiguous")
"""The groupings by similarity."""
LAPLACIANS = ("paper", "normalised", "row_normalised")
"""The Laplacians with their embeddings; `paper` is Eq. 3's, unnormalised."""
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
OF_WEIGHTS = ("weights", "without_norms", "norms", "projections", *PROJECTIONS)
OF_TEXT = ("hidden", "cka", "influence")
SIMILARITIES = (*OF_WEIGHTS, *OF_TEXT)
"""The names of all measures of similarity (`devft_jax.developmental.measures`)."""
FUSIONS = ("dblf", "sum", "r_one", "mean", "anchor")
"""How a group can be fused."""
MODES = ("copy", "anchor_only", "delta", "anchor_delta")
"""How what a group has learned can return to its layers."""
PROGFED_SCHEDULES = ("halving", "equal")
"""How ProgFed can divide the rounds over its stages."""
PLATEAU = {"stage_end": ("plateau",)}
GAIN = {"stage_end": ("gain",)}
ENDS_EARLY = {"stage_end": ("plateau", "gain")}


def option(default: Any, **declared: Any) -> Any:
    """A dataclass field with this declaration as its metadata."""
    return dataclasses.field(default=default, metadata=declared)


@dataclass(frozen=True)
class Condition:
    """A condition under which an option has an effect, for the key `needs`; has the members of `devft_jax.options.Need`.

    Attributes:
      holds: whether the option has an effect in a run with this configuration.
      reason: why it has none, written to follow the option's name in a sentence.
      remedy: what would give it an effect, as an imperative.
      part: the part of the run that decides this.
    """

    holds: Callable[[Any], bool]
    reason: str
    remedy: str
    part: str = "growth"

    def reason_in(self, config: Any) -> str:
        """Why the option has no effect.

        Args:
          config: the run's configuration.
        """
        return self.reason


DISTILS = Condition(lambda config: config.distil_steps > 0, "has no effect without distillation", "give --distil-steps")
READS_TEXT = Condition(
    lambda config: (
        config.growth != "devft"
        or (config.similarity in OF_TEXT and config.grouping in SIMILARITY_METHODS)
        or config.distil_steps > 0
    ),
    "has no effect with a similarity of weights",
    f"use --similarity {', '.join(OF_TEXT[:-1])} or {OF_TEXT[-1]}, or --distil-steps",
)
HOLDERS = ("active", "all", "ht")
"""How the mean over clients treats layers that only some of them hold."""
TIERED = ("devft", "skip-grow", "top-grow")
"""The growths that `by_tier` can be used with."""
BY_TIER = Condition(
    lambda config: config.growth not in TIERED or config.by_tier,
    "has no effect where all clients train the stage's model",
    "give --by-tier",
)
"""Whether a growth that can do without has classes of clients."""
OF_FISHER = Condition(
    lambda config: config.growth != "fed-hello" or config.hello_pattern == "fisher",
    "has no effect with a fixed pattern of chances",
    "use --hello-pattern fisher",
)
GRADIENT = {"initialization": ("lora-ga",), **GAIN}
"""A run with one of these choices measures gradients on public text, whatever the growth."""


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Which submodel trains when, and how long a stage lasts."""

    growth: str = "devft"
    """Which submodel trains when: a name of `devft list`, or a user-defined growth as package.module:name."""
    stage_rounds: tuple[int, ...] | None = option(None, at_least=1, at_most=10**5, remedy="use 1 or more for every stage")
    """Rounds of each stage; by default `rounds` is divided in the growth's own shares, equal ones for most growths."""
    stage_end: str = option("fixed", choices=("fixed", "plateau", "gain"))
    """When a stage ends: fixed (after its rounds), plateau (as soon as its mean training loss has flattened; its remaining
    rounds go to the last stage) or gain (as soon as the next stage's submodel promises at least as much per cost, by
    gradients on public text (`probe_data`); its remaining rounds go to the next stage). The run's length stays the same."""
    plateau_rounds: int = option(5, at_least=1, when=PLATEAU)
    """Rounds over which a plateau is detected: the mean loss of the last so many rounds is compared with that of as many
    before."""
    plateau_improvement: float = option(0.01, within="[0, 1)", remedy="0.01 is one per cent", when=PLATEAU)
    """Relative decrease of that mean loss below which it counts as flat."""
    gain_every: int = option(5, at_least=1, when=GAIN)
    """Rounds of a stage between two measurements of what it and the next stage promise."""
    gain_cost: str = option("bytes", choices=("bytes", "flops"), when=GAIN)
    """What a promise is divided by: the bytes of a client's messages in a round, both ways, or the operations of its
    training."""
    min_stage_rounds: int = option(1, at_least=1, when=ENDS_EARLY)
    """Least rounds of a stage that may end early; the planned rounds are the most."""


@dataclass(frozen=True, kw_only=True)
class CapacityOptions(StageOptions):
    """The layers of each stage."""

    capacities: tuple[int, ...] | None = option(None, of="growth", at_least=1, at_most=10**6)
    """Layers of each stage, ascending, such as 4,8,16,32; by default those of `capacity_schedule`."""
    capacity_schedule: str = option(
        "geometric", of="growth", choices=("geometric", "linear", "eigengap"), beside="capacities"
    )
    """Layers of each stage if `capacities` is not given: geometric (doubling; from an eighth of the model, or backwards from
    the full depth in `stages` steps), linear (equal steps), or eigengap (devft only: near the geometric ones, where the
    layers' similarity has its widest spectral gap)."""
    stages: int | None = option(None, of="growth", at_least=1, at_most=10**4, beside="capacities")
    """Number of stages of a schedule; by default 4, or as many as doubling from an eighth of the model takes."""


@dataclass(frozen=True, kw_only=True)
class TierOptions(CapacityOptions):
    """Classes of clients that hold different parts of the model."""

    by_tier: bool = option(False, of="growth")
    """Clients of weak classes stay at an earlier stage: there is a class for every stage, whose clients go on with the model
    of that stage, and the server adds what all of them learn at full depth."""
    class_shares: tuple[float, ...] | None = option(
        None, of="growth", above=0, remedy="give positive shares such as 0.5,0.3,0.2", needs=(BY_TIER,)
    )
    """Shares of the clients in the classes, the weakest first, which are drawn by the seed. By default a client of a fleet
    is in the largest class that its memory holds, and without a fleet the classes are equally frequent."""
    class_ranks: tuple[int, ...] | None = option(
        None, of="growth", at_least=1, at_most=2**16, remedy="give ranks such as 8,16,32", needs=(BY_TIER,)
    )
    """Rank of each class, at most `rank`; by default all have `rank`."""
    holders: str = option("active", of="growth", choices=HOLDERS, needs=(BY_TIER,))
    """Mean of a layer's changes: active (over the participants that train it), all (over all participants, those without it
    counting as no change) or ht (as all, with each change divided by the probability of training the layer in its class)."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(TierOptions):
    """Public text on which layers are measured, or distilled."""

    probe_data: str | None = option(None, of="growth", path=True, needs=(READS_TEXT, OF_FISHER), also=GRADIENT)
    """Public text on which layers are measured or distilled, or the gradients of `initialization` lora-ga and `stage_end`
    gain are, named like `data`; by default generated tasks, none of which is a built-in test record."""
    probe_examples: int = option(32, of="growth", at_least=1, at_most=10**7, needs=(READS_TEXT, OF_FISHER), also=GRADIENT)
    """Number of its examples."""


@dataclass(frozen=True, kw_only=True)
class DevFTOptions(TextOptions):
    """DevFT's options."""

    grouping: str = option("dglg", of="growth", choices=GROUPINGS)
    """How layers are grouped: dglg (Eqs. 1-3), random, even_blocks, even_strides, or contiguous (runs of neighbouring layers
    that are as similar as possible)."""
    similarity: str = option("weights", of="growth", choices=SIMILARITIES, when={"grouping": SIMILARITY_METHODS})
    """What is compared: all weights (weights, the paper's Eq. 1), without_norms, norms, the mean over all projections
    (projections) or one of them; or, on public text (`probe_data`), the layers' outputs (hidden: cosine, cka: linear CKA) or
    the influence of the layers between two (influence)."""
    laplacian: str = option("paper", of="growth", choices=LAPLACIANS, when={"grouping": ("dglg",)})
    """Laplacian and embedding of dglg: paper (Eq. 3), normalised (normalised cuts), or row_normalised (also with rows of the
    embedding scaled to length 1)."""
    lone_ends: bool = option(False, of="growth")
    """Keep the first and the last layer in groups of their own."""
    fusion: str = option("dblf", of="growth", choices=FUSIONS)
    """How a group is fused into its representative layer: dblf (Eq. 5), sum, r_one, mean or anchor."""
    beta: float | Literal["auto"] = option(
        0.1,
        of="growth",
        within="[0, 1]",
        remedy="the paper has 0.1, a tenth of each difference",
        when={"fusion": ("dblf",)},
    )
    """Weight of each difference from the anchor in dblf; auto uses min(0.1, 1 / group size)."""
    gauge_alignment: bool = option(False, of="growth")
    """Rotate each layer's low-rank factors to those of its group's first layer before they are fused. This changes no
    layer's product and brings the fusion of factors closer to the fusion of products."""
    gain_matching: bool = option(False, of="growth", when={"fusion": ("dblf", "sum", "mean")})
    """Scale every fused projection to the mean norm of its group's; fusing nearly orthogonal layers shrinks them."""
    distil_steps: int = option(0, of="growth", at_least=0, at_most=10**6, when={"fusion": ("dblf", "sum", "mean")})
    """Steps of distillation on the server at the beginning of a stage: the fused layers learn on public text (`probe_data`)
    to give the full model's hidden states. 0 for none."""
    distil_rate: float = option(1e-3, of="growth", above=0, remedy="1e-3 is usual", needs=(DISTILS,))
    """Adam's learning rate in this distillation; it falls to zero."""
    transfer: str = option("copy", of="growth", choices=MODES)
    """How learned LoRA is transferred back to a group: copy, anchor_only, delta or anchor_delta."""


@dataclass(frozen=True, kw_only=True)
class ProgFedOptions(CapacityOptions):
    """ProgFed's options."""

    progfed_schedule: str = option("halving", of="growth", choices=PROGFED_SCHEDULES, beside="stage_rounds")
    """Rounds of the stages: halving (half of an equal share for every stage except the last) or equal."""
    warmup_rounds: int = option(0, of="growth", at_least=0, remedy="use 0 for none")
    """Rounds after each growth in which only the newest block learns; they are rounds of the run."""


@dataclass(frozen=True, kw_only=True)
class ClassOptions(TextOptions):
    """The layers of classes of clients."""

    class_layers: tuple[int, ...] | None = option(None, of="growth", at_least=1, at_most=10**6)
    """Layers that a client of each class trains, the weakest class first, such as 4,8,16; by default a quarter, a half and
    all of the model's."""
    layer_draws: str = option("client", of="growth", choices=("client", "class"))
    """Who draws layers where they are drawn: every client in every round, as published, or every class in every round, whose
    clients then train together, which is faster on an accelerator."""


HELLO_PATTERNS = ("bottleneck", "triangle", "inverted", "uniform", "fisher")
"""How the chances of layers can depend on them."""


@dataclass(frozen=True, kw_only=True)
class HelloOptions(ClassOptions):
    """Fed-HeLLo's options."""

    hello_pattern: str = option("bottleneck", of="growth", choices=HELLO_PATTERNS)
    """Chances with which a client draws the layers that it trains: bottleneck (larger at both ends), triangle (falling with
    depth), inverted (rising), uniform, or fisher (by the layers' Fisher information on public text)."""


@dataclass(frozen=True, kw_only=True)
class LegendOptions(ClassOptions):
    """LEGEND's options."""

    lowest_rank_share: float = option(0.5, of="growth", within="(0, 1]", remedy="0.5 lets ranks double with depth")
    """Rank of the model's lowest layer as a share of that of the top layer, which has the run's rank; ranks between rise in
    equal steps."""


@dataclass(frozen=True, kw_only=True)
class PilotOptions(ClassOptions):
    """Fed-pilot's options."""

    layer_cost: float = option(0.1, of="growth", within="(0, 100]", remedy="0.1 is a tenth of a layer's activations")
    """Memory of the gradients and moments of a layer's adapter, in units of a layer's activations."""

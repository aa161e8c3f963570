"""The results of a probe."""

from dataclasses import dataclass, field
from typing import Any

from devft_jax.config.run_config import RunConfig


@dataclass(frozen=True)
class Cost:
    """What training a submodel costs.

    Attributes:
      flops: operations of a local step of one client.
      prefix_flops: those of them in layers below all adapters, whose outputs a run may store (`prefix_cache`).
      bytes_up: of one client's message in a round.
      bytes_down: of the server's message to one client in a round.
      bytes_stage: of the frozen layers that a client with the base receives once, when the stage begins.
      memory: peak of a client's own device, by formula.
      server_flops: operations of distilling the fused layers on the server, once per stage; 0 if they are not distilled.
    """

    flops: int
    prefix_flops: int
    bytes_up: int
    bytes_down: int
    bytes_stage: int
    memory: int
    server_flops: int = 0

    @property
    def bytes_round(self) -> int:
        """Bytes of a client's messages in a round, both ways."""
        return self.bytes_up + self.bytes_down


@dataclass(frozen=True)
class Measured:
    """One submodel of one plan, before it is trained.

    Attributes:
      plan: the plan.
      layers: rows of the submodel, which have an adapter.
      depth: layers that it runs.
      assign: the row from which each layer gets its LoRA back, -1 for none.
      loss: mean negative log-likelihood of the answers' tokens, nats.
      alignment: cosine of the full model's LoRA gradient and the submodel's, transferred as the growth does.
      alignment_kept: the same, transferred only to the first layer of each group.
      cost: what a step of it costs.
      flops_share: `cost.flops` in units of the full model's.
      bytes_share: bytes of a round's messages in units of the full model's; 0 if nothing is sent.
    """

    plan: str
    layers: int
    depth: int
    assign: tuple[int, ...]
    loss: float
    alignment: float
    alignment_kept: float
    cost: Cost
    flops_share: float = 1.0
    bytes_share: float = 1.0

    @property
    def gain_per_flop(self) -> float:
        """Alignment per operation, in units of the full model's."""
        return self.alignment / self.flops_share

    @property
    def gain_per_byte(self) -> float | None:
        """Alignment per byte of messages, in units of the full model's; None if nothing is sent."""
        return self.alignment / self.bytes_share if self.bytes_share else None


@dataclass(frozen=True)
class Probe:
    """Everything that was measured.

    Attributes:
      config: the configuration that gave data, adapter and costs.
      parameters: of the model.
      examples: number of examples.
      tokens: number of the answers' tokens.
      length: tokens of a row in the costs: the longest example, padded.
      full: the full model.
      rows: the submodels, plan by plan.
      gradient_shares: f[L], the share of every layer in the squared norm of the full model's gradient.
      influence: f[L], the layers' influence on public text; None if no plan asked for it.
      seconds: how long it took, compiling included.
      versions: of software, system and device.
    """

    config: RunConfig
    parameters: int
    examples: int
    tokens: int
    length: int
    full: Measured
    rows: tuple[Measured, ...]
    gradient_shares: tuple[float, ...]
    influence: tuple[float, ...] | None
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def plans(self) -> tuple[str, ...]:
        """The plans in order."""
        return tuple(dict.fromkeys(row.plan for row in self.rows))

    def of(self, plan: str) -> tuple[Measured, ...]:
        """The submodels of a plan, in order.

        Args:
          plan: the plan.
        """
        return tuple(row for row in self.rows if row.plan == plan)


def flat(row: Measured) -> dict[str, Any]:
    """The figures of a submodel by name, as in probe.csv.

    Args:
      row: the submodel.
    """
    return {
        "plan": row.plan,
        "layers": row.layers,
        "depth": row.depth,
        "loss": row.loss,
        "alignment": row.alignment,
        "alignment_kept": row.alignment_kept,
        **vars(row.cost),
        "flops_share": row.flops_share,
        "bytes_share": row.bytes_share,
        "gain_per_flop": row.gain_per_flop,
        "gain_per_byte": row.gain_per_byte,
    }

"""The records in a run's folder as dataclasses, which alone know the names in its JSON files.

    metrics.jsonl                   one `RoundRecord` per line
    summary.json, record.json       a `RunRecord`, with a `StageRecord` for every stage that has begun; record.json while
                                    unfinished
    checkpoints/<round>/record.json a `CheckpointRecord`, with the `RunTotals` up to its round

Results of evaluations, in several of these, are in `devft_jax.storage.result_records`, and what a simulated fleet adds is in
`devft_jax.storage.fleet_records`; split.json is a record of `devft_jax.storage.split_record`.

An attribute has the name that is used in the file; `devft_jax.storage.record` writes and reads records. In a line of
metrics, a number under an unknown name is one of the algorithm's own metrics.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from devft_jax.storage.class_record import ClassRecord
from devft_jax.storage.fleet_records import FleetRecord, SimulatedRoundRecord, SimulatedStageRecord
from devft_jax.storage.record import INLINE, OMITTED, Record, unusable
from devft_jax.storage.result_records import BestRecord, GainRecord, PersonalRecord, ScoreRecord


@dataclass(kw_only=True)
class RoundRecord(Record):
    """A round: a line of `metrics.jsonl`.

    Attributes:
      round: from 1, over all stages.
      stage: from 0.
      layers: of the stage's submodel, L or G.
      loss: training loss, nats per token, mean over the participants; NaN if none of their updates is finite.
      learning_rate: None in a line written by a version that did not record it.
      metrics: the algorithm's own metrics by name, written among the others; None for one that is not finite.
      client_update_norm: mean over the participants.
      tokens: tokens trained on, including padding.
      seconds: of training, without compilation.
      tokens_per_second: `tokens` / `seconds`.
      bytes_up: of all messages from clients.
      bytes_down: of all messages to clients.
      bytes_missed: of earlier messages that participants missed and need.
      train_flops: counted operations.
      program_bytes: memory of the largest program.
      adapter_norms: [G], norm of every layer's update; None for one that is not finite.
      dropped: number of updates that were not finite.
      clients: the participants' indices in the split.
      held_out_loss: of the stage's model, if it was evaluated after this round.
      held_out_accuracy: as `held_out_loss`.
      full_loss: of the full model as if the stage ended here, if that was evaluated.
      full_accuracy: as `full_loss`.
      scores: of the full model as if the stage ended here, on benchmark tasks, if it was scored.
      simulated: the round in simulated time, if the run has a fleet.
      classes: the class of each participant, from 0, if clients hold different layers.
    """

    where = "metrics.jsonl"

    round: int
    stage: int
    layers: int
    loss: float
    learning_rate: float | None = field(default=None, metadata=OMITTED)
    metrics: dict[str, float | None] = field(default_factory=dict, metadata=INLINE)
    client_update_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    bytes_up: int
    bytes_down: int
    bytes_missed: int
    train_flops: int
    program_bytes: int
    adapter_norms: list[float | None]
    dropped: int
    clients: list[int]
    held_out_loss: float | None = field(default=None, metadata=OMITTED)
    held_out_accuracy: float | None = field(default=None, metadata=OMITTED)
    full_loss: float | None = field(default=None, metadata=OMITTED)
    full_accuracy: float | None = field(default=None, metadata=OMITTED)
    scores: list[ScoreRecord] | None = field(default=None, metadata=OMITTED)
    simulated: SimulatedRoundRecord | None = field(default=None, metadata=OMITTED)
    classes: list[int] | None = field(default=None, metadata=OMITTED)

    @classmethod
    def _inline(cls, name: str, hint: Any, plain: dict[str, Any], path: str | Path) -> dict[str, float | None]:
        known = {each.name for each in dataclasses.fields(cls)}
        own = {key: value for key, value in plain.items() if key not in known}
        return {key: value for key, value in own.items() if value is None or isinstance(value, int | float)}


@dataclass(kw_only=True)
class StageRecord(Record):
    """A stage: its layers, its totals so far and its held-out results.

    Attributes:
      layers: G, layers of the submodel that have an adapter.
      depth: layers that run, including those below all adapters.
      trained: the rows that learn, as layers of the base; None if all rows learn.
      rounds: rounds done.
      seconds: of training.
      bytes_up: of all messages from clients.
      bytes_down: of all messages to clients.
      assign: [L], the group of every layer of the model, -1 for an absent layer.
      group_sizes: [G].
      anchor_coefficients: [G], the weight of each group's first layer, None for a group without layers; None if the base
        itself is run.
      transition_gap: the quantity bounded by the paper's Lemma 1.
      similarity: [L, L] between layers, if the growth measured it.
      spectrum: [L], eigenvalues of the Laplacian, if the growth measured them.
      planned_rounds: as planned when the stage began.
      submodel_bytes: bytes that a client with the base also needs.
      cached_layers: number of the lowest layers whose hidden states are stored, so that they do not run again.
      loss_start: held-out loss of the untrained submodel; None without held-out data.
      loss_end: held-out loss of the trained submodel; None until the stage has ended.
      loss_full_after_transfer: held-out loss of the full model after the stage; None until then.
      accuracy_full_after_transfer: as `loss_full_after_transfer`.
      personal: of the clients' own models at the end of the stage, if they were evaluated.
      simulated: the stage in simulated time, if the run has a fleet.
      server_flops: counted operations of distilling its fused layers on the server, if they were distilled.
      gains: what it and the next stage promised, if that decided when it ended.
      classes: of clients, the weakest first, if they hold different layers.
    """

    where = "a stage of its record"

    layers: int
    depth: int
    trained: list[int] | None
    rounds: int = 0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    assign: list[int]
    group_sizes: list[int]
    anchor_coefficients: list[float | None] | None
    transition_gap: float
    similarity: list[list[float]] | None
    spectrum: list[float] | None
    planned_rounds: int
    submodel_bytes: int
    cached_layers: int
    loss_start: float | None = None
    loss_end: float | None = None
    loss_full_after_transfer: float | None = None
    accuracy_full_after_transfer: float | None = None
    personal: PersonalRecord | None = None
    simulated: SimulatedStageRecord | None = field(default=None, metadata=OMITTED)
    server_flops: int | None = field(default=None, metadata=OMITTED)
    gains: list[GainRecord] | None = field(default=None, metadata=OMITTED)
    classes: list[ClassRecord] | None = field(default=None, metadata=OMITTED)

    @property
    def runs_base(self) -> bool:
        """Whether the submodel is the model itself."""
        return self.anchor_coefficients is None

    @property
    def groups(self) -> list[list[int]]:
        """The layers of each group."""
        return [[layer for layer, group in enumerate(self.assign) if group == own] for own in range(self.layers)]


@dataclass(kw_only=True)
class SecondsRecord(Record):
    """The seconds that a run has spent, by kind of work.

    Attributes:
      train: rounds, without compilation.
      compile: waiting for compilation.
      build: building stages: grouping, fusing, distilling, transfer, and measuring what the next one promises.
      evaluate: on held-out data, without compilation.
    """

    where = "its record of seconds"

    train: float
    compile: float
    build: float
    evaluate: float


@dataclass(kw_only=True)
class EnergyRecord(Record):
    """Energy of the training rounds.

    Attributes:
      kwh: kilowatt hours.
      kgco2e: kilograms of CO2 equivalent.
      grid_kgco2e_per_kwh: the factor between them.
      source: the counter that measured it, or the estimate.
      covers: what is included.
      joules_per_flop: factor of the estimated part; None if nothing is estimated.
    """

    where = "its record of energy"

    kwh: float
    kgco2e: float
    grid_kgco2e_per_kwh: float
    source: str
    covers: str = "training rounds"
    joules_per_flop: float | None = field(default=None, metadata=OMITTED)


@dataclass(kw_only=True)
class CompiledAheadRecord(Record):
    """Programs that were compiled while an earlier stage trained.

    Attributes:
      programs: number of programs.
      seconds: of the thread that compiled them.
      unused: number of those that have not been run.
    """

    where = "its record of programs compiled ahead"

    programs: int
    seconds: float
    unused: int


@dataclass(kw_only=True)
class RunTotals(Record):
    """Totals and decisions of a run so far, which its checkpoints store for a resumed run.

    Attributes:
      seconds: by kind.
      compile_before: the part of it that was compiled before the first stage.
      bytes_up: of all messages from clients.
      bytes_down: of all messages to clients.
      bytes_stage: of dense submodels, sent once per stage to every client that takes part in it.
      bytes_missed: of earlier messages that participants missed and needed.
      cumulative_bytes: [rounds + 1], the running total of messages that absent clients will need.
      train_flops: counted operations.
      joules: by source.
      dropped: number of updates that were not finite.
      stages: all stages that have begun.
      lengthened_after: the last round of the run before it was lengthened; 0 if it was not.
      resumed_after: the rounds after which it was resumed.
      stage_rounds: of every stage, as planned at this point.
      clients_per_step: clients trained at once.
      clients_per_step_settled: whether that number is final.
      devices: number of devices in use.
      model_shards: number of devices that hold the base together.
      data: fingerprint of the data.
      base: fingerprint of the base.
      public_text: fingerprint of the text on which fused layers are distilled, or stages' gains measured, if they are.
      base_loss: held-out loss of the untuned base; None without held-out data.
      base_accuracy: as `base_loss`.
      start_loss: as `base_loss`, of the model with the adapter with which the run began, if it did with an existing one.
      start_accuracy: as `start_loss`.
      base_scores: of the untuned base on benchmark tasks, if it was scored.
      final_scores: as `base_scores`, of the full model after the last stage.
      block_influence: [L], if the growth chooses layers by it.
      text_similarity: [L, L], if the growth groups layers by their outputs on public text.
      layer_fisher: [L], if clients draw layers by their Fisher information.
      rate_ends_after: the round at which the learning rate's schedule ends, if that is before the end of the run.
      best: the round of lowest held-out loss in the last stage, if the run looks for it.
      fleet: the fleet and its clock, if the run has one.
    """

    where = "the record of its checkpoint"

    seconds: SecondsRecord = field(default_factory=lambda: SecondsRecord(train=0.0, compile=0.0, build=0.0, evaluate=0.0))
    compile_before: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_stage: int = 0
    bytes_missed: int = 0
    cumulative_bytes: list[int] = field(default_factory=lambda: [0])
    train_flops: int = 0
    joules: dict[str, float] = field(default_factory=dict)
    dropped: int = 0
    stages: list[StageRecord] = field(default_factory=list)
    lengthened_after: int = 0
    resumed_after: list[int] = field(default_factory=list)
    stage_rounds: list[int]
    clients_per_step: int
    clients_per_step_settled: bool = False
    devices: int
    model_shards: int
    data: str
    base: str
    base_loss: float | None = None
    base_accuracy: float | None = None
    start_loss: float | None = field(default=None, metadata=OMITTED)
    start_accuracy: float | None = field(default=None, metadata=OMITTED)
    base_scores: list[ScoreRecord] | None = field(default=None, metadata=OMITTED)
    final_scores: list[ScoreRecord] | None = field(default=None, metadata=OMITTED)
    block_influence: list[float] | None = field(default=None, metadata=OMITTED)
    text_similarity: list[list[float]] | None = field(default=None, metadata=OMITTED)
    layer_fisher: list[float] | None = field(default=None, metadata=OMITTED)
    public_text: str | None = field(default=None, metadata=OMITTED)
    rate_ends_after: int | None = field(default=None, metadata=OMITTED)
    best: BestRecord | None = field(default=None, metadata=OMITTED)
    fleet: FleetRecord | None = field(default=None, metadata=OMITTED)


@dataclass(kw_only=True)
class CheckpointRecord(Record):
    """The contents of a checkpoint besides its arrays.

    Attributes:
      totals: up to its round; written among the other names.
      round: rounds done, over all stages.
      stage: the current stage, from 0.
      rounds_in_stage: rounds done in it.
      groups: G, the groups of its map.
      bare: layers that run below all adapters.
      maps: (groups, bare) of every map through which rows of the bank have passed; None for an empty bank.
      versions: rounds done before each earlier state of the server from which clients are still at work; None for none.
      class_maps: (groups, bare) of the growth's map of every stage so far, if clients hold different layers.
    """

    where = "the record of its checkpoint"

    totals: RunTotals = field(metadata=INLINE)
    round: int
    stage: int
    rounds_in_stage: int
    groups: int
    bare: int
    maps: list[list[int]] | None = field(default=None, metadata=OMITTED)
    versions: list[int] | None = field(default=None, metadata=OMITTED)
    class_maps: list[list[int]] | None = field(default=None, metadata=OMITTED)


@dataclass(kw_only=True)
class RunRecord(Record):
    """A run, finished (`summary.json`) or not (`record.json`).

    Attributes:
      final_loss: held-out loss of the full model after the last stage; None until then, or without held-out data.
      base_loss: of the untuned base.
      accuracy: as `final_loss`: share of examples answered exactly.
      base_accuracy: of the untuned base.
      start_loss: as `base_loss`, with the adapter with which the run began, if it did with an existing one.
      start_accuracy: as `start_loss`.
      personal: of the clients' own models after the last stage.
      personal_models: whether every client has a model of its own; held-out figures are then means over these.
      held_out_examples: number of held-out examples.
      rounds: rounds done.
      stage_rounds: of every stage, as planned at this point.
      lengthened_after: the last round of the run before it was lengthened; 0 if it was not.
      resumed_after: the rounds after which it was resumed.
      seconds: by kind of work.
      programs_compiled: number of compiled programs.
      compiled_ahead: those that were compiled while another stage trained.
      bytes_up: of all messages from clients.
      bytes_down: of all messages to clients.
      bytes_stage: of dense submodels at stage changes.
      bytes_missed: of earlier messages that participants missed and needed.
      base_bytes: size of the frozen base as stored.
      message_dtype: data type of messages.
      train_flops: counted operations.
      energy: of the training rounds.
      peak_memory_bytes: peak memory of this process's part of the run.
      peak_memory_source: what measured it.
      progress_lost: why the progress could no longer be written; None if it could.
      scratch_bytes: largest temporary memory of a program.
      updates_dropped: number of updates that were not finite.
      clients: number of clients in the data.
      devices: number of devices in use.
      clients_per_step: clients trained at once.
      block_influence: [L], if the growth chooses layers by it.
      versions: of software, system and device, by name.
      stages: all stages that have begun, at least one.
      stopped_by: number of the signal that stopped the run.
      base_scores: of the untuned base on benchmark tasks, if it was scored.
      final_scores: as `base_scores`, of the full model after the last stage.
      best: the round of lowest held-out loss in the last stage, if the run looked for it.
      fleet: the fleet and its clock, if the run has one.
    """

    where = "its record"

    final_loss: float | None
    base_loss: float | None
    accuracy: float | None
    base_accuracy: float | None
    personal: PersonalRecord | None
    personal_models: bool
    start_loss: float | None = field(default=None, metadata=OMITTED)
    start_accuracy: float | None = field(default=None, metadata=OMITTED)
    held_out_examples: int
    rounds: int
    stage_rounds: list[int]
    lengthened_after: int
    resumed_after: list[int]
    seconds: SecondsRecord
    programs_compiled: int
    compiled_ahead: CompiledAheadRecord
    bytes_up: int
    bytes_down: int
    bytes_stage: int
    bytes_missed: int
    base_bytes: int
    message_dtype: str
    train_flops: int
    energy: EnergyRecord | None
    peak_memory_bytes: int
    peak_memory_source: str
    progress_lost: str | None
    scratch_bytes: int
    updates_dropped: int
    clients: int
    devices: int
    clients_per_step: int
    block_influence: list[float] | None
    versions: dict[str, str]
    stages: list[StageRecord]
    stopped_by: int | None = field(default=None, metadata=OMITTED)
    base_scores: list[ScoreRecord] | None = field(default=None, metadata=OMITTED)
    final_scores: list[ScoreRecord] | None = field(default=None, metadata=OMITTED)
    best: BestRecord | None = field(default=None, metadata=OMITTED)
    fleet: FleetRecord | None = field(default=None, metadata=OMITTED)

    @classmethod
    def from_plain(cls, plain: Any, path: str | Path, where: str | None = None) -> Self:
        """As `Record.from_plain`; a record without a stage is invalid."""
        record = super().from_plain(plain, path, where)
        if not record.stages:
            raise unusable(cls.where, "stages", path)
        return record

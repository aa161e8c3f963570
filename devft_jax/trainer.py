"""One run's machinery: stages, rounds and transfer over one `State`.

    for every stage:   the growth gives a LayerMap; its submodel is fused; LoRA enters it
        for every round:   a cohort trains and is aggregated
        what the submodel learned returns to every layer of its group

The trainer knows nothing of folders, progress files or signals; `devft_jax.run` does.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from devft_jax.accounting import Adaptation, EnergyMeter, energy_summary, peak_memory, prefix_flops, training_flops
from devft_jax.accounting.communication import picked_layers_bytes
from devft_jax.config import RunConfig, validate
from devft_jax.data import (
    Examples,
    FederatedData,
    bucket_for,
    build_federated_data,
    check_data_found,
    draw_examples,
    evaluation_batches,
    gather_batch,
    length_buckets,
    pool,
    public_examples,
)
from devft_jax.developmental import Growth, LayerMap, StageShape, fuse, next_stage, planned_depths, planned_stages
from devft_jax.errors import InputError, RunError
from devft_jax.evaluation import Evaluation, HeldOut, Judgement
from devft_jax.federated.algorithm import Algorithm, Clients, same_server
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.cohort import ClientWork, Cohort, RoundResult, frozen_rows
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.options import learning_rate_at, validate_learning_rate
from devft_jax.federated.prefix import PrefixCache, Visits, worth_storing
from devft_jax.federated.profiles import profiled_clients
from devft_jax.federated.sampling import Purpose, client_keys, run_key, sample_cohort
from devft_jax.fingerprints import base_fingerprint, fingerprint
from devft_jax.models.influence import layer_cosines
from devft_jax.models.llama import Adapter, Base, Block
from devft_jax.models.lora import adapter_norms
from devft_jax.models.pretrained import Model, load_original_blocks, load_pretrained
from devft_jax.models.quantization import QTensor, is_quantized, quantize_base, quantize_projection
from devft_jax.programs import (
    CompiledPrograms,
    local_devices,
    resolve_clients_per_step,
    resolve_compute,
    versions,
)
from devft_jax.reporting import Progress
from devft_jax.reporting.progress import readable_bytes
from devft_jax.stages import after_round, check_composition, named_growth, plan_stages
from devft_jax.storage import RunFolder, map_rows, mapped_shapes, scatter_rows

PyTree = Any


@dataclass
class State:
    """Everything that changes while a run goes on.

    Attributes:
      round: rounds finished, over all stages. stage: the one under way, from 0; -1 before the first.
      rounds_in_stage: finished in it. full: the algorithm's state at full depth, as of the stage's start.
      full_bank: what clients keep, at full depth, as of the stage's start; on the host.
      server, bank, layer_map: of the stage under way. record: JSON-ready totals and stage records.
    """

    full: PyTree
    layer_map: LayerMap
    full_bank: PyTree
    server: PyTree = None
    bank: PyTree = None
    round: int = 0
    stage: int = -1
    rounds_in_stage: int = 0
    record: dict[str, Any] = field(default_factory=dict)


def bundled_model() -> Path:
    """The folder of the small LLaMA that comes with the package."""
    return Path(str(resources.files("devft_jax") / "assets" / "base"))


def fuse_blocks(layer_map: LayerMap, source: Block, base: Block, *, repack: bool, dtype: Any) -> Block:
    """The representative layers of a stage, fused one leaf at a time so that only one expanded leaf is held besides.

    Args:
      layer_map: not the identity.
      source: [L, ...], what is fused: floats (numpy or JAX) or packed.
      base: [L, ...], the base's own layers; what is a float there stays one, of that dtype.
      repack: pack the other leaves again, each in its own kind, where layers that are only picked keep their codes;
        otherwise they are expanded to `dtype`.
    """

    def one(leaf: Any, own: Any) -> Any:
        fused = fuse(layer_map, leaf)
        if not isinstance(own, QTensor):
            return fused.astype(own.dtype)
        if repack:
            return fused if isinstance(fused, QTensor) else quantize_projection("a fused projection", fused, own.kind)
        return fused.dequantize(dtype) if isinstance(fused, QTensor) else fused.astype(dtype)

    return jax.tree.map(one, source, base, is_leaf=lambda leaf: isinstance(leaf, QTensor))


class Trainer:
    """One run's machinery: fixed parts built once, and the `State` that its methods advance.

    Args:
      config: validated here. model, data, algorithm, growth: objects that take the place of what the config names.
      progress: where progress is told.
      scratch: folder for what is too large for memory while a stage lasts; None for the system's temporary one.

    Raises:
      InputError: anything about the request that cannot work; nothing has been compiled or written by then.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        model: Model | None = None,
        data: FederatedData | None = None,
        algorithm: Algorithm | None = None,
        growth: Growth | None = None,
        progress: Progress,
        scratch: Path | None = None,
    ):
        validate(config)
        if data is None:
            check_data_found(config)
        self.config = config
        self.progress = progress
        self.devices = local_devices(config)
        self.compute = resolve_compute(config)
        self.programs = CompiledPrograms()
        self.energy = EnergyMeter(config, self.devices)
        self.model = self._quantized(model) if model else self._load_model()
        layers = self.model.config.layers
        self.growth = growth or named_growth(config, layers)
        self.depths = planned_depths(self.growth, layers)
        self.stage_rounds = plan_stages(config, self.growth, layers)
        validate_learning_rate(config, len(self.stage_rounds))
        self.algorithm = algorithm or ALGORITHMS[config.algorithm](config)
        check_composition(self.algorithm, planned_stages(self.growth, layers) or ())
        self._probe = self._probe_examples() if hasattr(self.growth, "prepared") else None
        self.data = data or build_federated_data(config, self.model.tokenizer, seed=config.seed)
        self._check_cohort()
        self._check_tokens()
        self.participants, self.local_steps = config.clients_per_round, config.local_steps
        if self.algorithm.pools:
            self.data = pool(self.data)
            self.participants, self.local_steps = 1, config.clients_per_round * config.local_steps
        # Beyond the participants there would only be padding, which costs as much as a client.
        training_devices = self.devices[: self.participants]
        most = -(-self.participants // len(training_devices)) * len(training_devices)
        self.clients_per_step = min(resolve_clients_per_step(config, training_devices), most)
        self.buckets = length_buckets(config.max_length)
        self.cohort = Cohort(
            self.algorithm,
            self.model.config,
            self.compute,
            config,
            devices=training_devices,
            clients_per_step=self.clients_per_step,
            assemble=self.assemble,
            programs=self.programs,
        )
        # Layers are compared and fused on one device; what clients use is replicated over all of them.
        self.base = jax.device_put(self.model.base, self.cohort.shared)
        self.held_out = None
        if self.data.test is not None:
            self.held_out = HeldOut(
                self.model.config,
                self.compute,
                self.data.test,
                buckets=self.buckets,
                batch_size=config.evaluation_batch,
                devices=self.devices,
                programs=self.programs,
            )
        self.clients = profiled_clients(self.data, self.model.base.embed, config.seed)
        self.ids = np.array([client.id for client in self.data.clients], np.uint32)
        self.stage_base: Base = self.base
        self.scratch = scratch
        self.prefix: PrefixCache | None = None
        self.versions = versions(self.devices[0])
        self._norms = jax.jit(self._adapter_norms)

    def _load_model(self) -> Model:
        """The configured model; `original_blocks` gives its layers before they were packed."""
        path = bundled_model() if self.config.model == "bundled" else self.config.model
        self.original_blocks = lambda: load_original_blocks(path)
        return load_pretrained(path, dtype=self.compute.dtype, quantization=self.config.quantization)

    def _quantized(self, model: Model) -> Model:
        """A given model, packed if the configuration says so and it is not yet."""
        self.original_blocks = lambda: model.base.blocks
        if self.config.fuse_from == "original" and is_quantized(model.base):
            raise InputError(
                "fuse_from 'original' needs the model's float weights and the given model is packed; give a float model, "
                "or fuse from 'packed'."
            )
        if self.config.quantization == "none":
            return model
        return model.with_base(quantize_base(model.base, self.config.quantization))

    def _probe_examples(self) -> Examples:
        """The public text on which a growth has the layers measured."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise InputError(
                f"growth '{self.config.growth}' measures the layers on text and the given model has no tokenizer; give one "
                "with it, or a growth that has been prepared."
            )
        return public_examples(self.config.probe_data, self.config.probe_examples, tokenizer, self.config)

    def block_influence(self) -> list[float]:
        """How much each layer of the untuned base changes what passes through it: 1 - the mean cosine, over all tokens."""
        assert self._probe is not None
        config, compute = self.model.config, self.compute
        cosines = jax.jit(lambda base, tokens, real: layer_cosines(config, base, tokens, real, compute=compute))
        total, count = np.zeros(config.layers), 0
        for index, tokens, _ in evaluation_batches(self._probe, self.config.evaluation_batch, self.buckets):
            lengths = np.where(index < 0, 0, self._probe.lengths[index])
            real = np.arange(tokens.shape[-1]) < lengths[:, None]
            total += np.asarray(self.programs.call("influence", cosines, self.model.base, tokens, real), float)
            count += int(real.sum())
        return (1 - total / count).tolist()

    def _check_cohort(self) -> None:
        clients, wanted = len(self.data.clients), self.config.clients_per_round
        if clients == 0:
            raise InputError("the data has no clients; give at least one client with an example.")
        if wanted > clients:
            raise InputError(
                f"clients_per_round {wanted} exceeds the {clients} clients of the data; use {clients} or fewer."
            )
        for client in self.data.clients:
            if len(client.indices) == 0:
                raise InputError(f"the client '{client.name}' has no examples; leave it out.")

    def _check_tokens(self) -> None:
        """The data fits the model: an id outside the vocabulary would silently become another token's."""
        limit, context = self.config.max_length, self.model.config.max_length
        for name, examples in (("training", self.data.train), ("held-out", self.data.test)):
            if examples is None:
                continue
            if int(examples.tokens.max()) >= self.model.config.vocabulary:
                raise InputError(
                    f"the {name} data holds token {int(examples.tokens.max())} and the model's vocabulary ends at "
                    f"{self.model.config.vocabulary - 1}; use the tokenizer that belongs to the model."
                )
            longest = int(examples.lengths.max())
            if longest > limit:
                raise InputError(f"the {name} data holds an example of {longest} tokens; raise max_length {limit} to it.")
            if longest > context:
                self.progress.warn(
                    f"the {name} data holds an example of {longest} tokens and the model was made for {context}; "
                    "lower max_length to stay inside."
                )

    # ---- beginning and resuming ----------------------------------------------------------------------------------

    def begin(self) -> State:
        """The state before the first round, with the untuned base evaluated."""
        full = self._init_server(self.clients)
        identity = LayerMap.identity(self.model.config.layers)
        # Banks live in host memory: an accelerator may be too small for every client's row at once.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            full_bank = jax.device_get(self.algorithm.init_bank(self.clients, full))
        state = State(full=full, full_bank=full_bank, layer_map=identity)
        state.record = {
            "seconds": dict.fromkeys(("train", "compile", "build", "evaluate"), 0.0),
            "bytes_up": 0,
            "bytes_down": 0,
            "bytes_stage": 0,
            "bytes_missed": 0,
            "catch_up": {"sent": 0, "received": {}},
            "train_flops": 0,
            "joules": {},
            "dropped": 0,
            "stages": [],
            "stage_rounds": list(self.stage_rounds),
            "lengthened_after": 0,
            "resumed_after": [],
            "clients_per_step": self.clients_per_step,
            "devices": len(self.devices),
            "data": self.data_fingerprint(),
            "base": base_fingerprint(self.model.base),
        }
        base = self.evaluate(state, self.base, None)
        state.record["base_loss"] = None if base is None else base.loss
        state.record["base_accuracy"] = None if base is None else base.accuracy
        return state

    def _init_server(self, clients: Clients) -> PyTree:
        key = run_key(self.config.seed, Purpose.INITIALISATION)
        return self.algorithm.init_server(key, self.model.config, clients)

    def data_fingerprint(self) -> str:
        """Tells the tokenised training and held-out data and their split apart."""
        parts = [part for part in (self.data.train, self.data.test) if part is not None]
        # A part held out shares its tokens with the part trained on.
        tokens = {id(array): array for part in parts for array in (part.tokens, part.is_answer)}
        arrays = [*tokens.values(), *(array for part in parts for array in (part.starts, part.lengths))]
        clients = [item for client in self.data.clients for item in (client.name, client.id, client.indices)]
        return fingerprint(*arrays, *clients)

    def resume(self, folder: RunFolder, round_index: int) -> State:
        """The state of a checkpoint, with the stage's submodel rebuilt from its LayerMap."""
        record = folder.read_record(round_index)
        for name, found in (("data", self.data_fingerprint()), ("base", base_fingerprint(self.model.base))):
            if record[name] != found:
                raise InputError(
                    f"the {name} of the run in {folder.path} has changed since it was started; "
                    "restore it, or start a new run in another folder."
                )
        planned = tuple(record["stage_rounds"])
        self.stage_rounds = self._extended(planned, folder)
        if self.stage_rounds != planned:
            record["stage_rounds"] = list(self.stage_rounds)
            record["lengthened_after"] = record["round"]
        if record["round"] < sum(self.stage_rounds):
            record["resumed_after"].append(record["round"])
        for name, now in (
            ("clients_per_step", self.clients_per_step),
            ("devices", len(self.devices)),
        ):
            if record[name] != now:
                self.progress.warn(
                    f"{name} was {record[name]} and is {now}: the run goes on, equal up to rounding but not bit for bit."
                )
                record[name] = now
        # Shapes need no look at the data, and what clients keep of it is in the checkpoint.
        clients = Clients(len(self.data.clients))
        full = jax.eval_shape(lambda: self._init_server(clients))
        groups, bare = record["groups"], record["bare"]
        layers = self.model.config.layers
        shaped = LayerMap.shapes(groups, layers, bare)
        server = jax.eval_shape(self.algorithm.submodel, full, shaped)
        full_bank = jax.eval_shape(lambda full: self.algorithm.init_bank(clients, full), full)
        bank = mapped_shapes(self.algorithm.submodel_row, full_bank, shaped)
        shapes = {"full": full, "full_bank": full_bank, "server": server, "bank": bank, "layer_map": shaped}
        arrays = folder.read_arrays(round_index, shapes)
        state = State(
            full=arrays["full"],
            full_bank=jax.device_get(arrays["full_bank"]),
            server=arrays["server"],
            bank=jax.device_get(arrays["bank"]),
            layer_map=arrays["layer_map"],
            round=record["round"],
            stage=record["stage"],
            rounds_in_stage=record["rounds_in_stage"],
            record=record,
        )
        self._build_submodel(state, self._blocks_to_fuse(state.stage))
        if state.rounds_in_stage < self.stage_rounds[state.stage]:
            self._open_prefix(state)
        return state

    def _extended(self, planned: tuple[int, ...], folder: RunFolder) -> tuple[int, ...]:
        """The stages of the interrupted run; a larger `rounds` lengthens the last of them."""
        wanted = sum(self.stage_rounds)
        if wanted < sum(planned):
            raise InputError(
                f"rounds {wanted} is fewer than the {sum(planned)} of the run in {folder.path}; "
                "a run can be lengthened, not shortened."
            )
        return (*planned[:-1], planned[-1] + wanted - sum(planned))

    def save(self, folder: RunFolder, state: State) -> None:
        """One checkpoint of everything."""
        record = {
            **state.record,
            "round": state.round,
            "stage": state.stage,
            "rounds_in_stage": state.rounds_in_stage,
            "groups": state.layer_map.num_groups,
            "bare": state.layer_map.bare,
        }
        arrays = {
            "full": state.full,
            "full_bank": state.full_bank,
            "server": state.server,
            "bank": state.bank,
            "layer_map": state.layer_map,
        }
        folder.save_checkpoint(state.round, arrays, record)

    # ---- stages --------------------------------------------------------------------------------------------------

    def begin_stage(self, state: State, history: Sequence[dict[str, Any]]) -> bool:
        """Ask the growth for the next stage and enter it; False when there is none."""
        stage = state.stage + 1
        if stage >= len(self.stage_rounds):
            return False
        began = time.perf_counter()
        blocks = self._blocks_to_fuse(stage)
        adapter = self.algorithm.view(state.full)
        tree = (blocks, adapter.lora, adapter.delta)
        key = jax.random.fold_in(run_key(self.config.seed, Purpose.GROWTH), stage)
        if self._probe is not None:
            if "block_influence" not in state.record:
                state.record["block_influence"] = self.block_influence()
            # Kept, so that a resumed run chooses by the same figures wherever it goes on.
            self.growth = self.growth.prepared(lambda: np.asarray(state.record["block_influence"]))  # type: ignore[attr-defined]
        try:
            transition = next_stage(self.growth, stage, tree, history, key)
        except ValueError as error:
            raise RunError(f"stage {stage + 1} could not be built: {error}") from error
        if transition is None:
            return False
        check_composition(self.algorithm, [StageShape.of(transition.layer_map)])
        layer_map = dataclasses.replace(transition.layer_map, align=self.config.gauge_alignment)
        runs_base = layer_map.runs_base
        state.layer_map, state.stage, state.rounds_in_stage = layer_map, stage, 0
        state.server = self.algorithm.submodel(state.full, layer_map)
        state.bank = map_rows(lambda row: self.algorithm.submodel_row(row, layer_map), state.full_bank)
        self._build_submodel(state, blocks)
        # The base may be replicated over devices; what an algorithm derives from it is computed on the first.
        base = jax.tree.map(lambda leaf: leaf.addressable_data(0), self.stage_base)
        if layer_map.bare and self.algorithm.enter is not same_server:
            base = base.replace(blocks=jax.tree.map(lambda leaf: leaf[layer_map.bare :], base.blocks))
        state.server = self.algorithm.enter(state.server, base)
        jax.block_until_ready((self.stage_base, state.server))
        self._open_prefix(state)
        assign = np.asarray(layer_map.assign)
        groups = [np.flatnonzero(assign == group) for group in range(layer_map.num_groups)]
        record = {
            "layers": layer_map.num_groups,
            "depth": layer_map.depth,
            "trained": _trained_layers(layer_map),
            "planned_rounds": self.stage_rounds[stage],
            "rounds": 0,
            "seconds": 0.0,
            "bytes_up": 0,
            "bytes_down": 0,
            "assign": assign.tolist(),
            "group_sizes": [len(group) for group in groups],
            "groups": None if runs_base else [group.tolist() for group in groups],
            "anchor_coefficients": None if runs_base else _anchor_coefficients(layer_map),
            "transition_gap": float(transition.gap),
            "similarity": _rounded(transition.similarity),
            "spectrum": _rounded(transition.spectrum),
            "submodel_bytes": 0 if self.algorithm.pools else self._submodel_bytes(layer_map),
            "cached_layers": 0 if self.prefix is None else self.prefix.layers,
            "clients": [],
        }
        state.record["stages"].append(record)
        state.record["seconds"]["build"] += time.perf_counter() - began
        judged = self.judge_stage(state)
        record["loss_start"] = None if judged is None else judged.loss
        self.progress.stage(stage, len(self.stage_rounds), record, self._loss_before(state))
        negative = [value for value in record["anchor_coefficients"] or () if value is not None and value < 0]
        if negative:
            self.progress.warn(
                f"an anchor's weight is negative ({min(negative):.2f}), as Eq. 5 has it for a group this large; "
                "--beta auto avoids it."
            )
        return True

    def _loss_before(self, state: State) -> float | None:
        """Held-out loss of the full model before the stage that has just begun."""
        earlier = state.record["stages"][:-1]
        return earlier[-1]["loss_full_after_transfer"] if earlier else state.record["base_loss"]

    def _blocks_to_fuse(self, stage: int) -> Block:
        """The layers that a stage is grouped and fused from: the base's, or the original ones of a quantised base."""
        full_depth = self.depths is not None and self.depths[stage : stage + 1] == (self.model.config.layers,)
        # A stage at full depth fuses nothing, so that nothing need be read for it.
        return self.model.base.blocks if self.config.fuse_from == "packed" or full_depth else self.original_blocks()

    def _build_submodel(self, state: State, blocks: Block) -> None:
        """Fuse the stage's frozen layers; a map that runs the base as it is keeps the base itself."""
        if state.layer_map.runs_base:
            self.stage_base = self.base
            return
        own, repack = self.model.base.blocks, self.config.fused_precision == "packed"
        fused = fuse_blocks(state.layer_map, blocks, own, repack=repack, dtype=self.compute.dtype)
        self.stage_base = self.base.replace(blocks=jax.device_put(fused, self.cohort.shared))

    def _open_prefix(self, state: State) -> None:
        """Begin the store of what the stage's bare layers make, if there is to be one, and let that of another stage go."""
        self._close_prefix()
        bare, choice = state.layer_map.bare, self.config.prefix_cache
        if bare == 0 or choice == "off":
            return
        first = state.round - state.rounds_in_stage
        rounds = range(first, first + self.stage_rounds[state.stage])
        visits = Visits.count((member.examples for index in rounds for member in self.members(index)), self.data.train)
        rows = self.clients_per_step * self.config.batch_size
        token_bytes = self.model.config.width * np.dtype(self.compute.dtype).itemsize
        chunk_tokens = rows // self.cohort.mesh.size * self.local_steps * self.buckets[-1]
        if choice == "auto" and not worth_storing(visits, token_bytes=token_bytes, chunk_tokens=chunk_tokens):
            return
        self.prefix = PrefixCache(
            self.model.config,
            self.compute,
            self.data.train,
            layers=bare,
            rows=rows,
            buckets=self.buckets,
            mesh=self.cohort.mesh,
            programs=self.programs,
            folder=self.scratch,
        )
        self.progress.say(
            f"the lowest {bare} layers run once for each of {visits.distinct:,} examples, not in {visits.total:,} visits; "
            f"their hidden states take {readable_bytes(visits.tokens * token_bytes)}"
        )

    def _close_prefix(self) -> None:
        if self.prefix is not None:
            self.prefix.close()
            self.prefix = None

    def _submodel_bytes(self, layer_map: LayerMap) -> int:
        """What a client that holds the base needs besides: nothing, the numbers of the layers picked, or fused layers."""
        if layer_map.runs_base:
            return 0
        if layer_map.selected() is not None:
            return picked_layers_bytes(layer_map.num_groups)
        return message_bytes(self.stage_base.blocks)

    def shorten_stage(self, state: State, history: Sequence[dict[str, Any]]) -> None:
        """End the stage here if its loss has flattened; the rounds that it leaves go to the last stage."""
        losses = [row["loss"] for row in history if row["stage"] == state.stage]
        planned, self.stage_rounds = self.stage_rounds, after_round(self.config, self.stage_rounds, state.stage, losses)
        if self.stage_rounds != planned:
            state.record["stage_rounds"] = list(self.stage_rounds)
            self.progress.say(
                f"  the mean loss has flattened: stage {state.stage + 1} ends after {len(losses)} of "
                f"{planned[state.stage]} rounds, the rest goes to the last stage"
            )

    def end_stage(self, state: State) -> None:
        """Return what the stage learned to every layer, and record whether it survived."""
        self._close_prefix()
        record = state.record["stages"][-1]
        submodel = self.judge_stage(state)
        began = time.perf_counter()
        full, bank = jax.block_until_ready(self.transferred(state)), self.transferred_bank(state)
        state.full, state.full_bank = full, bank
        state.record["seconds"]["build"] += time.perf_counter() - began
        judged = submodel
        if not state.layer_map.is_identity:
            judged = self._judge(state, self.base, state.full, state.full_bank)
        if judged is not None and self.algorithm.consensus is not None and state.stage + 1 == len(self.stage_rounds):
            # At the run's end each client's own model, too, beside the one that stands for all of them.
            own = self._judge_clients(state, self.base, state.full, state.full_bank)
            judged = None if own is None else dataclasses.replace(judged, personal=own.personal)
        record["loss_end"] = None if submodel is None else submodel.loss
        record["loss_full_after_transfer"] = None if judged is None else judged.loss
        record["accuracy_full_after_transfer"] = None if judged is None else judged.accuracy
        record["personal"] = None if judged is None else judged.personal
        self.progress.stage_end(record)

    def transferred(self, state: State) -> PyTree:
        """The full-depth state with what the stage under way has learned so far."""
        return self.algorithm.transfer(state.full, state.server, state.layer_map, self.config.transfer)

    def transferred_bank(self, state: State) -> PyTree:
        """What clients keep, at full depth, with what the stage under way has taught them so far."""

        def one(full: PyTree, row: PyTree) -> PyTree:
            return self.algorithm.transfer_row(full, row, state.layer_map, self.config.transfer)

        return map_rows(one, state.full_bank, state.bank)

    # ---- rounds --------------------------------------------------------------------------------------------------

    def assemble(self, examples: np.ndarray) -> tuple[np.ndarray, ...]:
        """Padded rows of the training examples in the smallest length bucket that fits; -1 gives padding.

        Tokens and mask, and stored hidden states where the stage has them.
        """
        lengths = np.where(examples < 0, 0, self.data.train.lengths[examples])
        length = bucket_for(int(lengths.max()), self.buckets)
        batch = gather_batch(self.data.train, examples, length)
        return batch if self.prefix is None else (*batch, self.prefix.gather(examples, length))

    def members(self, round_index: int) -> list[ClientWork]:
        """The participants of a round (from 0) and what they do, by position."""
        positions = sample_cohort(self.config.seed, round_index, self.ids, self.participants)
        return [self.work(int(position), round_index) for position in positions]

    def work(self, position: int, round_index: int) -> ClientWork:
        """What one client does in a round (rounds counted from 0)."""
        client = self.data.clients[position]
        examples = draw_examples(
            client.indices,
            seed=self.config.seed,
            round=round_index,
            client_id=client.id,
            steps=self.local_steps,
            batch_size=self.config.batch_size,
        )
        weighting = self.algorithm.weighting if self.config.weighting == "method" else self.config.weighting
        weight = float(len(client.indices)) if weighting == "examples" else 1.0
        tokens = int(self.data.train.lengths[examples].sum())
        return ClientWork(position, client.id, weight, examples, tokens)

    def learning_rate(self, state: State) -> float:
        """The rate of the next round."""
        return learning_rate_at(self.config, self.stage_rounds, state.stage, state.rounds_in_stage)

    def restore_prefix(self, state: State) -> None:
        """Store again, after a resume, what the stage's earlier rounds stored, in the same batches."""
        if self.prefix is None or self.prefix.rounds >= state.rounds_in_stage:
            return
        first = state.round - state.rounds_in_stage
        self.progress.say(f"  storing the hidden states of the stage's first {state.rounds_in_stage} rounds again")
        for index in range(first + self.prefix.rounds, state.round):
            self._fill_prefix(self.members(index))

    def _fill_prefix(self, members: Sequence[ClientWork]) -> int:
        """Store the hidden states of a round's examples; the operations that it took."""
        if self.prefix is None:
            return 0
        rows_by_length = self.prefix.fill(self.stage_base, [member.examples for member in members])
        return sum(
            rows * length * prefix_flops(self.model.config, layers=self.prefix.layers, length=length)
            for length, rows in rows_by_length.items()
        )

    def prepare_client(self, state: State, position: int) -> tuple[ClientWork, tuple[np.ndarray, ...]]:
        """What one client does in the next round, of which it need be no participant, and the batches that it trains on."""
        member = self.work(position, state.round)
        self.restore_prefix(state)
        # First in the batches of the round itself, so that the client has the same hidden states as in it.
        for members in (self.members(state.round), [member]):
            self._fill_prefix(members)
        return member, self.assemble(member.examples)

    def round(self, state: State) -> dict[str, Any]:
        """One round; advances the state and returns its line of metrics."""
        self.restore_prefix(state)
        began, compiled = time.perf_counter(), self.programs.seconds
        self.programs.peak_bytes = 0
        counters = self.energy.read()
        members = self.members(state.round)
        positions = np.array([member.position for member in members])
        fill_flops = self._fill_prefix(members)
        rate = self.learning_rate(state)
        result = self.cohort.run(
            self.stage_base,
            state.server,
            state.bank,
            members,
            lr=rate,
            keys=lambda ids: client_keys(self.config.seed, np.uint32(state.round), ids),
            train_rows=np.asarray(state.layer_map.train),
        )
        self._report_nonfinite(state, members, result)
        state.server = jax.block_until_ready(result.server)
        state.bank = scatter_rows(state.bank, positions, result.bank_rows)
        seconds = time.perf_counter() - began - (self.programs.seconds - compiled)
        program_bytes = self.programs.peak_bytes
        norms = np.asarray(self.programs.call("adapter_norms", self._norms, state.server, result.bank_rows), float)
        state.round += 1
        state.rounds_in_stage += 1
        kept = result.finite
        row = {
            "round": state.round,
            "stage": state.stage,
            "layers": state.layer_map.num_groups,
            "loss": float(result.losses[kept].mean()),
            "learning_rate": rate,
            **{name: value if np.isfinite(value) else None for name, value in result.metrics.items()},
            "client_update_norm": float(result.update_norms[kept].mean()),
            "tokens": result.tokens,
            "seconds": seconds,
            "tokens_per_second": result.tokens / seconds,
            "bytes_up": 0 if self.algorithm.pools else result.bytes_up,
            "bytes_down": 0 if self.algorithm.pools else result.bytes_down,
            "bytes_missed": self._missed(state, positions, result.bytes_cumulative),
            "train_flops": fill_flops + self._flops(state, result),
            "program_bytes": program_bytes,
            "adapter_norms": [float(f"{norm:.6g}") if np.isfinite(norm) else None for norm in norms],
            "dropped": int(np.count_nonzero(~kept)),
            "clients": positions.tolist(),
        }
        self._account(state, row, self.programs.seconds - compiled)
        source, joules = self.energy.spent_since(counters, row["train_flops"])
        state.record["joules"][source] = state.record["joules"].get(source, 0.0) + joules
        return row

    def _adapter_norms(self, server: PyTree, rows: PyTree) -> jax.Array:
        """Norms f32[G] of the global model's update, or their means over the participants' own models."""
        personal = self.algorithm.personal
        if personal is None:
            return adapter_norms(self.algorithm.view(server))
        return jax.vmap(lambda row: adapter_norms(personal(server, row)))(rows).mean(axis=0)

    def _flops(self, state: State, result: RoundResult) -> int:
        """Operations of a round's training, over all participants; without layers whose hidden states were stored before."""
        layers = state.layer_map.depth - (0 if self.prefix is None else self.prefix.layers)
        return sum(
            rows
            * length
            * training_flops(
                self.model.config,
                layers=layers,
                adaptation=Adaptation.of(result.adapter, result.train, layers),
                frozen=frozen_rows(self.algorithm, np.asarray(state.layer_map.train)),
                length=length,
            )
            for length, rows in result.rows_by_length.items()
        )

    def _missed(self, state: State, positions: np.ndarray, sent: int) -> int:
        """Bytes of earlier messages that this round's participants sat out and need; `sent` is this round's part of them."""
        if self.algorithm.cumulative is None:
            return 0
        record = state.record["catch_up"]
        owed = sum(record["sent"] - record["received"].get(str(client), 0) for client in positions.tolist())
        record["sent"] += sent
        record["received"].update({str(client): record["sent"] for client in positions.tolist()})
        return owed

    def _account(self, state: State, row: dict[str, Any], compile_seconds: float) -> None:
        totals, stage = state.record, state.record["stages"][-1]
        for name in ("bytes_up", "bytes_down"):
            totals[name] += row[name]
            stage[name] += row[name]
        totals["bytes_missed"] += row["bytes_missed"]
        totals["train_flops"] += row["train_flops"]
        totals["dropped"] += row["dropped"]
        totals["seconds"]["train"] += row["seconds"]
        totals["seconds"]["compile"] += compile_seconds
        stage["seconds"] += row["seconds"]
        stage["rounds"] += 1
        newcomers = sorted(set(row["clients"]) - set(stage["clients"]))
        stage["clients"] += newcomers
        totals["bytes_stage"] += len(newcomers) * stage["submodel_bytes"]

    def _report_nonfinite(self, state: State, members: Sequence[ClientWork], result: RoundResult) -> None:
        """Name every participant whose update was dropped; too many of them end the run."""
        broken = [
            self._broken_client(state, members[index], result.losses[index])
            for index in np.flatnonzero(~result.finite).tolist()
        ]
        for sentence in broken:
            self.progress.warn(f"{sentence}; its update is dropped")
        if len(broken) / len(members) > self.config.max_nonfinite:
            name = self.data.clients[members[int(np.argmin(result.finite))].position].name
            raise RunError(
                f"{len(broken)} of {len(members)} updates are not finite, more than max_nonfinite "
                f"{self.config.max_nonfinite} allows ({broken[0]}); lower learning_rate in a new folder, or look "
                f"closer: devft replay {self.config.out} --client {name} --round {state.round + 1}"
            )

    def _broken_client(self, state: State, member: ClientWork, losses: np.ndarray) -> str:
        bad = np.flatnonzero(~np.isfinite(losses))
        step = int(bad[0]) + 1 if len(bad) else len(losses)
        what = f"the loss is {losses[bad[0]]}" if len(bad) else "the update is not finite"
        name = self.data.clients[member.position].name
        return f"client '{name}', stage {state.stage + 1}, round {state.round + 1}, step {step}: {what}"

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, state: State, base: Base, adapter: Adapter | None) -> Evaluation | None:
        """Held-out loss and exact match, timed; None without held-out data."""
        if self.held_out is None:
            return None
        began, compiled = time.perf_counter(), self.programs.seconds
        judged = self.held_out(base, adapter)
        compile_seconds = self.programs.seconds - compiled
        state.record["seconds"]["compile"] += compile_seconds
        state.record["seconds"]["evaluate"] += time.perf_counter() - began - compile_seconds
        return judged

    def judge_stage(self, state: State) -> Judgement | None:
        """The stage's model, or the clients' own models, on held-out data; None without it."""
        return self._judge(state, self.stage_base, state.server, state.bank)

    def judge_transferred(self, state: State) -> Judgement | None:
        """The full model as if the stage under way, of a submodel, ended now; None without held-out data."""
        began = time.perf_counter()
        full, bank = jax.block_until_ready(self.transferred(state)), self.transferred_bank(state)
        state.record["seconds"]["evaluate"] += time.perf_counter() - began
        return self._judge(state, self.base, full, bank)

    def global_adapter(self, state: State) -> Adapter | None:
        """The adapter of all clients at full depth, with what was learned so far; None where each only has its own."""
        if not self.algorithm.has_global_model:
            return None
        return self.algorithm.global_model(self.transferred(state), self.transferred_bank(state))

    def _judge(self, state: State, base: Base, server: PyTree, bank: PyTree) -> Judgement | None:
        if not self.algorithm.has_global_model:
            return self._judge_clients(state, base, server, bank)
        judged = self.evaluate(state, base, self.algorithm.global_model(server, bank))
        return None if judged is None else Judgement(judged.loss, judged.accuracy)

    def _judge_clients(self, state: State, base: Base, server: PyTree, bank: PyTree) -> Judgement | None:
        """Every client's own model."""
        personal = self.algorithm.personal
        assert personal is not None
        # Rows that are equal, as those of clients that have not trained yet, make one model; it is scored once.
        scores: dict[str, Evaluation] = {}
        names = []
        for position in range(len(self.data.clients)):
            row = jax.tree.map(lambda leaf, where=position: leaf[where], bank)
            names.append(fingerprint(*jax.tree.leaves(row)))
            if names[-1] not in scores:
                judged = self.evaluate(state, base, personal(server, row))
                if judged is None:
                    return None
                scores[names[-1]] = judged
        return Judgement.over_clients([scores[name] for name in names])

    def summary(self, state: State) -> dict[str, Any]:
        """The figures of a run, finished or as it stands, as `summary.json` and `record.json` hold them."""
        stages = [
            {name: value for name, value in stage.items() if name not in ("clients", "groups")}
            for stage in state.record["stages"]
        ]
        peak, source = peak_memory()
        last = stages[-1]
        return {
            "final_loss": last.get("loss_full_after_transfer"),
            "base_loss": state.record["base_loss"],
            "accuracy": last.get("accuracy_full_after_transfer"),
            "base_accuracy": state.record["base_accuracy"],
            "personal": last.get("personal"),
            "personal_models": not self.algorithm.has_global_model,
            "held_out_examples": 0 if self.data.test is None else len(self.data.test),
            "rounds": state.round,
            "stage_rounds": list(self.stage_rounds),
            "lengthened_after": state.record["lengthened_after"],
            "resumed_after": state.record["resumed_after"],
            "seconds": state.record["seconds"],
            "programs_compiled": self.programs.count,
            "bytes_up": state.record["bytes_up"],
            "bytes_down": state.record["bytes_down"],
            "bytes_stage": state.record["bytes_stage"],
            "bytes_missed": state.record["bytes_missed"],
            "base_bytes": message_bytes(self.model.base),
            "message_dtype": self.config.message_dtype,
            "train_flops": state.record["train_flops"],
            "energy": energy_summary(state.record["joules"], self.config, self.energy.joules_per_flop),
            "peak_memory_bytes": peak,
            "peak_memory_source": source,
            "scratch_bytes": self.programs.scratch_bytes,
            "updates_dropped": state.record["dropped"],
            "clients": len(self.data.clients),
            "devices": len(self.devices),
            "clients_per_step": self.clients_per_step,
            "block_influence": state.record.get("block_influence"),
            "versions": self.versions,
            "stages": stages,
        }


def _trained_layers(layer_map: LayerMap) -> list[int] | None:
    """The rows that learn, of the base itself the layers; None where all do."""
    if not layer_map.bare and np.all(layer_map.train):
        return None
    return (layer_map.bare + np.flatnonzero(layer_map.train)).tolist()


def _anchor_coefficients(layer_map: LayerMap) -> list[float | None]:
    """The coefficient of every group's first layer; None for a group that is computed for no layer of its own."""
    matrix, assign = np.asarray(layer_map.fuse), np.asarray(layer_map.assign)
    members = [np.flatnonzero(assign == group) for group in range(layer_map.num_groups)]
    return [float(row[layers[0]]) if len(layers) else None for row, layers in zip(matrix, members, strict=True)]


def _rounded(values: jax.Array | None) -> list[Any] | None:
    return None if values is None else np.round(np.asarray(values, float), 5).tolist()

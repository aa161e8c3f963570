"""What a run or an adapter becomes for other tools: folders that PEFT and transformers load.

    adapter            the adapter at full depth, in PEFT's format
    merged             the model with that adapter merged into its weights, in Hugging Face's layout
    submodel           a stage's submodel, its fused layers merged with its adapter, as a model of that depth
    submodel-adapter   the bare submodel as a model, and its adapter in the subfolder `adapter`

A run is read from its checkpoints, never trained or given its data: a checkpoint holds the server's state at full depth as
of the stage's start, the stage's own, and the stage's LayerMap, so the adapter at full depth is `transfer` of the three and
the submodel is `fuse` of the base. Where every client has a model of its own, the adapters are those of one client, from
the bank. Everything is computed in host memory.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.config.run_config import RunConfig, stored_config, validate
from devft_jax.data.answer_ends import SPLIT_FILE, ends_of_adapter, ends_of_run
from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError, RunError
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import algorithm_of
from devft_jax.federated.bank import BankView, ClientBank
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.files import existing_folder, write_atomically
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.families import read_config
from devft_jax.models.huggingface.folder import CONFIG_FILE, model_folder, named_from_anywhere
from devft_jax.models.huggingface.headers import stored_dtypes
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.settings import base_of_adapter
from devft_jax.models.huggingface.peft.writing import check_finite, export_peft
from devft_jax.models.huggingface.reading import load_original_blocks, load_pretrained
from devft_jax.models.huggingface.safetensors import DTYPES, json_text, one_line, read_json
from devft_jax.models.huggingface.tokenizer import load_tokenizer
from devft_jax.models.huggingface.writing import MAX_SHARD_BYTES, save_pretrained
from devft_jax.models.lora import as_low_rank
from devft_jax.reporting.progress import readable_bytes
from devft_jax.runtime.devices import host_device
from devft_jax.storage import EXPORT, EXPORT_FILE, RunFolder, claim
from devft_jax.training.checkpoints import restore_bank, stage_shapes
from devft_jax.training.fingerprints import base_fingerprint
from devft_jax.training.submodels import bundled_model, fuse_blocks

Form = Literal["adapter", "merged", "submodel", "submodel-adapter"]


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
      folder: where it lies. what: what it is, in words. size: bytes of its weights. how: how to load it.
    """

    folder: Path
    what: str
    size: int
    how: str

    def __str__(self) -> str:
        """All of it in one line."""
        return f"wrote {self.what} ({readable_bytes(self.size)}) to {self.folder}; {self.how}"


@dataclass(frozen=True)
class _Checkpoint:
    """What a run knew at one of its checkpoints.

    Attributes:
      full: the adapter at full depth, with what the stage under way had learned. submodel: the stage's own. Both are a
        client's where models are personal.
      layer_map: of the stage. stage: from 1. base: fingerprint of the run's base.
    """

    full: Adapter
    submodel: Adapter
    layer_map: LayerMap
    stage: int
    base: str


def export(
    source: str | Path,
    out: str | Path,
    *,
    form: Form = "adapter",
    stage: int | None = None,
    client: str | None = None,
    model: str | None = None,
    dtype: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers loads.

    The newest checkpoint is taken, of an unfinished run too. A quantised run's base is packed as the run had it and written
    dequantised, so that what is exported is what was trained.

    Args:
      source: a run's folder; or a PEFT adapter's, for the form merged.
      out: the folder to write; absent, empty, or an earlier export of the same request.
      form: one of the four above.
      stage: from 1; takes the newest checkpoint of that stage, adapter, merged and submodel then being as of that moment.
      client: whose model, by the name in the run's split; where every client has its own, and only there.
      model: the base, a folder, Hugging Face name or "bundled"; by default what the run or the adapter names.
      dtype: stored type of a model's weights, "bfloat16", "float32" or "float16"; "auto" is that of the base: what no
        adapter changes keeps its bytes. Adapters are float32.
      max_shard_bytes: a model's weights are split into files of at most this size.

    Returns:
      What was written.

    Raises:
      InputError: the request cannot be met; nothing has been written. RunError: the folder cannot be written.
    """
    if form not in get_args(Form):
        raise InputError(f"form '{form}' is unknown; choose from {', '.join(get_args(Form))}.")
    if dtype not in ("auto", *DTYPES.values()):
        raise InputError(f"dtype {dtype!r} is unknown; choose from auto, {', '.join(DTYPES.values())}.")
    source, out = Path(source).expanduser(), Path(out).expanduser().absolute()
    existing_folder(source, "name a run's folder or a PEFT adapter's")
    named = None if model is None else _resolved(model)
    request = {"source": str(source.resolve()), "form": form, "stage": stage, "client": client, "model": named}
    _check_out(out, request)
    job = _Job(out, form, dtype, max_shard_bytes, request)
    # Weights pass through host memory on their way from file to file; an accelerator may be too small for them.
    with jax.default_device(host_device()):
        if (source / ADAPTER_CONFIG_FILE).is_file():
            if client is not None:
                raise InputError(f"{source} is a PEFT adapter, which belongs to no client; leave client out.")
            return _export_adapter_folder(job, source, stage, model)
        return _export_run(job, source, stage, client, model)


@dataclass(frozen=True)
class _Job:
    """Where and how to write."""

    out: Path
    form: Form
    dtype: str
    max_shard_bytes: int
    request: dict[str, Any]

    def write_adapter(self, adapter: Adapter, what: str, base: str | None, ends: Sequence[int]) -> Exported:
        """A PEFT folder."""
        check_finite(adapter)
        self._begin()
        export_peft(adapter, self.out, base_model=base, answer_ends=ends)
        how = f"load it with PEFT: AutoPeftModelForCausalLM.from_pretrained('{self.out}')"
        return Exported(self.out, what, (self.out / ADAPTER_WEIGHTS_FILE).stat().st_size, how)

    def write_model(self, model: Model, adapter: Adapter | None, what: str, ends: Sequence[int]) -> Exported:
        """A model's folder, the adapter merged in."""
        assert model.folder is not None
        if adapter is not None:
            check_finite(adapter)
        self._begin()
        size = save_pretrained(
            self.out,
            model.config,
            model.base,
            adapter=adapter,
            dtype=stored_dtypes(model.folder) if self.dtype == "auto" else self.dtype,
            source=model.folder,
            answer_ends=ends,
            max_shard_bytes=self.max_shard_bytes,
        )
        how = f"load it with transformers: AutoModelForCausalLM.from_pretrained('{self.out}')"
        return Exported(self.out, what, size, how)

    def write_both(self, model: Model, adapter: Adapter, what: str, ends: Sequence[int]) -> Exported:
        """A model's folder, and its adapter within."""
        check_finite(adapter)
        folder = self.out / "adapter"
        self._begin()
        # The adapter of an earlier export is never beside another model.
        (folder / ADAPTER_CONFIG_FILE).unlink(missing_ok=True)
        written = self.write_model(model, None, what, ends)
        export_peft(adapter, folder, base_model=str(self.out), answer_ends=ends)
        size = written.size + (folder / ADAPTER_WEIGHTS_FILE).stat().st_size
        how = f"load both with PEFT: AutoPeftModelForCausalLM.from_pretrained('{folder}')"
        return Exported(self.out, what, size, how)

    def _begin(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / EXPORT_FILE, json_text(self.request))
        except OSError as error:
            raise RunError(f"the folder {self.out} cannot be written ({one_line(error)}); choose another folder.") from error


def _check_out(out: Path, request: dict[str, Any]) -> None:
    """Raise `InputError` unless the folder is free, or holds an export of the same request."""
    if claim(out, EXPORT) and read_json(out / EXPORT_FILE) != request:
        raise InputError(f"out {out} holds another export; name an absent or empty folder.")


def _resolved(model: str) -> str:
    """A base's folder as a path that holds from anywhere, or its Hugging Face name."""
    return str(bundled_model()) if model == "bundled" else named_from_anywhere(model)


# ---- a PEFT adapter --------------------------------------------------------------------------------------------------


def _export_adapter_folder(job: _Job, source: Path, stage: int | None, model: str | None) -> Exported:
    if job.form != "merged" or stage is not None:
        raise InputError(
            f"{source} is a PEFT adapter, which can be exported merged and without a stage; give --form merged alone, or "
            "a run's folder."
        )
    path = _resolved(model or base_of_adapter(source, "name it with --model"))
    adapter = import_peft(source, read_config(model_folder(path) / CONFIG_FILE))
    what = f"{path} merged with the adapter {source}"
    return job.write_model(load_pretrained(path), adapter, what, ends_of_adapter(source))


# ---- a run -----------------------------------------------------------------------------------------------------------


def _export_run(job: _Job, source: Path, stage: int | None, client: str | None, model: str | None) -> Exported:
    config = _run_config(source, model)
    if not algorithm_of(config).low_rank:
        raise InputError(
            f"the run in {source} ({config.algorithm}) has no low-rank adapter, which is all that other tools load; its "
            "checkpoints hold what it learned."
        )
    position = _client_position(source, config, client)
    path = _resolved(model or config.model)
    ends = ends_of_run(source, lambda: load_tokenizer(model_folder(path)))
    finished = source / "adapter"
    with RunFolder(source).reading() as folder:
        rounds = folder.last_rounds()
        if not rounds and stage is None and job.form in ("adapter", "merged") and (finished / ADAPTER_CONFIG_FILE).is_file():
            adapter = import_peft(finished, read_config(model_folder(path) / CONFIG_FILE))
            return _write_full(job, config, path, adapter, f"the adapter of {source} as it finished", None, ends)
        chosen = _chosen_round(folder, rounds, stage)
        total = sum(folder.read_record(max(rounds.values()))["stage_rounds"])
        checkpoint = _read_checkpoint(folder, chosen, config, read_config(model_folder(path) / CONFIG_FILE), position)
    when = f"of {source} after round {chosen} of {total}"
    if client is not None:
        when = f"of client '{client}' {when}"
    if job.form in ("adapter", "merged"):
        return _write_full(job, config, path, checkpoint.full, f"the adapter {when}", checkpoint.base, ends)
    small = _submodel(config, path, checkpoint)
    what = f"the submodel of stage {checkpoint.stage} {when}, {small.config.layers} layers"
    if job.form == "submodel":
        return job.write_model(small, checkpoint.submodel, f"{what}, merged with its adapter", ends)
    return job.write_both(small, checkpoint.submodel, f"{what}, and its adapter", ends)


def _write_full(
    job: _Job, config: RunConfig, path: str, adapter: Adapter, what: str, trained_on: str | None, ends: Sequence[int]
) -> Exported:
    """The adapter at full depth, alone or in its base, which is compared with the fingerprint of what it was trained on."""
    if job.form == "adapter":
        return job.write_adapter(adapter, what, path, ends)
    model = load_pretrained(path, quantization=config.quantization)
    _warn_of_another_base(model, trained_on)
    return job.write_model(model, adapter, f"{path} merged with {what}", ends)


def _warn_of_another_base(model: Model, trained_on: str | None) -> None:
    """Warn where the weights are not those that a run was trained on, in whichever precision it held them."""
    known = trained_on is None or trained_on in [base_fingerprint(model.base, dtype) for dtype in (None, *DTYPES.values())]
    if not known:
        warnings.warn(
            f"the weights of {model.path} are not those that the run was trained on; "
            "what is exported computes something else.",
            stacklevel=2,
        )


def _run_config(source: Path, model: str | None) -> RunConfig:
    """The configuration of a run that can be rebuilt from its folder."""
    stored = RunFolder(source).read_json("config.json")
    if stored is None or "model" not in stored:
        raise InputError(f"{source} holds neither a run nor a PEFT adapter; name a folder that `devft run` or PEFT wrote.")
    config, given = stored_config(stored, source)
    if "algorithm" in given:
        raise InputError(
            f"the run in {source} was given its algorithm as an object in Python, which its folder does not hold; write "
            "the adapter of its Run with export_peft."
        )
    if "model" in given and model is None:
        raise InputError(f"the run in {source} was given its model as an object in Python; name its folder with --model.")
    validate(config)
    return config


def _client_position(source: Path, config: RunConfig, client: str | None) -> int | None:
    """The client's position, where a client's own model is asked for; None for the global one."""
    algorithm = algorithm_of(config)
    if algorithm.personal is None:
        if client is not None:
            raise InputError(
                f"the run in {source} ({config.algorithm}) has one model for all clients; leave client '{client}' out."
            )
        return None
    if client is None and algorithm.has_global_model:
        return None
    names = _client_names(source)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if client is None:
        raise InputError(
            f"the run in {source} ({config.algorithm}) has no global model, but one for each client; choose one with "
            f"--client: {shown}."
        )
    if client not in names:
        raise InputError(f"client '{client}' is not one of the run's: {shown}.")
    return names.index(client)


def _client_names(source: Path) -> list[str]:
    """The run's clients, in the order of their rows."""
    clients = read_json(source / SPLIT_FILE).get("clients")
    clients = clients if isinstance(clients, list) else []
    names = [item["name"] for item in clients if isinstance(item, dict) and isinstance(item.get("name"), str)]
    if not names or len(names) < len(clients):
        raise InputError(f"{source / SPLIT_FILE} does not name the run's clients; restore it.")
    return names


def _not_in_place_of_a_damaged_one(folder: RunFolder, chosen: int) -> int:
    """The round, or `InputError` where the checkpoint after it cannot be read and may be the one that is wanted."""
    after = folder.checkpoint_after(chosen)
    if after is not None:
        folder.read_record(after)
    return chosen


def _chosen_round(folder: RunFolder, rounds: dict[int, int], stage: int | None) -> int:
    """The round of the newest checkpoint, of a stage (from 1) where one is asked for."""
    if not rounds:
        raise InputError(f"the run in {folder.path} has no checkpoint yet; let it train up to its first one.")
    newest = max(rounds.values())
    if stage is None:
        return _not_in_place_of_a_damaged_one(folder, newest)
    record = folder.read_record(newest)
    stages = len(record["stage_rounds"])
    if not 1 <= stage <= stages:
        raise InputError(f"stage {stage} is outside 1 to {stages}, the stages of the run in {folder.path}.")
    if stage - 1 in rounds:
        return _not_in_place_of_a_damaged_one(folder, rounds[stage - 1])
    kept = ", ".join(str(other + 1) for other in rounds)
    if stage - 1 > record["stage"]:
        raise InputError(f"the run in {folder.path} has not saved stage {stage} yet; choose from {kept}, or let it go on.")
    raise InputError(
        f"the run in {folder.path} has no readable checkpoint of stage {stage} any more; restore it, or choose from {kept}."
    )


def _read_checkpoint(
    folder: RunFolder, round_index: int, config: RunConfig, architecture: ModelConfig, position: int | None
) -> _Checkpoint:
    """One checkpoint's adapters and LayerMap; what its clients remember is read only where a model is made from it."""
    algorithm = algorithm_of(config)
    record = folder.read_record(round_index)
    key = run_key(config.seed, Purpose.INITIALISATION)
    # Only what clients keep depends on how many there are.
    clients = Clients(1 if algorithm.personal is None else len(_client_names(folder.path)))

    def init_server(clients: Clients) -> Any:
        return algorithm.init_server(key, architecture, clients)

    like = stage_shapes(algorithm, init_server, record, clients=clients.size, layers=architecture.layers)
    arrays = jax.tree.map(jnp.asarray, jax.device_get(folder.read_some_arrays(round_index, like)))
    full, server, layer_map = (arrays[name] for name in ("full", "server", "layer_map"))
    deep = algorithm.transfer(full, server, layer_map, config.transfer)
    if algorithm.personal is None:
        adapters = algorithm.view(deep), algorithm.view(server)
    else:
        bank = ClientBank(
            algorithm,
            lambda: init_server(clients),
            algorithm.traits(clients),
            clients=clients.size,
            mode=config.transfer,
        )
        restore_bank(folder, round_index, bank, arrays, align=config.gauge_alignment)

        def adapter_of(server: Any, rows: BankView) -> Adapter:
            if position is None:
                return algorithm.global_model(server, rows.of_trained())
            assert algorithm.personal is not None
            return algorithm.personal(server, jax.tree.map(lambda leaf: leaf[0], rows.take(np.array([position]))))

        adapters = adapter_of(deep, bank.view(full=True)), adapter_of(server, bank.view(full=False))
    return _Checkpoint(
        full=as_low_rank(adapters[0]),
        submodel=_on_every_layer(as_low_rank(adapters[1]), layer_map.bare),
        layer_map=layer_map,
        stage=record["stage"] + 1,
        base=record["base"],
    )


def _on_every_layer(adapter: Adapter, bare: int) -> Adapter:
    """An adapter of the last layers with factors of zero for the `bare` ones below, as other tools need it."""
    below = ((bare, 0), (0, 0), (0, 0))
    return adapter.replace(lora=jax.tree.map(lambda leaf: jnp.pad(leaf, below), adapter.lora))


def _submodel(config: RunConfig, path: str, checkpoint: _Checkpoint) -> Model:
    """The bare submodel of a stage, fused as the run fused it but kept in float32 where it stays a float."""
    layer_map = checkpoint.layer_map
    model = load_pretrained(path, quantization=config.quantization, dtype="float32")
    _warn_of_another_base(model, checkpoint.base)
    if layer_map.runs_base:
        return model
    own = model.base.blocks
    source = own if config.fuse_from == "packed" else load_original_blocks(path)
    repack = config.fused_precision == "packed"
    blocks = fuse_blocks(layer_map, source, own, repack=repack, dtype=jnp.float32)
    config_of_stage = model.config.with_layers(layer_map.num_groups)
    return Model(config_of_stage, model.base.replace(blocks=blocks), model.folder)

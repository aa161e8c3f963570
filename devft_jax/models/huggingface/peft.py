"""Adapters in the format of Hugging Face's PEFT, out and in, without PyTorch.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, which `PeftModel.from_pretrained` loads onto the
base that the adapter was trained on. PEFT writes the update of layer i as `lora_B @ lora_A` on `[out, in]` weights, so
its `lora_A.weight [r, in]` is our `a[i].T` and its `lora_B.weight [out, r]` our `b[i].T` (Hu et al. 2022, with A and B
as PEFT names them). Ranks and alphas may vary by module: `rank_pattern` and `alpha_pattern` name modules by regular
expressions that match the end of their paths. The scale is alpha / r, or alpha / sqrt(r) where it is rank-stabilised
(Kalajdzievski 2023). Import accepts only what an `Adapter` computes exactly and refuses every variant of LoRA that PEFT
would compute otherwise.

An adapter fits a base of its own depth: that of a stage's submodel is mapped back to full depth before it is exported.

Axis letters: L layers, r rank.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable
from devft_jax.models.adapter import Adapter, LoraFactors, layer_scales
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.huggingface.expressions import full_matches
from devft_jax.models.huggingface.folder import GENERATION_CONFIG_FILE, check_inside
from devft_jax.models.huggingface.names import PROJECTION_MODULES
from devft_jax.models.huggingface.safetensors import (
    DTYPES,
    PlannedTensor,
    open_safetensors,
    read_json,
    replace_files,
    write_json,
    write_safetensors,
)

T = TypeVar("T")
Module = tuple[int, str]
"""A layer and the name of one of its projections."""

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

PREFIX_WORDS = frozenset({"base_model", "model"})
"""What stands before `layers` in a factor's name: PEFT writes `base_model.model.model.`, others fewer of them or none."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts of names that data parallelism, compilation and activation checkpointing leave behind, anywhere in them."""

LARGEST_ALPHA = 1e30
"""Of scales, which are computed with in float32."""

PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; others, such as "pissa", change it on loading."""

UNSUPPORTED_FIELDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
"""Fields that, where set, make PEFT compute something else than `x @ W + scale * (x @ a) @ b` in every module."""


def export_peft(
    adapter: Adapter, path: str | Path, *, base_model: str | None = None, answer_ends: Sequence[int] = ()
) -> None:
    """Write an adapter as a folder that PEFT loads, in float32.

    A layer's rank is what remains of its factors without trailing columns of `a` and rows of `b` that are zero in both, at
    least 1. Ranks and alphas that vary are written as `rank_pattern` and `alpha_pattern`.

    Args:
      adapter: factors of every layer of the model.
      path: the folder, made if absent; older files of the two names are replaced once the new ones are complete.
      base_model: folder or Hugging Face name of the base that the adapter belongs to.
      answer_ends: ids of the tokens at which its answers end, kept in a generation_config.json beside it.

    Raises:
      InputError: the adapter has no factors, holds NaN or infinite values, or is made by a hypernetwork, which PEFT does not
        know.
      RunError: the folder cannot be written.
    """
    if adapter.hyper is not None:
        raise InputError("PEFT knows no adapter that a hypernetwork makes; keep the run's checkpoints.")
    if not adapter.lora:
        raise InputError("the adapter adapts no projection; give one with factors.")
    check_finite(adapter)
    tensors: dict[str, PlannedTensor] = {}
    ranks: dict[Module, int] = {}
    alphas: dict[Module, float] = {}
    targets = [name for name in PROJECTIONS if name in adapter.lora]
    depth = adapter.lora[targets[0]].a.shape[0]
    scales = layer_scales(adapter, depth)
    for name in targets:
        a, b = (np.asarray(part, np.float32) for part in (adapter.lora[name].a, adapter.lora[name].b))
        for layer in range(depth):
            used = np.flatnonzero(a[layer].any(axis=0) | b[layer].any(axis=1))
            rank = int(used[-1]) + 1 if len(used) else 1
            ranks[layer, name] = rank
            alphas[layer, name] = _alpha(scales[name][layer], rank)
            for factor, values in (("A", a[layer, :, :rank].T), ("B", b[layer, :rank].T)):
                make = functools.partial(np.asarray, values)
                tensors[_tensor_name(layer, name, factor)] = PlannedTensor(values.shape, "float32", make)
    rank, rank_pattern = _shared_and_pattern(ranks)
    alpha, alpha_pattern = _shared_and_pattern(alphas)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [f"{name}_proj" for name in targets],
    }
    fields |= {"rank_pattern": rank_pattern} if rank_pattern else {}
    fields |= {"alpha_pattern": alpha_pattern} if alpha_pattern else {}
    files: dict[str, Callable[[Path], Any]] = {
        ADAPTER_WEIGHTS_FILE: lambda file: write_safetensors(file, tensors),
        ADAPTER_CONFIG_FILE: lambda file: write_json(file, fields),
    }
    if answer_ends:
        ends = {"eos_token_id": list(answer_ends)}
        files[GENERATION_CONFIG_FILE] = lambda file: write_json(file, ends)
    replace_files(Path(path), files, key_file=ADAPTER_CONFIG_FILE, stale=GENERATION_CONFIG_FILE.__eq__)


def check_finite(adapter: Adapter) -> None:
    """Raise `InputError` for a NaN or infinite factor, which would turn all that a model says into NaN."""
    for name, factors in adapter.lora.items():
        for factor, values in (("A", factors.a), ("B", factors.b)):
            broken = np.flatnonzero(~np.isfinite(np.asarray(values, np.float32)).all(axis=(1, 2)))
            if len(broken):
                raise InputError(
                    f"the adapter's lora_{factor} of {name}_proj holds NaN or infinite values in layer {broken[0]}, counted "
                    "from 0, so that the model could compute nothing with it; take it as of an earlier stage or checkpoint."
                )


def _alpha(scale: jax.Array, rank: int) -> float:
    """The alpha that gives back `scale` exactly, a whole number where one does."""
    exact = np.float32(scale)
    alpha = float(exact) * rank
    return round(alpha) if np.float32(round(alpha) / rank) == exact else alpha


def _shared_and_pattern(values: Mapping[Module, T]) -> tuple[T, dict[str, T]]:
    """The commonest value, and PEFT's pattern for the modules that have another.

    A projection with one value in all layers is named once for all of them, otherwise module by module.
    """
    shared = Counter(values.values()).most_common(1)[0][0]
    pattern: dict[str, T] = {}
    for name in dict.fromkeys(name for _, name in values):
        layers = {layer: value for (layer, other), value in values.items() if other == name}
        if len(set(layers.values())) == 1:
            named = {f"{name}_proj": layers[0]}
        else:
            named = {_module_name(layer, name): value for layer, value in layers.items()}
        pattern |= {module: value for module, value in named.items() if value != shared}
    return shared, pattern


def _module_name(layer: int, projection: str) -> str:
    return f"model.layers.{layer}.{PROJECTION_MODULES[projection]}"


def _tensor_name(layer: int, projection: str, factor: str) -> str:
    return f"base_model.model.{_module_name(layer, projection)}.lora_{factor}.weight"


def import_peft(path: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter that PEFT or `export_peft` wrote.

    Factors of smaller rank are padded with zeros to the largest of their projection; layers that
    `layers_to_transform`, `target_modules` or `exclude_modules` leave out have zero factors.

    Args:
      path: a folder with `adapter_config.json` and `adapter_model.safetensors`.
      config: the architecture of the base that the adapter is for.

    Returns:
      The adapter, its factors in float32; its scale is one scalar where all modules have the same.

    Raises:
      InputError: the files cannot be read, describe anything but plain LoRA on linear projections, or do not fit
        `config`.
    """
    folder = checked_path(path, "adapter")
    fields = read_adapter_config(folder)
    settings = _Settings.read(fields, folder / ADAPTER_CONFIG_FILE, config.layers)
    file = folder / ADAPTER_WEIGHTS_FILE
    if not file.is_file():
        raise InputError(
            f"the adapter folder {folder} holds no {ADAPTER_WEIGHTS_FILE}; save the adapter as safetensors, because "
            "pickles are not read."
        )
    lora, scales = {}, {}
    with open_safetensors(file) as tensors:
        factors = _factors(list(tensors.keys()), file)
        for projection in _targets(factors, config, file, settings):
            fan_in, fan_out = config.projection_shape(projection)
            modules = [_module_name(layer, projection) for layer in range(config.layers)]
            adapted = [layer for layer, module in enumerate(modules) if module in settings.adapted]
            ranks = [settings.rank_of(module) for module in modules]
            # The file's header tells whether sizes are so before anything is made of them.
            for layer in adapted:
                for factor, shape in (("A", (ranks[layer], fan_in)), ("B", (fan_out, ranks[layer]))):
                    key = _Key(layer, projection, factor)
                    _check_stored(factors.get(key), key, tensors, shape, file, settings)
            largest = max((ranks[layer] for layer in adapted), default=1)
            a = np.zeros((config.layers, fan_in, largest), np.float32)
            b = np.zeros((config.layers, largest, fan_out), np.float32)
            for layer in adapted:
                one, other = (factors[_Key(layer, projection, factor)] for factor in "AB")
                a[layer, :, : ranks[layer]] = _finite(tensors.get_tensor(one), one, layer, file).T
                b[layer, : ranks[layer]] = _finite(tensors.get_tensor(other), other, layer, file).T
            lora[projection] = LoraFactors(a=jnp.asarray(a), b=jnp.asarray(b))
            scales[projection] = np.array([settings.scale_of(module) for module in modules], np.float32)
    different = np.unique(np.concatenate(list(scales.values())))
    scale = jnp.float32(different[0]) if len(different) == 1 else jax.tree.map(jnp.asarray, scales)
    return Adapter(lora=lora, scale=scale, dropout=settings.dropout)


def base_of_adapter(folder: Path, remedy: str) -> str:
    """The folder or the Hugging Face name of the base that a PEFT adapter says it belongs to; `remedy` ends the sentence.

    Raises:
      InputError: it names none.
    """
    named = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"{folder / ADAPTER_CONFIG_FILE} does not name the adapter's base; {remedy}.")
    return named


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The fields of an adapter folder's `adapter_config.json`.

    Raises:
      InputError: the file cannot be read, or describes anything but plain LoRA on linear projections.
    """
    if folder.is_dir():
        check_inside(folder)
    fields = read_json(folder / ADAPTER_CONFIG_FILE)
    _refuse_other_methods(fields, folder / ADAPTER_CONFIG_FILE)
    return fields


@dataclass(frozen=True)
class _Settings:
    """What an `adapter_config.json` says about every module of a model.

    `ranks` and `alphas` are those of modules that the patterns name. `adapted` are the modules that PEFT adapts, `asked`
    tells that they are named, so that their factors must be there.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dropout: float
    adapted: frozenset[str]
    asked: bool
    base: str | None

    @classmethod
    def read(cls, fields: Mapping[str, Any], path: Path, depth: int) -> Self:
        """Check and take the fields of the file at `path`, for a model of `depth` layers."""
        dropout = fields.get("lora_dropout") or 0.0
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise InputError(f"lora_dropout {_shown(dropout)} in {path} is outside [0, 1); correct it.")
        layers = fields.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers or None
        if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
            raise InputError(f"layers_to_transform {_shown(layers)} in {path} is no list of layers; correct it.")
        modules = {_module_name(layer, name): layer for layer in range(depth) for name in PROJECTIONS}
        matcher = _Matcher(list(modules), path)
        rank = _checked_rank("r", fields.get("r"), path)
        alpha = _checked_alpha("lora_alpha", fields.get("lora_alpha"), path)
        ranks = matcher.endings(fields, "rank_pattern", _checked_rank)
        alphas = matcher.endings(fields, "alpha_pattern", _checked_alpha)
        targets = matcher.named(fields, "target_modules")
        excluded = matcher.named(fields, "exclude_modules")
        matcher.match()
        chosen = modules.keys() if targets is None else targets()
        left_out = set() if excluded is None else excluded()
        within = None if layers is None else set(layers)
        adapted = {name for name in chosen if name not in left_out and (within is None or modules[name] in within)}
        base = fields.get("base_model_name_or_path")
        return cls(
            rank=rank,
            alpha=alpha,
            ranks=ranks(),
            alphas=alphas(),
            rank_stabilised=bool(fields.get("use_rslora")),
            dropout=float(dropout),
            adapted=frozenset(adapted),
            asked=targets is not None,
            base=base if isinstance(base, str) and base else None,
        )

    def rank_of(self, module: str) -> int:
        """The rank of one module's factors."""
        return self.ranks.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What multiplies the product of one module's factors."""
        rank = self.rank_of(module)
        return self.alphas.get(module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)

    def asks_for(self, projection: str, depth: int) -> bool:
        """Whether some layer's projection is adapted by name, so that its factors must be there."""
        return self.asked and any(_module_name(layer, projection) in self.adapted for layer in range(depth))

    @property
    def remedy(self) -> str:
        """What to do about an adapter that does not fit the model."""
        if self.base is None:
            return "give the model that the adapter was made for"
        return f"the adapter was made for {self.base}: give that model"


class _Matcher:
    """Which of a model's modules the names, endings and regular expressions of a configuration stand for.

    Fields are read first, and give functions that are called after `match`, in which all expressions are matched at once.
    """

    def __init__(self, modules: Sequence[str], path: Path) -> None:
        self._modules, self._path = modules, path
        self._expressions: list[str] = []
        self._shown: list[str] = []
        self._found: list[list[int]] = []

    def endings(
        self, fields: Mapping[str, Any], name: str, checked: Callable[[str, Any, Path], T]
    ) -> Callable[[], dict[str, T]]:
        """Values by module of a field that maps regular expressions for the end of a path, from a dot on, to them.

        The first that matches wins.
        """
        pattern = fields.get(name) or {}
        if not isinstance(pattern, dict):
            raise InputError(f"{name} {_shown(pattern)} in {self._path} does not map modules to numbers; correct it.")
        values = {key: checked(f"{name} of {key}", value, self._path) for key, value in pattern.items()}
        # A single name needs no matching: it is the last part of a path.
        asked = {key: self._ask(name, key, rf"(.*\.)?({key})$") for key in values if not re.fullmatch(r"\w+", key)}

        def by_module() -> dict[str, T]:
            last: dict[str, list[str]] = {}
            for module in self._modules:
                last.setdefault(module.rpartition(".")[2], []).append(module)
            found: dict[str, T] = {}
            for key, value in values.items():
                for module in self._matched(asked[key]) if key in asked else last.get(key, ()):
                    found.setdefault(module, value)
            return found

        return by_module

    def named(self, fields: Mapping[str, Any], name: str) -> Callable[[], set[str]] | None:
        """Modules of a field that is a list of endings or a regular expression of whole paths; None where it names none."""
        names = fields.get(name)
        if names in (None, "all-linear", [], ""):
            return None
        if isinstance(names, str):
            place = self._ask(name, names, names)
            return lambda: set(self._matched(place))
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise InputError(f"{name} {_shown(names)} in {self._path} does not name modules; correct it.")
        chosen = set(names)
        return lambda: {module for module in self._modules if not chosen.isdisjoint(_endings(module))}

    def match(self) -> None:
        """Match what was asked for."""
        self._found = full_matches(self._expressions, self._modules, self._shown)

    def _ask(self, field: str, text: str, expression: str) -> int:
        self._expressions.append(expression)
        self._shown.append(f"{field} {_shown(text)} in {self._path}")
        return len(self._expressions) - 1

    def _matched(self, place: int) -> list[str]:
        return [self._modules[position] for position in self._found[place]]


def _endings(module: str) -> Iterator[str]:
    """A module's path and what is left of it from every dot on."""
    yield module
    while "." in module:
        module = module.partition(".")[2]
        yield module


def _shown(value: Any) -> str:
    """A value in a sentence, however long it is."""
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _refuse_other_methods(fields: Mapping[str, Any], path: Path) -> None:
    accepted: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "init_lora_weights": PLAIN_INITIALISATIONS,
        "layers_pattern": (None, "", "layers", [], ["layers"]),
    }
    refused = [name for name, values in accepted.items() if fields.get(name) not in values]
    refused += [name for name in UNSUPPORTED_FIELDS if fields.get(name)]
    if refused:
        raise InputError(
            f"{refused[0]} {_shown(fields.get(refused[0]))} in {path} is not supported; give an adapter of plain "
            "LoRA on linear projections."
        )


def _checked_rank(name: str, value: Any, path: Path) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} {_shown(value)} in {path} is not a positive number; correct it.")
    return value


def _checked_alpha(name: str, value: Any, path: Path) -> float:
    # Zero and negative ones are unusual, but PEFT computes them, and so does an `Adapter`.
    if type(value) not in (int, float) or not abs(value) < LARGEST_ALPHA:
        raise InputError(f"{name} {_shown(value)} in {path} is not a finite number; correct it.")
    return value


class _Key(NamedTuple):
    """Which factor a tensor is: `factor` is "A" or "B"."""

    layer: int
    projection: str
    factor: str


def _factors(names: Sequence[str], file: Path) -> dict[_Key, str]:
    """The tensors of a file by what they are; refuses those that an `Adapter` has no place for."""
    projections = {module: name for name, module in PROJECTION_MODULES.items()}
    found: dict[_Key, str] = {}
    adapters: dict[str, str] = {}
    for name in names:
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        before = parts[: parts.index("layers")] if "layers" in parts else parts
        layer, *module = parts[len(before) + 1 :] or [""]
        # `lora_A.weight`, or in a state that was not saved by PEFT `lora_A.default.weight`, with the adapter's name.
        own = module.pop(-2) if len(module) > 2 and module[-3].startswith("lora_") else ""
        projection = projections.get(".".join(module[:-2]))
        is_factor = module[-2:] in (["lora_A", "weight"], ["lora_B", "weight"])
        if projection is None or not is_factor or not re.fullmatch("[0-9]{1,9}", layer):
            raise InputError(
                f"the tensor {printable(name)} in {file} is not a LoRA factor of a projection; give an adapter on "
                f"{', '.join(f'{name}_proj' for name in PROJECTIONS)} only."
            )
        if not PREFIX_WORDS.issuperset(before):
            raise InputError(
                f"the tensor {printable(name)} in {file} has the prefix '{printable('.'.join(before))}.' before its layers, "
                "which is none that is known; rename it to base_model.model.model. if it is an adapter of this model."
            )
        key = _Key(int(layer), projection, module[-2][-1])
        adapters.setdefault(own, name)
        if len(adapters) > 1:
            one, other = list(adapters.values())[:2]
            raise InputError(f"{file} holds several adapters ({printable(one)}, {printable(other)}); save one alone.")
        if key in found:
            raise InputError(
                f"{file} holds both {printable(found[key])} and {printable(name)}, which are one factor; remove one."
            )
        found[key] = name
    return found


def _targets(factors: Mapping[_Key, str], config: ModelConfig, file: Path, settings: _Settings) -> list[str]:
    """The adapted projections, in the order of `PROJECTIONS`."""
    for key, name in factors.items():
        if key.layer >= config.layers:
            raise InputError(
                f"the tensor {name} in {file} is of layer {key.layer} but the model has {config.layers} layers "
                f"numbered from 0; {settings.remedy}."
            )
        if _module_name(key.layer, key.projection) not in settings.adapted:
            raise InputError(
                f"the tensor {name} in {file} belongs to a module that target_modules, exclude_modules and "
                f"layers_to_transform in {ADAPTER_CONFIG_FILE} leave out; correct them or restore the weights."
            )
    found = {key.projection for key in factors}
    if not found:
        raise InputError(f"{file} holds no LoRA factors; give a trained adapter.")
    found |= {name for name in PROJECTIONS if settings.asks_for(name, config.layers)}
    return sorted(found, key=PROJECTIONS.index)


def _check_stored(
    name: str | None, key: _Key, tensors: Any, shape: tuple[int, int], file: Path, settings: _Settings
) -> None:
    """Raise `InputError` unless an open file's header has a factor of this shape and of a type that is read."""
    if name is None:
        raise InputError(
            f"{file} lacks the tensor {_tensor_name(*key)}, but {ADAPTER_CONFIG_FILE} and the model's depth ask for it; "
            f"restore it, or else {settings.remedy}."
        )
    header = tensors.get_slice(name)
    found = tuple(header.get_shape())
    if found != shape:
        ranks = "r and rank_pattern" if settings.ranks else "r"
        raise InputError(
            f"the tensor {name} in {file} has shape {found} but the model and the adapter's {ranks} imply {shape}; "
            f"{settings.remedy}, or correct {ranks}."
        )
    if header.get_dtype() not in DTYPES:
        raise InputError(f"the tensor {name} in {file} has the type {header.get_dtype()}; save the adapter in float32.")


def _finite(tensor: np.ndarray, name: str, layer: int, file: Path) -> np.ndarray:
    """A factor in float32; refuses one that would turn all that the model says into NaN."""
    tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(
            f"the tensor {name} in {file} (layer {layer}, counted from 0) holds NaN or infinite values, so that the model "
            "could compute nothing with this adapter; restore it, or take one from before the training broke."
        )
    return tensor

"""Measures which submodels of a model are worth training, before anything is trained.

    weights, public text -> every plan's submodels -> loss and gradient on the data's answers -> alignment, cost

The full gradient is kept in host memory; submodels are made and measured one after another, each from the same frozen base.
Plans that make the same submodel at a depth share its measurement.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from devft_jax.accounting.flops import prefix_flops
from devft_jax.config.execution import local_devices, resolve_compute
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import Examples, check_data_found, some_examples
from devft_jax.developmental import LayerGrams, LayerMap, StageShape
from devft_jax.developmental.schedule import planned_capacities
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface.model import Model
from devft_jax.models.llama import Compute
from devft_jax.options import check_options
from devft_jax.planning.options import PlanOptions
from devft_jax.planning.planner import Planner
from devft_jax.probing.options import DEFAULT_PLANS, ProbeOptions
from devft_jax.probing.plans import Plan, Submodel, map_key, parse_plan, submodels
from devft_jax.probing.results import Cost, Measured, Probe
from devft_jax.reporting import Progress
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import client_mesh, usual_arithmetic, versions
from devft_jax.runtime.processes import refuse_several
from devft_jax.training.alignment import alignment, gradient_shares
from devft_jax.training.checks import check_ranks
from devft_jax.training.distilling import Distiller, is_distilled
from devft_jax.training.gradients import Gradient, Slopes
from devft_jax.training.probe import block_influence, probe_examples, text_similarity
from devft_jax.training.submodels import Submodels, open_model

FULL = "full model"
"""The name of the full model among the plans."""


@usual_arithmetic()
def probe(
    config: RunConfig,
    options: ProbeOptions | None = None,
    *,
    model: Model | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Measure the submodels of several plans.

    Args:
      config: the model, the data, the adapter, and how a step is trained; its growth and its rounds are not used.
      options: what is measured; its `out` and `json` are not used.
      model: replaces the model that the configuration names.
      progress: the progress output; standard error by default.

    Returns:
      The results.

    Raises:
      InputError: the request is invalid.
    """
    refuse_several("a probe")
    began = time.perf_counter()
    options, progress = options or ProbeOptions(), progress or Progress()
    validate(config)
    check_options(options)
    check_data_found(config)
    if options.plans == ():
        raise InputError("plans is empty; name one or more, such as devft.")
    plans = [parse_plan(text, config) for text in (DEFAULT_PLANS if options.plans is None else options.plans)]
    with progress.doing("reading the model"):
        opened = _Opened.of(config, model, progress)
    depths = _depths(config, options, opened.model.config.layers)
    check_ranks(config, opened.model.config)
    examples = some_examples(options.examples, opened.model.tokenizer, config)
    prober = _Prober(opened, examples)
    made = _made(plans, depths, opened)
    full = prober.full()
    progress.say(f"{FULL}: loss {full.loss:.3f} on {prober.slopes.tokens:,} tokens of {len(examples)} answers")
    rows = [prober.measured(each) for each in made]
    influence = opened.measurements.get("influence")
    return Probe(
        config=config,
        parameters=parameter_count(opened.model.base),
        examples=len(examples),
        tokens=prober.slopes.tokens,
        length=prober.length,
        full=full,
        rows=tuple(rows),
        gradient_shares=tuple(gradient_shares(prober.gradient).tolist()),
        influence=None if influence is None else tuple(influence.tolist()),
        seconds=time.perf_counter() - began,
        versions=versions(opened.mesh.devices.flat[0]),
    )


def _depths(config: RunConfig, options: ProbeOptions, layers: int) -> tuple[int, ...]:
    """The depths to measure, ascending."""
    if options.depths is None:
        try:
            found = tuple(depth for depth in planned_capacities(config, layers) if depth < layers)
        except ValueError as error:
            raise InputError(str(error)) from error
        if not found:
            raise InputError(f"no stage is below the model's full depth of {layers}; give depths, such as 1.")
        return found
    most = max(options.depths)
    if most > layers:
        shown = ",".join(map(str, options.depths))
        raise InputError(f"depths {shown} has {most}, and the model has {layers} layers; use {layers} or fewer.")
    return tuple(sorted(options.depths))


@dataclass
class _Opened:
    """The model with everything that measures it.

    Attributes:
      config: the configuration.
      model: the model, packed as configured.
      compute: how it is executed.
      mesh: all devices.
      programs: compiled programs.
      stages: makes the frozen part of submodels.
      progress: the progress output.
      measurements: of the layers on public text, by name.
      text: the public text; None until it is read.
    """

    config: RunConfig
    model: Model
    compute: Compute
    mesh: Mesh
    programs: CompiledPrograms
    stages: Submodels
    progress: Progress
    measurements: dict[str, np.ndarray] = field(default_factory=dict)
    text: Examples | None = None

    @classmethod
    def of(cls, config: RunConfig, given: Model | None, progress: Progress) -> "_Opened":
        """Open the model that a configuration names, or use a given one."""
        devices, compute = local_devices(config), resolve_compute(config)
        model, original_blocks = open_model(config, compute, given)
        mesh = client_mesh(devices, config.model_shards)
        stages = Submodels(config, model, original_blocks, dtype=compute.dtype, depths=None, mesh=mesh)
        programs = CompiledPrograms(lambda name: progress.doing("compiling"))
        return cls(config, model, compute, mesh, programs, stages, progress)

    @functools.cached_property
    def grams(self) -> LayerGrams:
        """Inner products between the layers of the untuned model, with the adapter that a run of this seed begins with."""
        key = run_key(self.config.seed, Purpose.INITIALISATION)
        algorithm = algorithm_of(self.config)
        adapter = algorithm.view(algorithm.init_server(key, self.model.config, Clients(1)))
        with jax.default_device(self.stages.home):
            return LayerGrams((self.stages.layers_to_fuse(0), *self.stages.to_host((adapter.lora, adapter.delta))))

    def public_text(self, config: RunConfig) -> Examples:
        """The public text, read once; it is the same for all plans."""
        if self.text is None:
            self.text = probe_examples(config, self.model.tokenizer)
        return self.text

    def distiller(self, config: RunConfig) -> Distiller | None:
        """What distils the fused layers of a plan; None if they are left as they are."""
        if not config.distil_steps:
            return None
        return Distiller(
            config=self.model.config,
            compute=self.compute,
            base=lambda: self.stages.on_one_device(self.stages.base),
            examples=self.public_text(config),
            steps=config.distil_steps,
            rate=config.distil_rate,
            seed=config.seed,
            programs=self.programs,
        )

    def measure(self, config: RunConfig, kind: str = "influence") -> np.ndarray:
        """A measurement of the layers on public text, made once: their influence, or a similarity of their outputs."""
        if kind not in self.measurements:
            model, base = self.model, self.stages.base
            own = (model.config, base, self.compute, self.public_text(config), config, self.mesh, self.programs)
            found = block_influence(*own) if kind == "influence" else text_similarity(kind, *own)
            self.measurements[kind] = np.asarray(found)
        return self.measurements[kind]


def _made(plans: Sequence[Plan], depths: Sequence[int], opened: _Opened) -> list[Submodel]:
    """The maps of all plans, for which the weights are read once."""
    with opened.progress.doing("choosing the submodels"), jax.default_device(opened.stages.home):
        return [each for plan in plans for each in submodels(plan, depths, opened.grams, opened.measure)]


class Figures(NamedTuple):
    """What is measured of a submodel; see `devft_jax.probing.results.Measured`.

    Attributes:
      loss: of the answers' tokens.
      alignment: with the full model.
      alignment_kept: with the full model, of the first layers of groups alone.
    """

    loss: float
    alignment: float
    alignment_kept: float


class _Prober:
    """Measures submodels against the full model.

    Args:
      opened: the model.
      examples: the data.
    """

    def __init__(self, opened: _Opened, examples: Examples):
        self._opened, config, compute = opened, opened.config, opened.compute
        self.slopes = Slopes(
            opened.model.config,
            compute,
            examples,
            targets=config.targets,
            rows=config.examples_per_pass,
            mesh=opened.mesh,
            programs=opened.programs,
        )
        self.length = self.slopes.length
        self._planner = Planner(dataclasses.replace(config, max_length=self.length), PlanOptions(), opened.model.config)
        self._costs: dict[StageShape, Cost] = {}
        self._found: dict[tuple[bytes | int | float | str, ...], Figures] = {}
        self._full: Measured | None = None
        self.gradient: Gradient = {}

    def full(self) -> Measured:
        """The full model, which is measured first."""
        layers = self._opened.model.config.layers
        slope = self.slopes(self._opened.stages.base, layers)
        self.gradient = slope.gradient
        self._full = self._row(FULL, LayerMap.identity(layers), Figures(slope.loss, 1.0, 1.0))
        return self._full

    def measured(self, submodel: Submodel) -> Measured:
        """A submodel.

        Args:
          submodel: the submodel.
        """
        layer_map, config = submodel.layer_map, submodel.plan.config
        mode, distil = config.transfer, self._opened.distiller(config) if is_distilled(layer_map) else None
        key = (*map_key(layer_map), mode, config.gain_matching, config.distil_steps, config.distil_rate)
        if key not in self._found:
            stages = self._opened.stages
            matches = config.gain_matching
            base = stages.fused(layer_map, stages.layers_to_fuse(0), match_gains=matches, distil=distil)
            slope = self.slopes(base, layer_map.num_groups)
            # Gradients are large, so that only one besides the full model's is kept.
            self._found[key] = Figures(
                slope.loss,
                alignment(layer_map, slope.gradient, self.gradient, mode=mode),
                alignment(layer_map, slope.gradient, self.gradient, mode="anchor_only"),
            )
        row = self._row(submodel.plan.text, layer_map, self._found[key])
        if distil is not None:
            row = dataclasses.replace(
                row, cost=dataclasses.replace(row.cost, server_flops=distil.flops(layer_map.num_groups))
            )
        said = f"{row.plan}, {row.layers} layers: loss {row.loss:.3f}, alignment {row.alignment:.3f}"
        self._opened.progress.say(said)
        return row

    def _row(self, plan: str, layer_map: LayerMap, figures: Figures) -> Measured:
        cost = self._cost(StageShape.of(layer_map))
        whole = cost if self._full is None else self._full.cost
        return Measured(
            plan=plan,
            layers=layer_map.num_groups,
            depth=layer_map.depth,
            assign=tuple(np.asarray(layer_map.assign).tolist()),
            loss=figures.loss,
            alignment=figures.alignment,
            alignment_kept=figures.alignment_kept,
            cost=cost,
            flops_share=cost.flops / whole.flops,
            bytes_share=cost.bytes_round / whole.bytes_round if whole.bytes_round else 0.0,
        )

    def _cost(self, shape: StageShape) -> Cost:
        if shape not in self._costs:
            config, architecture = self._opened.config, self._opened.model.config
            stage = self._planner.step(shape)
            tokens = config.batch_size * self._planner.work.length
            self._costs[shape] = Cost(
                flops=tokens * sum(stage.flops_per_token.values()),
                prefix_flops=tokens * prefix_flops(architecture, layers=shape.bare, length=self._planner.work.length),
                bytes_up=stage.message_up,
                bytes_down=stage.message_down,
                bytes_stage=stage.submodel,
                memory=stage.client.total,
            )
        return self._costs[shape]

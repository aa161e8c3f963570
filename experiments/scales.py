"""The scales of the study: which model, data and protocol every experiment is run with.

    demo     the bundled model of 16 layers, minutes on two cores
    real     SmolLM2-135M-Instruct, a pretrained LLaMA of 30 layers
    paper    LLaMA2-7B, LLaMA3.1-8B and LLaMA2-13B as in the paper; its costs are planned, not run

At the scales demo and real all methods have one learning rate, which the cosine begins anew in every stage; the paper's own
rates per stage are those of the scale paper and of the experiment `rates`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.config.presets import PRESETS

Options = Mapping[str, Any]
"""Plain values of options of a run, by name."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model with its data and protocol.

    Attributes:
      name: name of the model in tables.
      data: name of the data in tables.
      layers: L, its depth.
      capacities: layers of DevFT's stages.
      rate: learning rate of all methods, or the last of DevFT's rates per stage.
      options: the other options of every run.
      ladder: whether DevFT's rates rise from stage to stage, as in the paper.
      beta: weight of the differences in Eq. 5.
      skewed: options of data whose records have categories, for splits that are not IID.
      unseen: options of data on which nothing was tuned.
    """

    name: str
    data: str
    layers: int
    capacities: tuple[int, ...]
    rate: float
    options: Options
    ladder: bool = False
    beta: float = 0.1
    skewed: Options = field(default_factory=dict)
    unseen: Options = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds of a run."""
        return int(self.options["rounds"])

    def rates(self, stages: int, rate: float | None = None) -> list[float]:
        """The paper's rates for this many stages: a hundredth, a tenth, and then the whole of a rate.

        Args:
          stages: number of stages.
          rate: the rate; by default `rate` of the base.
        """
        whole = self.rate if rate is None else rate
        return [whole * share for share in (0.01, 0.1, *[1.0] * stages)][:stages]

    def devft(self, capacities: Sequence[int] | None = None, **options: Any) -> dict[str, Any]:
        """An arm that trains FedIT on DevFT's stages.

        Args:
          capacities: layers of each stage; by default those of the base.
          **options: options that differ from DevFT's defaults.
        """
        layers = list(capacities or self.capacities)
        own: dict[str, Any] = {"algorithm": "fedit", "growth": "devft", "capacities": layers}
        if options.get("fusion", "dblf") == "dblf":
            own["beta"] = self.beta
        if self.ladder:
            own["learning_rate"] = self.rates(len(layers))
        return own | options

    def part_of_depth(self, divisor: int) -> int:
        """A part of the model's layers, rounded up.

        Args:
          divisor: 2 for a half.
        """
        return -(-self.layers // divisor)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The terms on which experiments are run.

    Attributes:
      name: demo, real or paper.
      bases: the models; experiments of the scale paper name those that they use.
      seeds: seeds of all runs.
      tuning: rates of which a tuned experiment gives every method the best; empty if none is tuned.
      evaluations: about how often the full model is evaluated during a run.
      trains: whether runs are made; otherwise they are planned.
    """

    name: str
    bases: tuple[Base, ...]
    seeds: tuple[int, ...]
    tuning: tuple[float, ...] = ()
    evaluations: int = 4
    trains: bool = True


_PROTOCOL: dict[str, Any] = {
    "partition": "iid",
    "clients": 20,
    "clients_per_round": 2,
    "schedule": "cosine-per-stage",
    "dropout": 0.0,
}

DEMO = Scale(
    name="demo",
    bases=(
        Base(
            name="bundled model",
            data="microtasks",
            layers=16,
            capacities=(2, 4, 8, 16),
            rate=6e-3,
            options={
                **_PROTOCOL,
                "model": "bundled",
                "data": "microtasks:train:6000",
                "test_data": "microtasks:test:128",
                "template": "alpaca_short",
                "max_length": 96,
                "local_steps": 4,
                "batch_size": 4,
                "rounds": 12,
                "rank": 16,
                "alpha": 64.0,
                "length_buckets": 1,
            },
        ),
    ),
    seeds=(0, 1, 2),
    tuning=(2e-3, 6e-3, 2e-2),
    evaluations=2,
)


def real(model: str, data: str, test_data: str | None, categories: str, code: str) -> Scale:
    """SmolLM2-135M-Instruct on GSM8K, on Dolly where categories are needed, and on CodeAlpaca.

    Args:
      model: the folder that `experiments.real_model` makes.
      data: GSM8K's training examples, a file or Hugging Face name.
      test_data: its test examples; None to hold out a part of the training examples.
      categories: Dolly, a file, a folder with held-out files, or a Hugging Face name.
      code: CodeAlpaca, a file or Hugging Face name.
    """
    held_out: Options = {"test_fraction": 0.02} if test_data is None else {"test_data": test_data}
    options = {
        **_PROTOCOL,
        "model": model,
        "template": "chat",
        "max_length": 256,
        "local_steps": 4,
        "batch_size": 1,
        "rounds": 8,
        "rank": 32,
        "alpha": 64.0,
        "length_buckets": 2,
        "evaluation_batch": 4,
    }
    # A folder holds files of held-out examples.
    held_out_part = 0.0 if Path(categories).is_dir() else 0.02
    return Scale(
        name="real",
        bases=(
            Base(
                name="SmolLM2-135M-Instruct",
                data="GSM8K",
                layers=30,
                capacities=(4, 8, 15, 30),
                rate=1e-3,
                options={**options, "data": data, **held_out, "test_limit": 16},
                skewed={"data": categories, "category_field": "category", "test_data": None, "test_fraction": held_out_part},
                unseen={"data": code, "test_data": None, "test_fraction": 0.05},
            ),
        ),
        seeds=(0, 1),
        tuning=(3e-4, 1e-3, 3e-3),
        evaluations=0,
    )


def _of_preset(preset: str, name: str) -> Base:
    """A model of the paper from its preset."""
    values = {name: value for name, value in PRESETS[preset].items() if name not in ("capacities", "learning_rate", "beta")}
    capacities, rates = PRESETS[preset]["capacities"], PRESETS[preset]["learning_rate"]
    return Base(
        name=name,
        data="Alpaca-GPT4",
        layers=capacities[-1],
        capacities=capacities,
        rate=rates[-1],
        options=values,
        ladder=True,
        beta=PRESETS[preset]["beta"],
    )


PAPER = Scale(
    name="paper",
    bases=(
        _of_preset("paper-llama2-7b", "LLaMA2-7B"),
        _of_preset("paper-llama3.1-8b", "LLaMA3.1-8B"),
        _of_preset("paper-llama2-13b", "LLaMA2-13B"),
    ),
    seeds=(0,),
    trains=False,
)


def with_options(scale: Scale, **options: Any) -> Scale:
    """The scale with other options in every run.

    Args:
      scale: the scale.
      **options: values of options of a run.
    """
    bases = tuple(dataclasses.replace(base, options={**base.options, **options}) for base in scale.bases)
    return dataclasses.replace(scale, bases=bases)

"""Named configurations: the demo, the paper's runs, other models in the paper's protocol, and a recipe of few bytes."""

from typing import Any

from devft_jax.config.run_config import RunConfig
from devft_jax.options import known_name

# Shared by the paper's three models; 4 bits are the paper's INT4, in the data type (NF4) of the framework that it builds on.
_PAPER: dict[str, Any] = {
    "data": "vicgalle/alpaca-gpt4",
    "data_limit": 20_000,
    "clients": 20,
    "template": "openfedllm",
    "partition": "iid",
    "clients_per_round": 2,
    "local_steps": 10,
    "batch_size": 16,
    "max_length": 512,
    "rank": 32,
    "alpha": 64.0,
    "dropout": 0.05,
    "quantization": "nf4",
    "rounds": 300,
    "capacities": (4, 8, 16, 32),
    "learning_rate": (1e-6, 1e-5, 1e-4, 1e-4),
    "schedule": "cosine-per-stage",
    "beta": 0.1,
    "dtype": "bfloat16",
    "remat": "full",
}

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "model": "bundled",
        "data": "microtasks:train:6000",
        "test_data": "microtasks:test:320",
        "template": "alpaca_short",
        "partition": "dirichlet",
        "dirichlet_alpha": 0.3,
        "clients": 20,
        "clients_per_round": 4,
        "local_steps": 8,
        "batch_size": 4,
        "max_length": 96,
        "rounds": 16,
        "rank": 16,
        "alpha": 64.0,
        "learning_rate": (6e-3,),
        "schedule": "cosine",
        "dropout": 0.0,
        "evaluate_every": 4,
    },
    "paper-llama2-7b": {**_PAPER, "model": "meta-llama/Llama-2-7b-hf"},
    "paper-llama3.1-8b": {**_PAPER, "model": "meta-llama/Llama-3.1-8B"},
    "paper-llama2-13b": {
        **_PAPER,
        "model": "meta-llama/Llama-2-13b-hf",
        "rounds": 400,
        "capacities": (5, 10, 20, 40),
        "beta": 0.15,
    },
    # Models that the paper did not train by DevFT, in its protocol: an eighth, a quarter, half and all layers, rounded up.
    "tinyllama-1.1b": {
        **_PAPER,
        "model": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        "capacities": (3, 6, 11, 22),
    },
    "llama-33b": {**_PAPER, "model": "huggyllama/llama-30b", "capacities": (8, 15, 30, 60)},
    "llama2-70b": {**_PAPER, "model": "meta-llama/Llama-2-70b-hf", "capacities": (10, 20, 40, 80)},
    # For any model and data: small adapters on all projections, few long rounds, small numbers in messages
    # (experiments/questions/recipe.py has the evidence).
    "efficient": {
        "algorithm": "fedit",
        "growth": "end-to-end",
        "clients": 20,
        "clients_per_round": 2,
        "rounds": 2,
        "local_steps": 16,
        "batch_size": 4,
        "dropout": 0.0,
        "targets": ("q", "k", "v", "o", "gate", "up", "down"),
        "rank": 4,
        "alpha": 8.0,
        "learning_rate": (3e-3,),
        "schedule": "cosine",
        "channel": "int8",
        "message_dtype": "bfloat16",
    },
}


def preset(name: str) -> RunConfig:
    """A named configuration; its fields can be overridden with `dataclasses.replace`.

    Args:
      name: name of the preset, in upper or lower case.

    Raises:
      InputError: there is no preset of this name.
    """
    return RunConfig(**PRESETS[known_name("preset", name, PRESETS)])

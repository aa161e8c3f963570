"""Common parts of the torch programs: the work's model under PEFT, and one client's training."""

import functools
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from protocol import TARGETS, Arrays, Work
from transformers import AutoModelForCausalLM

IGNORED = -100
"""The label that Hugging Face's losses ignore."""

State = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


def key_of(layer: int, name: str, factor: str) -> str:
    """PEFT's name of a factor in its state."""
    return f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_{factor.upper()}.weight"


def to_peft(adapters: Arrays) -> State:
    """The work's adapters with PEFT's names, transposed as PEFT stores them."""
    return {
        key_of(layer, *name.split(".")): torch.from_numpy(np.ascontiguousarray(matrix.T))
        for name, stacked in adapters.items()
        for layer, matrix in enumerate(stacked)
    }


def from_peft(state: State, like: Arrays) -> Arrays:
    """The inverse of `to_peft`; `like` has the names and shapes."""
    return {
        name: np.stack([state[key_of(layer, *name.split("."))].numpy().T for layer in range(len(stacked))])
        for name, stacked in like.items()
    }


def peft_model(work: Work) -> PeftModel:
    """The work's model with adapters in PEFT, in training mode."""
    base = AutoModelForCausalLM.from_pretrained(
        work.model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    base.config.use_cache = False
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=work.rank,
        lora_alpha=int(work.alpha),
        lora_dropout=0.0,
        target_modules=[f"{name}_proj" for name in TARGETS],
    )
    model = get_peft_model(base, lora)
    if set(get_peft_model_state_dict(model)) != set(to_peft(work.adapters)):
        raise ValueError("PEFT's names of factors differ from this script's; use the pinned version.")
    return model.train()


def batches_of(work: Work, client: int) -> list[Batch]:
    """A client's steps as (tokens, labels) [B, T], each padded to the longest of its own rows."""

    def one(tokens: np.ndarray, answer: np.ndarray) -> Batch:
        labels = np.where(answer, tokens, IGNORED)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))

    return [one(*batch) for batch in work.steps_of(client)]


def loss_of(model: PeftModel, batch: Batch) -> torch.Tensor:
    """The mean loss of a batch; padding is on the right, where causal attention never sees it, so that no mask is needed."""
    tokens, labels = batch
    return model(input_ids=tokens, labels=labels).loss


def optimizer_of(work: Work, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """A new AdamW, fused, as is the default of Hugging Face's Trainer."""
    return torch.optim.AdamW(
        parameters,
        lr=work.learning_rate,
        betas=(work.beta1, work.beta2),
        eps=work.epsilon,
        weight_decay=work.weight_decay,
        fused=True,
    )


def set_adapters(model: PeftModel, state: State) -> None:
    """Load adapters into the model."""
    set_peft_model_state_dict(model, state)


def peft_state(model: PeftModel) -> State:
    """The model's adapters, not copied."""
    return get_peft_model_state_dict(model)


def adapters_of(model: PeftModel, like: Arrays) -> Arrays:
    """The model's adapters with the names and shapes of the work's."""
    return from_peft(peft_state(model), like)


def train(work: Work, model: PeftModel, batches: list[Batch]) -> float:
    """Train a client's local steps in place, and return the mean of their losses."""
    optimizer = optimizer_of(work, [parameter for parameter in model.parameters() if parameter.requires_grad])
    total = 0.0
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def use_threads(count: int | None) -> None:
    """Threads of torch's operations; None leaves its default, one per core."""
    if count is not None:
        torch.set_num_threads(count)


def client_of(folder: Path, clients: int | None, client: int) -> tuple[Work, PeftModel, list[Batch]]:
    """The work, its model and one client's batches, cached for the life of the process and used by a single thread."""
    work, model, batches = _held(folder, clients)
    if client not in batches:
        batches[client] = batches_of(work, client)
    return work, model, batches[client]


@functools.cache
def _held(folder: Path, clients: int | None) -> tuple[Work, PeftModel, dict[int, list[Batch]]]:
    use_threads(1)
    work = Work(folder, clients)
    return work, peft_model(work), {}

"""Models: LLaMA as pure functions over stacked pytrees, low-rank adapters, and their files."""

from typing import TYPE_CHECKING

from devft_jax.lazy import lazy_names

if TYPE_CHECKING:
    from devft_jax.models.adapter import Adapter, LoraFactors
    from devft_jax.models.architecture import ModelConfig
    from devft_jax.models.base import Base, Block, init_base
    from devft_jax.models.huggingface.model import Model
    from devft_jax.models.huggingface.peft.reading import import_peft
    from devft_jax.models.huggingface.peft.writing import export_peft
    from devft_jax.models.huggingface.reading import load_pretrained
    from devft_jax.models.huggingface.writing import save_pretrained
    from devft_jax.models.llama import Compute, forward, hidden_states
    from devft_jax.models.lora import init_lora
    from devft_jax.models.loss import completion_loss, completion_statistics

__all__ = [
    "Adapter",
    "Base",
    "Block",
    "Compute",
    "LoraFactors",
    "Model",
    "ModelConfig",
    "completion_loss",
    "completion_statistics",
    "export_peft",
    "forward",
    "hidden_states",
    "import_peft",
    "init_base",
    "init_lora",
    "load_pretrained",
    "save_pretrained",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    __all__,
    {
        "adapter": ("Adapter", "LoraFactors"),
        "architecture": ("ModelConfig",),
        "base": ("Base", "Block", "init_base"),
        "huggingface.model": ("Model",),
        "huggingface.peft.reading": ("import_peft",),
        "huggingface.peft.writing": ("export_peft",),
        "huggingface.reading": ("load_pretrained",),
        "huggingface.writing": ("save_pretrained",),
        "llama": ("Compute", "forward", "hidden_states"),
        "lora": ("init_lora",),
        "loss": ("completion_loss", "completion_statistics"),
    },
)

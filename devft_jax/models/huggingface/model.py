"""A pretrained model: architecture, frozen base and tokenizer."""

from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.huggingface.tokenizer import load_tokenizer


class Model:
    """A pretrained model.

    Attributes:
      config: the architecture.
      base: its weights.
      path: the folder or Hugging Face name that the user gave; None if there is none.
      folder: where its files are; None for a model made from objects.
    """

    def __init__(self, config: ModelConfig, base: Base, tokenizer: Any = None, path: str | None = None) -> None:
        """Create a model from its parts.

        Args:
          config: the architecture.
          base: its weights.
          tokenizer: a Hugging Face tokenizer, or the folder with its files; it is then loaded on first use,
            because work on weights needs none and its library takes a second to import.
          path: the folder or Hugging Face name that an exported adapter names as its base; None if there is none.
        """
        self.config = config
        self.base = base
        self.path = path
        self.folder = tokenizer if isinstance(tokenizer, Path) else None
        self._tokenizer = tokenizer

    def with_base(self, base: Base) -> "Model":
        """The same model with other weights.

        Args:
          base: the weights.
        """
        return Model(self.config, base, self.folder or self._tokenizer, self.path)

    @property
    def has_tokenizer(self) -> bool:
        """Whether it has a tokenizer, loaded or not."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer.

        Raises:
          InputError: the model has no tokenizer, or its files cannot be read.
        """
        if self._tokenizer is None:
            raise InputError("the model has no tokenizer; pass one to Model.")
        if isinstance(self._tokenizer, Path):
            self._tokenizer = load_tokenizer(self._tokenizer)
        return self._tokenizer

"""The architecture of a LLaMA-family model, static under `jit`, and the architectures of well-known models by name.

Covers LLaMA 1-3 (Touvron et al. 2023; Grattafiori et al. 2024) and its descendants. The differences between families are
fields of `ModelConfig`: `biases` (Qwen2), `qk_norm` (Qwen3), `sliding_window` (Mistral);
`devft_jax.models.huggingface.families` says which family has which.
"""

import dataclasses
from dataclasses import dataclass

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""The seven linear projections of a decoder layer."""


@dataclass(frozen=True)
class RopeScaling:
    """Rescaling of rotary frequencies for long contexts.

    Attributes:
      kind: "linear" (every frequency divided by `factor`) or "llama3" (long wavelengths divided by `factor`, short ones
        unchanged, with a smooth ramp between them).
      factor: see `kind`.
      low_frequency_factor: start of the ramp of "llama3", in rotations over the original context.
      high_frequency_factor: end of the ramp, in the same unit.
      original_length: context on which the model was pretrained, in tokens.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a LLaMA-family model; static under `jit`.

    Attributes:
      vocabulary: V, number of tokens.
      width: D.
      feed_forward: F, width inside the MLP.
      layers: L.
      heads: H, query heads.
      kv_heads: K, key/value heads; must divide H.
      head_size: E, width of a head.
      rope_theta: base of the rotary frequencies.
      rope_scaling: rescaling of the rotary frequencies for long contexts, if any.
      norm_epsilon: added to the mean square inside every RMSNorm.
      tied_head: whether the head is the embedding, transposed.
      max_length: longest sequence, in tokens.
      family: name of the model family in Hugging Face's `model_type`.
      biases: projections with a bias.
      qk_norm: whether every query and key head is RMS-normalised before the rotation.
      sliding_window: w, so that a position attends to itself and the w - 1 before it; None for full causal attention.
    """

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    max_length: int = 4096
    family: str = "llama"
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    sliding_window: int | None = None

    def projection_shape(self, name: str) -> tuple[int, int]:
        """`(in, out)` of one of the seven linear projections of a layer.

        Args:
          name: one of `PROJECTIONS`.
        """
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        shapes = {
            "q": (self.width, queries),
            "k": (self.width, keys),
            "v": (self.width, keys),
            "o": (queries, self.width),
            "gate": (self.width, self.feed_forward),
            "up": (self.width, self.feed_forward),
            "down": (self.feed_forward, self.width),
        }
        return shapes[name]

    def with_layers(self, layers: int) -> "ModelConfig":
        """The same architecture at another depth, as a submodel has it.

        Args:
          layers: L.
        """
        return dataclasses.replace(self, layers=layers)


ARCHITECTURES = {
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": ModelConfig(
        vocabulary=32_000,
        width=2048,
        feed_forward=5632,
        layers=22,
        heads=32,
        kv_heads=4,
        head_size=64,
        max_length=2048,
    ),
    "meta-llama/Llama-2-7b-hf": ModelConfig(
        vocabulary=32_000,
        width=4096,
        feed_forward=11_008,
        layers=32,
        heads=32,
        kv_heads=32,
        head_size=128,
    ),
    "meta-llama/Llama-3.1-8B": ModelConfig(
        vocabulary=128_256,
        width=4096,
        feed_forward=14_336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_size=128,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0),
        max_length=131_072,
    ),
    "meta-llama/Llama-2-13b-hf": ModelConfig(
        vocabulary=32_000,
        width=5120,
        feed_forward=13_824,
        layers=40,
        heads=40,
        kv_heads=40,
        head_size=128,
    ),
    "huggyllama/llama-30b": ModelConfig(
        vocabulary=32_000,
        width=6656,
        feed_forward=17_920,
        layers=60,
        heads=52,
        kv_heads=52,
        head_size=128,
        norm_epsilon=1e-6,
        max_length=2048,
    ),
    "meta-llama/Llama-2-70b-hf": ModelConfig(
        vocabulary=32_000,
        width=8192,
        feed_forward=28_672,
        layers=80,
        heads=64,
        kv_heads=8,
        head_size=128,
    ),
}
"""Architectures of well-known models by their Hugging Face names, from each model's public config.json.

Runs of these models can be planned without a download; the run itself reads the config.json next to the weights. The last
two are also known as LLaMA-33B, the parameter count of its paper, and LLaMA2-70B.
"""

"""Shapes of well-known models by their Hugging Face names, so that a run on them can be planned without a download.

From each model's public config.json. A run never uses them: it reads the config.json beside the weights.
"""

from devft_jax.models.llama import ModelConfig, RopeScaling

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
"""The last two are also known as LLaMA-33B, as its paper counts the parameters, and LLaMA2-70B."""

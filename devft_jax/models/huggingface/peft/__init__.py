"""Reads and writes adapters in the format of Hugging Face's PEFT, without PyTorch.

A folder has `adapter_config.json` and `adapter_model.safetensors`, which `PeftModel.from_pretrained` loads with the
base on which the adapter was trained. PEFT writes the update of layer i as `lora_B @ lora_A` on `[out, in]` weights, so
its `lora_A.weight [r, in]` is our `a[i].T` and its `lora_B.weight [out, r]` our `b[i].T` (Hu et al. 2022, with A and B
as named by PEFT). Ranks and alphas may vary by module: `rank_pattern` and `alpha_pattern` name modules by regular
expressions that match the end of their paths. The scale is alpha / r, or alpha / sqrt(r) if it is rank-stabilised
(Kalajdzievski 2023). Import accepts only what an `Adapter` computes exactly and refuses all variants of LoRA that PEFT
would compute differently.

An adapter fits a base of its own depth: that of a stage's submodel is mapped to full depth before it is exported.

Axis letters: L layers, r rank.
"""

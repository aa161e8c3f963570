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

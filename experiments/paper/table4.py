"""Table 4: DevFT's stages with two algorithms; time, communication and quality."""

from experiments.claims import Factor, Lower
from experiments.study import Experiment, Part

EXPERIMENT = Experiment(
    name="table4",
    title="Table 4: DevFT with other algorithms",
    about=(
        "FedIT and FedSA-LoRA, each on the full model and on DevFT's stages, over the same rounds. Time is that of "
        "all rounds without compiling; bytes are those of the adapters that clients send, without the fused layers "
        "of the stages."
    ),
    parts=lambda base: [
        Part(
            arms={
                "FedIT": {"algorithm": "fedit"},
                "FedIT+DevFT": base.devft(),
                "FedSA-LoRA": {"algorithm": "fedsa-lora"},
                "FedSA-LoRA+DevFT": base.devft(algorithm="fedsa-lora"),
            }
        )
    ],
    claims=(
        Factor("FedIT+DevFT", "FedIT", "bytes_up", 2.13, "DevFT's stages send 2.13 times less: 5.03 against 2.36 GB (7B)."),
        Factor(
            "FedSA-LoRA+DevFT",
            "FedSA-LoRA",
            "bytes_up",
            2.13,
            "The same with FedSA-LoRA: 2.52 against 1.18 GB (7B), 2.14 times; 4.20 against 1.97 GB (13B), 2.13 times.",
        ),
        Factor(
            "FedIT+DevFT",
            "FedIT",
            "seconds_train",
            2.9,
            "DevFT's stages take 3.00 (7B) and 2.90 times (13B) less time: 2.49 against 0.83 h, 6.67 against 2.30 h.",
        ),
        Factor(
            "FedSA-LoRA+DevFT",
            "FedSA-LoRA",
            "seconds_train",
            2.93,
            "The same with FedSA-LoRA: 3.31 (7B) and 2.93 times (13B) less time.",
        ),
        Lower("FedIT+DevFT", ("FedIT",), "DevFT's stages improve FedIT: by 1.77 (7B) and 3.70 points (13B)."),
        Lower("FedSA-LoRA+DevFT", ("FedSA-LoRA",), "They improve FedSA-LoRA: by 3.51 (7B) and 2.57 points (13B)."),
    ),
    reference="FedIT",
    models=("LLaMA2-7B", "LLaMA2-13B"),
)

"""Figure 1: what one step of fine-tuning computes."""

from experiments.claims import Beyond, Factor, Value
from experiments.study import Experiment, Part

FEDIT = {"FedIT": {"algorithm": "fedit"}}
TINY = {"model": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"}

EXPERIMENT = Experiment(
    name="figure1",
    title="Figure 1: work of a step",
    about="The operations of one client's step of 16 examples of 512 tokens on the full model, from the plan of a run.",
    parts=lambda base: [Part(arms=FEDIT, name="LLaMA2-13B"), Part(arms=FEDIT, name="TinyLLaMA", options=TINY)],
    claims=(
        Value("LLaMA2-13B: FedIT, stage 1", "flops_of_a_step", 415.2e12, "A step of LLaMA2-13B is 415.2 TFLOPs."),
        Factor(
            "TinyLLaMA: FedIT, stage 1",
            "LLaMA2-13B: FedIT, stage 1",
            "flops_of_a_step",
            112.2 / 9.3,
            "A step of LLaMA2-13B is 112.2 times BERT's and one of TinyLLaMA 9.3 times: 12.06 times between the two.",
        ),
        Beyond("A step of LLaMA2-13B is 112.2 times BERT's.", "BERT is not a decoder and cannot be planned here."),
    ),
    reference="LLaMA2-13B: FedIT, stage 1",
    shown="flops_of_a_step",
    models=("LLaMA2-13B",),
    scales=("paper",),
    by_stage=True,
)

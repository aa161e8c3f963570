"""How learned LoRA is transferred back to the layers of a group."""

from experiments.claims import Question
from experiments.study import Experiment, Part

OTHERS = {"anchor only": "anchor_only", "delta": "delta", "anchor delta": "anchor_delta"}

EXPERIMENT = Experiment(
    name="transfer",
    title="Transfer",
    about=(
        "The paper's text copies a representative layer's LoRA to all layers of its group; its appendix has a formula that "
        "contains the anchor, most likely an added difference. Both, and two variants of ours."
    ),
    parts=lambda base: [
        Part(arms={"copy": base.devft()} | {name: base.devft(transfer=mode) for name, mode in OTHERS.items()})
    ],
    claims=(Question("copy", list(OTHERS), "Does it matter how LoRA is transferred back?"),),
    reference="copy",
)

"""Open-ended benchmarks (Vicuna-Bench, MT-Bench; Zheng et al. 2023): answers to open questions, rated by a judge.

    questions -> answers of every model -> judgements of every answer, or of every pair -> means and win rates

All files have FastChat's layouts (`fastchat/llm_judge`), so that its programs read what is written here, and the reverse.
"""

from devft_jax.judging.cases import Case
from devft_jax.judging.questions import Question

__all__ = ["Case", "Question"]

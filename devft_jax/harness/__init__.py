"""Benchmarks of lm-evaluation-harness: a model of this package as its backend, tasks from local files, results.

The harness builds requests from a benchmark's questions and turns answers into scores; this package answers the requests:
log-likelihoods over a trie of all prompts (`rows`, `packing`, `passes`, `scoring`), texts by the generation of
`devft_jax.models.generation`. It needs the extra `eval`.
"""

NEEDS_LM_EVAL = (
    "evaluation on benchmarks needs lm-eval, which is not installed; "
    "run `pip install lm-eval langdetect immutabledict nltk`."
)
"""What is said where the extra is missing."""

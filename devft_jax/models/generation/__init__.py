"""Generation: prompts are read in one pass, then tokens are drawn one at a time beside a cache of keys and values.

A batch holds prompts of several lengths, padded on the right to a bucket. Every row counts its own positions, and slot j of
its cache holds the key and value of its token at position j, so that a row sees slot j from position p iff j <= p and, under
a sliding window of w tokens, j > p - w. An entry of padding is overwritten by the token at its position before any later
token sees it. A row's tokens therefore do not depend on which rows it is batched with.

Decoding is compiled as a chunk of several tokens. Between chunks the host looks for stop strings, which may straddle token
borders, and marks finished rows; within a chunk the device watches for the end tokens. Prompts of one bucket
share one compiled program, whatever their number.

Sampling divides logits by the temperature and, under `top_p`, draws from the nucleus: the smallest set of most likely tokens
whose probability reaches top_p (Holtzman et al. 2020). Row n's token number s is argmax(logits + Gumbel noise), the noise
drawn by threefry from (seed, n, s) alone.

Axis letters: L layers, B batch, P prompt slots, S cache slots, D width, H query heads, K key/value heads, E head size,
V vocabulary.
"""

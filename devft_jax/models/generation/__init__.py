"""Generation: prompts are read in one pass, then tokens are drawn one at a time with a cache of keys and values.

A batch has prompts of several lengths, padded on the right to a bucket. Every row counts its own positions, and slot j of
its cache has the key and value of its token at position j, so that position p of a row sees slot j iff j <= p and, with
a sliding window of w tokens, j > p - w. An entry of padding is overwritten by the token at its position before any later
token sees it. A row's tokens therefore do not depend on the other rows of its batch.

Where all prompts begin with the same tokens, a cache of these may be given (`devft_jax.models.packed_attention.Prefix`). It
is copied into the cache of every row, and only what comes behind it is read of each prompt.

Decoding is compiled as a chunk of several tokens. Between chunks the host searches for stop strings, which may span token
borders, and marks finished rows; within a chunk the device checks for end tokens. Prompts of one bucket share one compiled
program, whatever their number.

Sampling divides logits by the temperature and, with `top_p`, draws from the nucleus: the smallest set of most likely tokens
whose probability reaches top_p (Holtzman et al. 2020). Token number s of row n is argmax(logits + Gumbel noise), with noise
drawn by threefry from (seed, n, s) only.

Axis letters: L layers, B batch, P prompt slots, S cache slots, D width, H query heads, K key/value heads, E head size,
V vocabulary.
"""

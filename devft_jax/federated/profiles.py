"""What an algorithm may know of clients before training: their instructions, without labels.

An example's instruction is represented by the mean of the frozen model's input embeddings over the tokens of its prompt, in
float32 and of norm one, minus the mean over examples. The template's words, which are in every prompt, cancel with that
mean; word order and context are ignored. Topics, languages and kinds of task differ in their words, and a mean of
embeddings keeps enough of these to distinguish groups of clients. Embeddings wider than `DIRECTIONS` are projected at random
to that many directions, which preserves distances to a few per cent (Johnson and Lindenstrauss, 1984).

k-means of a sample of examples gives clusters of instructions, and a client's histogram is the shares of its examples in
them; k-means of the clients' mean instructions gives domains. Both depend only on the data, the model's embeddings and the
run's seed, and are computed only if an algorithm uses them. Examples pass through memory in blocks.
"""

from collections.abc import Iterator
from functools import cached_property

import jax
import numpy as np

from devft_jax.data import Examples, FederatedData
from devft_jax.developmental.grouping import kmeans, number_by_first_layer
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.sampling import Purpose, run_key

DIRECTIONS = 256
# Number of examples to which the clusters are fitted; all others are assigned to the nearest cluster.
SAMPLE = 4096
RESTARTS = 8
BLOCK = 1024
# Rows of the vocabulary that are projected at once.
VOCABULARY_BLOCK = 8192


def profiled_clients(data: FederatedData, embed: jax.Array, seed: int) -> Clients:
    """The population of a run.

    Args:
      data: the clients and their examples.
      embed: the frozen model's input embeddings [V, D].
      seed: seed of the run.
    """
    profiles = _Profiles(data, embed, run_key(seed, Purpose.PROFILES))
    return Clients(len(data.clients), domains=profiles.domains, histograms=profiles.histograms)


def instructions(examples: Examples, table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mean embeddings of prompts, of norm one.

    Args:
      examples: tokenised examples.
      table: the embeddings of tokens, f32[V, D].
      index: i64[n], numbers of the examples.

    Returns:
      f32[n, D]; zero for an empty prompt.
    """
    lengths, starts = examples.prompt_lengths[index], examples.starts[index]
    sums = np.zeros((len(index), table.shape[1]), np.float32)
    # One position of all examples at a time, so that no copy of every token's embedding is held.
    for position in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > position)
        sums[longer] += table[examples.tokens[starts[longer] + position]]
    # A sum and a mean have the same direction.
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)


class _Profiles:
    """The clients' instructions; what domains and histograms share is computed once."""

    def __init__(self, data: FederatedData, embed: jax.Array, key: jax.Array):
        self._data = data
        self._embed = embed
        self._table_key, self._sample_key, self._cluster_key, self._domain_key = jax.random.split(key, 4)
        self._index = np.concatenate([client.indices for client in data.clients])
        self._owner = np.repeat(np.arange(len(data.clients)), [len(client.indices) for client in data.clients])

    @cached_property
    def _table(self) -> np.ndarray:
        """The tokens' embeddings, f32[V, min(D, DIRECTIONS)] on the host."""
        vocabulary, width = self._embed.shape
        if width <= DIRECTIONS:
            return np.asarray(self._embed, np.float32)
        projection = jax.random.normal(self._table_key, (width, DIRECTIONS), np.float32) / DIRECTIONS**0.5

        def projected(start: int) -> np.ndarray:
            rows = self._embed[start : start + VOCABULARY_BLOCK].astype("float32")
            return np.asarray(jax.numpy.matmul(rows, projection, precision="highest"))

        return np.concatenate([projected(start) for start in range(0, vocabulary, VOCABULARY_BLOCK)])

    @cached_property
    def _sample(self) -> np.ndarray:
        """Instructions of examples drawn without replacement, f32[SAMPLE, ...], or of all if there are fewer."""
        order = np.asarray(jax.random.permutation(self._sample_key, len(self._index)))[:SAMPLE]
        return instructions(self._data.train, self._table, self._index[np.sort(order)])

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every example's instruction minus the sample's mean, and its client's index, in blocks."""
        mean = self._sample.mean(axis=0)
        for start in range(0, len(self._index), BLOCK):
            part = slice(start, start + BLOCK)
            yield instructions(self._data.train, self._table, self._index[part]) - mean, self._owner[part]

    def histograms(self, clusters: int) -> np.ndarray:
        """f32[N, C]: see `Clients`. Clusters are numbered by their first example; surplus clusters are empty."""
        points = self._sample - self._sample.mean(axis=0)
        used = min(clusters, len(points))
        labels = _k_means(points, used, self._cluster_key)
        centres = np.stack([points[labels == label].mean(axis=0) for label in range(used)])
        counts = np.zeros((len(self._data.clients), clusters))
        for embedded, owner in self._blocks():
            distances = (centres**2).sum(axis=1) - 2 * embedded @ centres.T
            np.add.at(counts, (owner, distances.argmin(axis=1)), 1)
        return (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)

    def domains(self, count: int) -> np.ndarray:
        """i32[N]: see `Clients`. Domains are numbered by their first client, and none is empty.

        Raises:
          InputError: there are fewer clients than domains.
        """
        clients = len(self._data.clients)
        if count > clients:
            raise InputError(f"domains {count} exceeds the {clients} clients of the data; use {clients} or fewer.")
        sums = np.zeros((clients, self._sample.shape[1]))
        for embedded, owner in self._blocks():
            np.add.at(sums, owner, embedded)
        means = sums / np.bincount(self._owner, minlength=clients)[:, None]
        return _k_means(means.astype(np.float32), count, self._domain_key)


def _k_means(points: np.ndarray, groups: int, key: jax.Array) -> np.ndarray:
    """Groups i32[N] of points f32[N, D], numbered in the order of their first points; all are used."""
    labels, _ = kmeans(points, groups, key, restarts=RESTARTS)
    return np.asarray(number_by_first_layer(labels, groups))

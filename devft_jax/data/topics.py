"""Topics of texts without labels: k-means clusters of their TF-IDF vectors, named by their leading terms.

Latent semantic analysis in its standard form: TF-IDF vectors, reduced by a truncated singular value decomposition,
scaled to length 1 and clustered. FedNLP (Lin et al. 2022, arXiv:2104.08815) makes label skew without labels from
clusters of sentence embeddings in the same way; TF-IDF needs no second model.

Topics depend only on the set of texts, not on their order or on how often each occurs (only their numbering by size counts
repetitions), and not on a seed: runs with different seeds differ in who has a topic. The clusters are fitted to at most
20,000 distinct texts, those with the smallest digests, which is a random sample that does not depend on the order; every
text is then assigned to the nearest centre, so that no further text is kept in memory. Words are runs of letters and digits
that begin with a letter; a script that does not separate words gives poor topics.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np

from devft_jax.data.groups import Groups
from devft_jax.errors import InputError

# Number of texts to which the clusters are fitted, dimensions after reduction, words in the vocabulary.
_FITTED, _DIMENSIONS, _VOCABULARY = 20_000, 64, 20_000

_TERMS_IN_NAME = 3

# Texts assigned at once: [texts, topics, dimensions] floats are in memory.
_TEXTS_PER_BLOCK = 1024


def require_scikit_learn() -> ModuleType:
    """The package scikit-learn, which is an extra.

    Raises:
      InputError: it is not installed.
    """
    try:
        import sklearn
    except ImportError as error:
        raise InputError(
            "partition 'topic' needs scikit-learn, which is not installed; run `pip install scikit-learn`, or use another "
            "partition."
        ) from error
    return sklearn


def find_topics(texts: Iterable[str], num_topics: int) -> Groups:
    """Sort texts into topics, numbered from the largest to the smallest.

    Args:
      texts: N texts; iterated twice, so a collection or a stream that can be restarted.
      num_topics: at least 2.

    Returns:
      The topic of every text. A name is the three terms whose mean TF-IDF weight most exceeds that of all texts.

    Raises:
      InputError: scikit-learn is missing, or the texts are too few or too alike for so many topics.
    """
    require_scikit_learn()
    from threadpoolctl import threadpool_limits

    sample = _sample(texts)
    if len(sample) < num_topics:
        raise InputError(
            f"partition 'topic' cannot make {num_topics} topics of {len(sample)} distinct texts; "
            "lower partition_groups or give more data."
        )
    # One thread: the order of a sum over several threads differs from run to run, and a text may change its cluster.
    with threadpool_limits(limits=1):
        model = _Model(sample, num_topics)
        codes = np.concatenate([model.nearest(block) for block in _blocks(texts)])
    sizes = np.bincount(codes, minlength=num_topics)
    by_size = np.argsort(-sizes, kind="stable")
    return Groups("topic", np.argsort(by_size)[codes].astype(np.int32), tuple(model.names[topic] for topic in by_size))


class _Model:
    """TF-IDF, its reduction and the cluster centres, fitted to texts."""

    def __init__(self, texts: list[str], num_topics: int):
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer(
            stop_words="english",
            token_pattern=r"(?u)\b[^\W\d_]\w+\b",
            max_df=0.5,
            max_features=_VOCABULARY,
            sublinear_tf=True,
        )
        try:
            vectors = self.vectorizer.fit_transform(texts)
        except ValueError as error:  # no word is left after removing stop words and those in more than half of the texts
            raise InputError(
                f"partition 'topic' finds no word that distinguishes the {len(texts)} distinct texts; use another partition."
            ) from error
        self.reduction = TruncatedSVD(min(_DIMENSIONS, *vectors.shape), random_state=0).fit(vectors)
        clusters = KMeans(num_topics, n_init=4, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # too few distinct points: reported as an error below
            labels = clusters.fit_predict(self._embed(vectors))
        found = len(np.unique(labels))
        if found < num_topics:
            raise InputError(
                f"partition 'topic' can distinguish only {found} of {num_topics} topics by the words of "
                f"{len(texts)} distinct texts; lower partition_groups or give more data."
            )
        self.centres = clusters.cluster_centers_
        terms = self.vectorizer.get_feature_names_out()
        overall = np.asarray(vectors.mean(axis=0)).ravel()
        excess = (np.asarray(vectors[labels == topic].mean(axis=0)).ravel() - overall for topic in range(num_topics))
        self.names = _distinct(["/".join(terms[np.argsort(-row, kind="stable")[:_TERMS_IN_NAME]]) for row in excess])

    def _embed(self, vectors: Any) -> np.ndarray:
        """Reduced vectors of length 1, or 0 for a text without a known word."""
        reduced = self.reduction.transform(vectors)
        return reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), np.finfo(np.float64).tiny)

    def nearest(self, texts: list[str]) -> np.ndarray:
        """i64[N], the centre nearest to each text."""
        points = self._embed(self.vectorizer.transform(texts))
        # A separate sum for each pair: a matrix product may round a row differently depending on its place in the block.
        return ((points[:, None, :] - self.centres) ** 2).sum(axis=-1).argmin(axis=-1)


def _sample(texts: Iterable[str]) -> list[str]:
    """The distinct texts with the smallest digests, in the order of these."""
    kept: dict[bytes, str] = {}
    for text in texts:
        kept[hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()] = text
        if len(kept) >= 2 * _FITTED:
            kept = dict(sorted(kept.items())[:_FITTED])
    return [text for _, text in sorted(kept.items())[:_FITTED]]


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while block := list(islice(iterator, _TEXTS_PER_BLOCK)):
        yield block


def _distinct(names: list[str]) -> tuple[str, ...]:
    """The names, with a number added to those that occurred before."""
    return tuple(
        f"{name} ({names[:index].count(name) + 1})" if name in names[:index] else name for index, name in enumerate(names)
    )

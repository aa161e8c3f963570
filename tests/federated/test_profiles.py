"""Client profiles: what is known of clients' instructions before training."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.data import Client, FederatedData
from devft_jax.errors import InputError
from devft_jax.federated import profiles
from devft_jax.federated.profiles import instructions, profiled_clients
from tests.tiny import examples_from

VOCABULARY, WIDTH = 30, 6
TOPICS = ((3, 4, 5, 6), (10, 11, 12, 13), (20, 21, 22, 23))
EMBED = jnp.asarray(np.random.default_rng(0).normal(size=(VOCABULARY, WIDTH)), jnp.float32)


def population(topics, examples=6, seed=0):
    """Clients whose prompts are words of their topics, in turn where a client has several, after a common word."""
    rng = np.random.default_rng(seed)
    rows, prompts, clients = [], [], []
    for position, own in enumerate(topics):
        first = len(rows)
        for number in range(examples):
            words = rng.choice(TOPICS[own[number % len(own)]], rng.integers(4, 7)).tolist()
            rows.append([1, *words, *rng.integers(3, VOCABULARY, 3).tolist()])
            prompts.append(1 + len(words))
        clients.append(Client(f"client {position}", position, np.arange(first, len(rows))))
    return FederatedData(examples_from(rows, prompts), tuple(clients), "files", None, "completion")


def test_an_instruction_is_the_normalised_mean_over_the_prompt():
    data = population([(0,), (1,)])
    table = np.asarray(EMBED)
    index = np.array([7, 0, 3])
    found = instructions(data.train, table, index)
    for row, example in zip(found, index, strict=True):
        prompt = data.train.row(example)[: data.train.prompt_lengths[example]]
        mean = table[prompt].mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_an_empty_prompt_is_zero():
    examples = examples_from([[4, 5], [3, 6, 7]], [0, 1])
    found = instructions(examples, np.asarray(EMBED), np.array([0, 1, 0]))
    assert not found[[0, 2]].any()
    assert np.linalg.norm(found[1]) == pytest.approx(1)
    assert not instructions(examples, np.asarray(EMBED), np.array([0])).any()


def test_answers_do_not_matter():
    data = population([(0,), (1,), (2,)])
    tokens = np.where(data.train.is_answer, 7, data.train.tokens).astype(np.int32)
    other = dataclasses.replace(data, train=dataclasses.replace(data.train, tokens=tokens))
    one, two = (profiled_clients(each, EMBED, 5) for each in (data, other))
    np.testing.assert_array_equal(one.histograms(3), two.histograms(3))
    np.testing.assert_array_equal(one.domains(2), two.domains(2))


def test_domains_follow_the_topics():
    clients = profiled_clients(population([(1,), (0,), (1,), (2,), (0,), (2,)]), EMBED, 3)
    domains = clients.domains(3)
    assert domains.dtype == np.int32
    assert domains.tolist() == [0, 1, 0, 2, 1, 2]


def test_histograms_are_the_shares_of_the_topics():
    clients = profiled_clients(population([(0,), (0, 1), (1, 2), (2, 2, 0)]), EMBED, 3)
    found = clients.histograms(3)
    assert found.dtype == np.float32
    order = [int(found[0].argmax())]
    order += [column for column in range(3) if column not in order and found[1, column] > 0]
    order += [column for column in range(3) if column not in order]
    expected = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [1 / 3, 0, 2 / 3]])
    np.testing.assert_allclose(found[:, order], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("clients", "examples", "domains", "clusters"), [(1, 1, 1, 1), (3, 1, 3, 5), (4, 2, 3, 5), (2, 2, 3, 4)]
)
def test_every_domain_has_a_client_and_histograms_sum_to_one(clients, examples, domains, clusters):
    # All clients have one topic, and some fewer examples than there are clusters.
    profiled = profiled_clients(population([(0,)] * clients, examples=examples), EMBED, 2)
    histograms = profiled.histograms(clusters)
    assert histograms.shape == (clients, clusters)
    np.testing.assert_allclose(histograms.sum(axis=1), 1, atol=1e-6)
    if domains > clients:
        with pytest.raises(InputError, match=f"domains {domains} exceeds the {clients} clients .* use {clients} or fewer"):
            profiled.domains(domains)
    else:
        assert sorted(set(profiled.domains(domains).tolist())) == list(range(domains))


def test_blocks_and_a_sample_give_the_same_groups(monkeypatch):
    data = population([(0,), (1,), (2,), (1,)], examples=20)
    whole = profiled_clients(data, EMBED, 1)
    monkeypatch.setattr(profiles, "BLOCK", 7)
    blocks = profiled_clients(data, EMBED, 1)
    np.testing.assert_array_equal(blocks.histograms(3), whole.histograms(3))
    np.testing.assert_array_equal(blocks.domains(3), whole.domains(3))
    monkeypatch.setattr(profiles, "SAMPLE", 30)
    sampled = profiled_clients(data, EMBED, 1)
    largest = sampled.histograms(3).argmax(axis=1)
    assert largest[1] == largest[3]
    assert len(set(largest.tolist())) == 3
    np.testing.assert_array_equal(sampled.domains(3), whole.domains(3))


def test_wide_embeddings_are_projected(monkeypatch):
    data = population([(0,), (1,), (2,), (1,)])
    wide = jnp.asarray(np.random.default_rng(2).normal(size=(VOCABULARY, 400)), "bfloat16")
    monkeypatch.setattr(profiles, "DIRECTIONS", 64)
    monkeypatch.setattr(profiles, "VOCABULARY_BLOCK", 8)
    assert profiled_clients(data, wide, 1).domains(3).tolist() == [0, 1, 2, 1]


def test_nothing_is_computed_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(profiles, "instructions", lambda *arguments: pytest.fail("computed"))
    assert profiled_clients(population([(0,), (1,)]), EMBED, 1).size == 2

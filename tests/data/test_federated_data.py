"""The room as a whole: options, every split, held-out data, and errors that name the client."""

import json
from zlib import crc32

import numpy as np
import pytest

from devft_jax.data import DataOptions, build_federated_data, describe, pool, split_record, validate_data
from devft_jax.errors import InputError
from devft_jax.reporting.split import split_chart


@pytest.fixture
def folder(tmp_path):
    """Files client_1 (6 records), client_2 (12), client_10 (18) with categories x and y in each."""
    for name, count in ((1, 6), (2, 12), (10, 18)):
        write(tmp_path / f"client_{name}.json", name, count)
    return tmp_path


def write(path, first_word, count, **more):
    rows = [{"prompt": f"{first_word} {n}", "completion": str(n), "category": "xy"[n % 2]} | more for n in range(count)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def build(word_tokenizer):
    def call(seed=0, **options):
        options = DataOptions(**{"template": "completion"} | options)
        return build_federated_data(options, word_tokenizer(), seed=seed)

    return call


def words(data, client):
    """First prompt word of each example of a client: which file it came from."""
    starts = data.train.starts[client.indices]
    return set((data.train.tokens[starts + 1] - 29).tolist())


def assert_each_example_once(data):
    together = np.concatenate([client.indices for client in data.clients])
    assert sorted(together) == list(range(len(data.train)))


def test_several_files_are_clients_of_stable_identity(build, folder):
    data = build(data=str(folder))
    assert data.partition == "file"
    assert [client.name for client in data.clients] == ["client_1", "client_2", "client_10"]
    assert [words(data, client) for client in data.clients] == [{1}, {2}, {10}]
    assert [len(client.indices) for client in data.clients] == [6, 12, 18]
    assert_each_example_once(data)
    ids = {client.name: client.id for client in data.clients}
    assert ids == {name: crc32(name.encode()) for name in ids}
    (folder / "client_2.json").unlink()
    write(folder / "client_0.json", 0, 3)
    changed = build(data=(str(folder / "client_10.json"), str(folder / "client_0.json")))
    assert changed.clients[0].id == ids["client_10"]
    assert data.test is None


def test_a_pool_is_one_client_with_everything(build, folder):
    data = build(data=str(folder))
    pooled = pool(data)
    assert [(client.name, client.id) for client in pooled.clients] == [("pool", 0)]
    np.testing.assert_array_equal(pooled.clients[0].indices, np.arange(36))
    assert pooled.train is data.train
    assert describe(pooled).splitlines()[1].split()[:2] == ["pool", "36"]
    assert split_record(pooled).clients[0].groups == {"x": 18, "y": 18}
    assert [client.name for client in data.clients] == ["client_1", "client_2", "client_10"]


def test_one_file_is_split_evenly(build, folder):
    data = build(data=str(folder / "client_10.json"), clients=5)
    assert data.partition == "iid"
    assert [(client.name, client.id) for client in data.clients][:2] == [
        ("client-0", 0),
        ("client-1", 1),
    ]
    assert sorted(len(client.indices) for client in data.clients) == [3, 3, 4, 4, 4]
    assert_each_example_once(data)


def test_a_client_per_value_of_a_field(build, folder):
    data = build(data=str(folder), partition="field")
    assert [client.name for client in data.clients] == ["x", "y"]
    assert [client.id for client in data.clients] == [crc32(b"x"), crc32(b"y")]
    for code, client in enumerate(data.clients):
        assert (data.train.category_codes[client.indices] == code).all()
    assert_each_example_once(data)


def test_dirichlet_splits_repeat_with_the_seed(build, folder):
    options = {"data": str(folder), "partition": "dirichlet", "clients": 4, "dirichlet_alpha": 0.01}
    first, again, other = (build(**options, seed=seed) for seed in (0, 0, 1))
    assert_each_example_once(first)
    same, different = (
        all(np.array_equal(left.indices, right.indices) for left, right in zip(first.clients, rival.clients, strict=True))
        for rival in (again, other)
    )
    assert same
    assert not different


def contents(data):
    """The token ids of each client's examples, as a multiset."""
    ids = [data.train.row(index).tolist() for index in range(len(data.train))]
    return {client.name: sorted(ids[index] for index in client.indices) for client in data.clients}


@pytest.mark.parametrize("method", ["topic", "length", "quantity"])
def test_splits_without_labels_do_not_depend_on_the_order_of_the_file(build, tmp_path, method):
    subjects = ("garden flowers bloom", "sorted numbers ascend", "rivers reach oceans")
    rows = [{"prompt": f"{subjects[n % 3]} {n}", "completion": "7 " * (1 + n % 11)} for n in range(90)]
    path, shuffled = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(json.dumps(rows))
    shuffled.write_text(json.dumps([rows[index] for index in np.random.default_rng(0).permutation(90)]))
    options = {"partition": method, "clients": 5, "dirichlet_alpha": 0.3, "partition_groups": 3}
    first, again = (build(data=str(one), **options) for one in (path, shuffled))
    assert_each_example_once(first)
    assert contents(first) == contents(again)
    assert contents(first) != contents(build(data=str(path), **options, seed=1))
    assert split_record(first) == split_record(again)


def test_a_topic_split_is_told_by_its_topics(build, tmp_path):
    subjects = ("garden flowers bloom", "sorted numbers ascend")
    rows = [{"prompt": f"{subjects[n % 3 > 0]} {n}", "completion": "7"} for n in range(30)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    data = build(data=str(path), partition="topic", clients=3, partition_groups=2, test_data=str(path))
    assert data.groups.kind == "topic"
    sizes = data.groups.count(np.arange(30))
    assert sizes.tolist() == [20, 10]
    lines = describe(data).splitlines()
    assert lines[0].split()[-1] == "topics"
    assert lines[4].endswith(f"{data.groups.names[0]} 20, {data.groups.names[1]} 10")
    assert lines[5].split() == ["test", "30", str(data.test.lengths.sum())]
    with pytest.raises(InputError, match="'topic' cannot make 31 topics of 30 distinct texts"):
        build(data=str(path), partition="topic", clients=3, partition_groups=31)


def users(tmp_path, counts):
    path = tmp_path / "users.json"
    rows = [
        {"prompt": str(user), "completion": "7", "user_id": user} for user, count in counts.items() for _ in range(count)
    ]
    path.write_text(json.dumps(rows))
    return {"data": str(path), "partition": "field", "category_field": "user_id"}


def test_thousands_of_users_known_by_numbers_are_clients(build, tmp_path):
    data = build(**users(tmp_path, {number: 1 + number % 3 for number in range(3000)}))
    assert len(data.clients) == 3000
    assert_each_example_once(data)
    sizes = {client.name: len(client.indices) for client in data.clients}
    assert sizes == {str(number): 1 + number % 3 for number in range(3000)}
    table = describe(data).splitlines()
    assert table[0].split() == ["client", "examples", "tokens"]
    assert table[51:53] == ["... and 2,950 more", "all 3,000 (field)      6,000  24,000"]
    record = split_record(data)
    assert (record.grouped_by, record.groups, len(record.clients)) == (None, {}, 3000)


def test_small_natural_clients_can_be_left_out(build, tmp_path, folder):
    counts = {7: 5, 8: 1, 9: 2, 10: 3}
    with pytest.warns(UserWarning, match="2 of 4 clients have fewer than 3 training examples and are left out with their 3"):
        data = build(**users(tmp_path, counts), min_examples=3)
    assert [(client.name, client.id) for client in data.clients] == [(name, crc32(name.encode())) for name in ("10", "7")]
    assert [words(data, client) for client in data.clients] == [{10}, {7}]
    assert len(data.train) == 8
    assert_each_example_once(data)
    with pytest.raises(InputError, match="min_examples 6 leaves no client, since the largest has 5"):
        build(**users(tmp_path, counts), min_examples=6)
    (tmp_path / "users.json").unlink()
    with pytest.warns(UserWarning, match="1 of 3 clients"):
        data = build(data=str(folder), min_examples=7)
    assert [words(data, client) for client in data.clients] == [{2}, {10}]


def test_a_held_out_fraction_is_random_and_disjoint(build, folder):
    data, again, other = (build(data=str(folder), test_fraction=0.25, seed=s) for s in (0, 0, 1))
    held_out = set(data.test.record_index)
    assert len(held_out) == len(data.test) == 9
    assert held_out | set(data.train.record_index) == set(range(36))
    assert_each_example_once(data)
    assert [words(data, client) for client in data.clients] == [{1}, {2}, {10}]
    assert held_out == set(again.test.record_index)
    assert held_out != set(other.test.record_index)
    assert len(build(data=str(folder), test_fraction=0.25, test_limit=4).test) == 4


def test_test_data_leaves_out_prompts_without_room(build, folder, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("test") / "test.json", "3 " * 30, 1)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {"prompt": "4", "completion": "5"}]))
    with pytest.warns(UserWarning, match="1 of 2 prompts leave no room"):
        data = build(data=str(folder), test_data=str(path), max_length=16)
    assert len(data.train) == 36
    assert data.test.tokens.tolist() == [1, 29 + 4, 29 + 5, 2]


def test_limits(build, folder):
    data = build(data=str(folder), data_limit=18, test_data=str(folder / "client_2.json"), test_limit=5)
    assert [len(client.indices) for client in data.clients] == [3, 6, 9]
    assert len(data.test) == 5


def test_a_client_left_without_examples_is_named(build, folder):
    write(folder / "client_3.json", "3 " * 30, 4)
    with (
        pytest.raises(InputError, match="the client 'client_3' has no training example left"),
        pytest.warns(UserWarning, match="dropped"),
    ):
        build(data=str(folder), max_length=16)
    write(folder / "client_3.json", "3 " * 30, 4, category="z")
    with (
        pytest.raises(InputError, match="the client 'z' has no training example left"),
        pytest.warns(UserWarning, match="dropped"),
    ):
        build(data=str(folder), max_length=16, partition="field")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "none"}, "template 'none' is unknown"),
        ({"overlong": "cut"}, "overlong 'cut' is unknown"),
        ({"partition": "sorted"}, "partition 'sorted' is unknown; choose from auto, iid"),
        ({"max_length": 1}, "max_length 1 is below 2; use 2 tokens or more"),
        ({"test_fraction": 1.0}, r"test_fraction 1.0 is outside \[0, 1\)"),
        ({"test_fraction": 0.1, "test_data": "a.json"}, "exclude each other; give one"),
        ({"dirichlet_alpha": 0.0}, "dirichlet_alpha 0.0 is not positive; 0.5 is usual"),
        ({"partition_groups": 1}, "partition_groups 1 is below 2; use 2 or more to skew between"),
        ({"min_examples": -1}, "min_examples -1 is negative"),
        ({"clients": 0}, "clients 0 is not positive"),
        ({"data_limit": 0}, "data_limit 0 is not positive"),
        ({"test_limit": -1}, "test_limit -1 is not positive"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_read(build, options, message):
    with pytest.raises(InputError, match=message):
        validate_data(DataOptions(**options))
    with pytest.raises(InputError, match=message):
        build(data="absent.json", **options)


def test_defaults_are_valid():
    validate_data(DataOptions())


def test_missing_categories_are_named_where_they_are_needed(build, folder):
    path = folder / "plain.json"
    path.write_text(json.dumps([{"prompt": "1", "completion": "2"}] * 3))
    for method in ("dirichlet", "field"):
        with pytest.raises(InputError, match=rf"plain\.json:1 lacks a category, .* '{method}'"):
            build(data=str(path), partition=method, clients=1)
    with pytest.raises(InputError, match=r"plain\.json:1 lacks the field 'kind', which partition"):
        build(data=str(path), partition="field", category_field="kind")
    with pytest.raises(InputError, match="category_field 'kind' occurs in no record of the data"):
        build(data=str(path), category_field="kind", clients=1)


def test_too_little_data_is_refused(build, folder):
    path = str(folder / "client_1.json")
    with pytest.raises(InputError, match="6 examples cannot fill 20 clients"):
        build(data=path)
    write(folder / "single.json", 1, 1)
    with pytest.raises(InputError, match="cannot hold out part of one example"):
        build(data=str(folder / "single.json"), test_fraction=0.5, clients=1)


def test_description_is_a_table_of_the_split(build, folder):
    data = build(data=str(folder), test_fraction=0.25, max_length=4)
    lines = describe(data).splitlines()
    assert lines[0].split() == ["client", "examples", "tokens", "categories"]
    assert [line.split()[0] for line in lines[1:4]] == ["client_1", "client_2", "client_10"]
    counts = [line.split()[1] for line in lines[1:4]]
    assert counts == [str(len(client.indices)) for client in data.clients]
    assert lines[4].split()[:5] == ["all", "3", "(file)", "27", "108"]
    assert lines[5].split()[:3] == ["test", "9", "36"]
    assert "x " in lines[4]
    worded = "template completion; an example begins with <s> and ends in no special token"
    assert lines[6:] == ["27 training completions are cut at the length limit", worded]
    shortened = describe(data, max_clients=1).splitlines()
    assert shortened[2] == "... and 2 more"


def test_the_record_of_a_split_adds_up(build, folder):
    (folder / "plain.json").write_text(json.dumps([{"prompt": "1", "completion": "2"}] * 3))
    data = build(data=str(folder))
    record = split_record(data)
    assert (record.partition, record.examples, record.grouped_by) == ("file", 39, "category")
    assert record.groups == {"x": 18, "y": 18}
    assert record.tokens == sum(client.tokens for client in record.clients) == len(data.train.tokens)
    first, last = record.clients[0], record.clients[-1]
    assert first.to_plain() == {
        "name": "client_1",
        "id": crc32(b"client_1"),
        "examples": 6,
        "tokens": 6 * 5,
        "groups": {"x": 3, "y": 3},
    }
    assert (last.name, last.examples, last.groups) == ("plain", 3, {})


def test_rare_categories_are_summed_up(build, tmp_path):
    rows = [{"prompt": "1", "completion": "2", "category": f"c{n % 7}"} for n in range(29)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    line = describe(build(data=str(path), clients=1)).splitlines()[1]
    assert line.endswith("c0 5, c1 4, c2 4, c3 4, 3 more")


def test_a_folder_brings_its_held_out_data(build, folder):
    write(folder / "test.json", 7, 4)
    data = build(data=str(folder))
    assert [client.name for client in data.clients] == ["client_1", "client_2", "client_10"]
    assert len(data.train) == 36
    assert len(data.test) == 4
    assert {int(data.test.row(number)[1]) for number in range(4)} == {29 + 7}
    assert describe(data).splitlines()[-1] == "held out because of the file name: test.json"
    assert len(build(data=str(folder), test_limit=2).test) == 2


def test_held_out_data_that_is_asked_for_takes_the_place_of_the_folders(build, folder):
    write(folder / "test.json", 7, 4)
    unused = "neither trained nor tested on because of the file name: test.json"
    fraction = build(data=str(folder), test_fraction=0.25)
    assert (len(fraction.train), len(fraction.test), fraction.notes) == (27, 9, (unused,))
    named = build(data=str(folder), test_data=str(folder / "client_1.json"))
    assert (len(named.train), len(named.test), named.notes) == (36, 6, (unused,))
    # As test data a folder means its test files, and as one of several names it means all its files.
    assert len(build(data=str(folder / "client_1.json"), test_data=str(folder), clients=2).test) == 4
    both = build(data=(str(folder), str(write(folder.parent / "other.json", 1, 2))))
    assert "test" in [client.name for client in both.clients]
    assert both.test is None


def test_held_out_examples_share_the_tokens(build, folder):
    data = build(data=str(folder), test_fraction=0.25)
    assert data.train.tokens is data.test.tokens


@pytest.fixture(scope="module")
def real_tokenizer(shared):
    from devft_jax.models.huggingface.tokenizer import load_tokenizer

    return load_tokenizer(shared / "models" / "proxy-16l")


@pytest.mark.parametrize(
    ("name", "clients", "held_out"),
    [("alpaca-52k", 20, 0), ("dolly-15k-fed10", 10, 80), ("alpaca-gpt4-2k", 20, 60), ("gsm8k", 20, 60), ("gpteacher", 2, 0)],
)
def test_real_folders_load_by_their_name_alone(shared, real_tokenizer, name, clients, held_out):
    options = DataOptions(data=str(shared / "data" / name), data_limit=200, test_limit=held_out or None)
    data = build_federated_data(options, real_tokenizer)
    assert len(data.clients) == clients
    assert 150 <= len(data.train) <= 200
    assert data.template == "alpaca"
    assert (0 if data.test is None else len(data.test)) >= 0.8 * held_out
    assert (data.test is None) == (held_out == 0)
    assert all("README" not in client.name for client in data.clients)


@pytest.mark.slow
def test_real_federated_data_is_read_whole(shared, word_tokenizer):
    options = DataOptions(data=str(shared / "data" / "dolly-15k-fed10"), max_length=8192)
    found = build_federated_data(options, word_tokenizer())
    assert [client.name for client in found.clients] == [f"local_training_{n}" for n in range(10)]
    sizes = [1493, 1493, 1493, 1492, 1493, 1493, 1493, 1493, 1494, 1494]
    assert [len(client.indices) for client in found.clients] == sizes
    assert len(found.test) == 80
    assert len(found.train.category_names) == 8


def test_names_are_true_in_the_split_and_harmless_where_they_are_shown(build, tmp_path):
    odd = "a\x1b[31m\u202eb"
    for name in (odd, "plain"):
        write(tmp_path / f"{name}.json", 1, 4, category=f"k{name}")
    write(tmp_path / f"test_{odd}.json", 1, 4)
    data = build(data=str(tmp_path))
    record = split_record(data)
    assert [client.name for client in record.clients] == [odd, "plain"]
    assert record.clients[0].groups == {f"k{odd}": 4}
    for text in (describe(data), split_chart(record)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert r"a\x1b[31m\u202eb" in text

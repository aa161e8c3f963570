"""Which files a path, folder or glob means, and which are held out."""

import json

import pytest

from devft_jax.data.folders import held_out_files, named_part
from devft_jax.data.sources import load_sources
from devft_jax.errors import InputError
from tests.data.written import ALPACA, GOOD, read, write, write_parquet, write_rows


def test_a_folder_and_a_glob_come_in_natural_order_and_skip_other_files(tmp_path):
    for number in (10, 2, 1):
        write_rows(tmp_path / f"client_{number}.json", [ALPACA])
    write(tmp_path / "README.md", "not data")
    expected = ["client_1", "client_2", "client_10"]
    assert [source.name for source in load_sources(str(tmp_path))] == expected
    assert [source.name for source in load_sources(str(tmp_path / "*"))] == expected


def test_files_of_equal_name_are_named_by_their_path_under_the_glob(tmp_path):
    for user in ("a", "b"):
        write_rows(tmp_path / "users" / user / "train.json", [ALPACA])
    sources = load_sources(str(tmp_path / "users" / "*" / "train.json"))
    assert [source.name for source in sources] == ["a/train", "b/train"]


def test_a_glob_takes_a_file_once_where_links_go_in_a_circle(tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.jsonl", '{"prompt": "a", "completion": "b"}')
    (tmp_path / "folder" / "again").symlink_to(tmp_path)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    assert [source.name for source in load_sources(str(tmp_path / "**/*.jsonl"))] == ["folder/a"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("test testing global_test alpaca_gpt4_eval Valid VAL val my.val.data evaluation dev2 9dev a_val", "held-out"),
        ("validation-00000-of-00001 held_out my.heldout.data held-out", "held-out"),
        ("train Training train_dev training-test train.val", "training"),
        ("latest contest evaluations device_3 value interval évals testé validity trainer", None),
    ],
)
def test_what_names_say_about_the_split(names, expected):
    assert {name: named_part(name) for name in names.split()} == dict.fromkeys(names.split(), expected)
    assert named_part("my val") == "held-out"


def test_the_words_are_all_those_of_the_datasets_package():
    from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

    for split, words in SPLIT_KEYWORDS.items():
        expected = "training" if str(split) == "train" else "held-out"
        for word in words:
            separators = [letter for letter in NON_WORDS_CHARS if not letter.isdigit()] + ["0", "9"]
            for between in separators:
                assert named_part(f"a{between}{word.upper()}{between}b") == named_part(word) == expected


def test_subfolders_called_after_splits_belong_to_the_folder(tmp_path):
    for name in ("train/a", "train/test_notes", "val/b", "data/dev/c", "data/d", "data/Test-1/train", "images/e", "f"):
        write_rows(tmp_path / f"{name}.jsonl", [ALPACA])
    (tmp_path / "data" / "data").symlink_to(tmp_path)
    names = ["data/d", "f", "train/a", "train/test_notes"]
    assert [source.name for source in load_sources(str(tmp_path))] == names
    aside = ["data/Test-1/train", "data/dev/c", "val/b"]
    assert [source.name for source in load_sources(str(tmp_path), held_out=True)] == aside
    assert [path.relative_to(tmp_path).as_posix() for path in held_out_files(str(tmp_path))] == [f"{n}.jsonl" for n in aside]


def test_a_folder_sets_its_test_files_aside_and_nothing_else_does(tmp_path):
    for name in ("train.csv", "more.jsonl", "test.json", "dataset_info.json", "config.json", ".hidden.json", "README.md"):
        text = "instruction,output\na,b\n" if name.endswith("csv") else json.dumps(ALPACA)
        write(tmp_path / name, text)
    folder = str(tmp_path)
    assert [source.name for source in load_sources(folder)] == ["more", "train"]
    assert [source.name for source in load_sources(folder, held_out=True)] == ["test"]
    assert held_out_files(folder) == held_out_files((folder,)) == (tmp_path / "test.json",)
    for literal in (f"{folder}/*t*.json", f"{folder}/test.json", (folder, "microtasks"), "microtasks"):
        assert held_out_files(literal) == ()
    assert "test" in [source.name for source in load_sources((folder, "microtasks::5"))]
    write_rows(tmp_path / "only" / "eval_1.json", [ALPACA])
    assert held_out_files(f"{folder}/only") == ()
    assert [source.name for source in load_sources(f"{folder}/only")] == ["eval_1"]


def test_the_shards_of_one_split_are_one_source(tmp_path):
    for number in range(3):
        write_parquet(tmp_path / f"train-{number:05}-of-00003.parquet", [ALPACA | {"output": str(number)}] * 2)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [ALPACA])
    [source] = load_sources(str(tmp_path))
    assert (source.name, len(source)) == ("train", 6)
    assert [record.output for record in source] == list("001122")
    assert [source.name for source in load_sources(str(tmp_path), held_out=True)] == ["test"]


def fill(path, output):
    """One record in any format, by the file's suffix."""
    row = ALPACA | {"output": output}
    if path.name.endswith("parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_parquet(path, [row])
    if ".json" in path.name:
        return write(path, json.dumps(row) + "\n" if "jsonl" in path.name else json.dumps([row]))
    between = "," if ".csv" in path.name else "\t"
    return write(path, between.join(row) + "\n" + between.join(row.values()) + "\n")


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ("train-00000-of-00002-0a1b2c3d4e5f6071.parquet train-00001-of-00002-96f1d5ab2c3d4e5f.parquet", "train"),
        ("train-00000-of-00002.jsonl train-00001-of-00002.jsonl", "train"),
        ("train-00000-of-00002-0a1b2c3d4e5f6071.csv.gz train-00001-of-00002-0a1b2c3d4e5f6072.csv.gz", "train"),
        ("c4-train.00000-of-00002.json.gz c4-train.00001-of-00002.json.gz", "c4-train"),
        ("all_0000_of_0002.tsv all_0001_of_0002.tsv", "all"),
        ("data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet", "data/train"),
        ("train/0000.parquet train/0001.parquet", "train"),
    ],
)
def test_every_naming_of_shards_is_one_source(tmp_path, names, whole):
    for number, name in enumerate(names.split()):
        fill(tmp_path / name, str(number))
    for spec in (str(tmp_path), str(tmp_path / "**/*.*"), [str(tmp_path / name) for name in reversed(names.split())]):
        [source] = load_sources(spec)
        assert source.name == (whole if isinstance(spec, str) else whole.rpartition("/")[2])
        assert [record.output for record in source] == ["0", "1"]


def test_shards_that_are_missing_are_said_and_two_sets_of_them_refused(tmp_path):
    for number in (1, 3):
        fill(tmp_path / f"train-{number:05}-of-00004.jsonl", str(number))
    with pytest.warns(UserWarning, match=r"'train' in .* lacks 2 of its 4 parts, the first is 00000; only the others"):
        assert [record.output for record in read(tmp_path)] == ["1", "3"]
    fill(tmp_path / "train-00001-of-00004-0a1b2c3d4e5f6071.jsonl", "again")
    with pytest.raises(InputError, match=r"are both part 1 of 'train'; remove the older one"):
        load_sources(str(tmp_path))
    (tmp_path / "train-00001-of-00004-0a1b2c3d4e5f6071.jsonl").unlink()
    fill(tmp_path / "train-00000-of-00005.jsonl", "other")
    with pytest.raises(InputError, match=r"one of 4 parts of 'train' and .* one of 5; remove those of the older set"):
        load_sources(str(tmp_path))


def test_numbered_files_of_clients_are_no_shards(tmp_path):
    for name in ("client-00000", "client-00001", "1-of-2", "2-of-2"):
        fill(tmp_path / f"{name}.jsonl", "a")
    for name in ("0000", "0001"):
        fill(tmp_path / f"{name}.parquet", "a")
    assert len(load_sources(str(tmp_path))) == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "data is empty"),
        ("a\0b.jsonl", "NUL character"),
        ("a\udcffb.jsonl", "not valid UTF-8"),
        ("~nobody-of-this-name/a.jsonl", "unknown home folder"),
        ("a" * 300 + ".jsonl", "too long"),
        ("microtasks:train:9999999999999999", "more than the 75,000 records of that split; lower it"),
        ("microtasks:train:" + "9" * 5000, "more than the 75,000 records"),
    ],
)
def test_odd_names_are_one_sentence(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        load_sources(spec)
    assert len(str(caught.value)) < 300


def test_a_file_name_that_is_no_text_is_refused_in_a_folder(tmp_path):
    import os

    (tmp_path / "ok.jsonl").write_text(GOOD)
    with open(os.fsencode(tmp_path) + b"/a\xff.jsonl", "w") as file:
        file.write(GOOD)
    for spec in (str(tmp_path), str(tmp_path / "*")):
        with pytest.raises(InputError, match=r"a\\udcff\.jsonl' is not valid UTF-8; rename the file"):
            load_sources(spec)


@pytest.mark.parametrize(
    ("folder", "training", "held_out"),
    [
        ("alpaca-52k", {"alpaca_52k": 51924}, {}),
        (
            "dolly-15k-fed10",
            {f"local_training_{n}": size for n, size in enumerate([1493] * 3 + [1492] + [1493] * 4 + [1494] * 2)},
            {"global_test": 80},
        ),
        ("alpaca-gpt4-2k", {"alpaca_en_demo": 999}, {"alpaca_gpt4_eval": 1000}),
        ("gsm8k", {"train": 7473}, {"test": 1319}),
        ("gpteacher", {"codegen-instruct": 4535, "roleplay-instruct": 1923}, {}),
    ],
)
def test_real_folders_hold_what_their_cards_say(shared, folder, training, held_out):
    path = str(shared / "data" / folder)
    assert {source.name: len(source) for source in load_sources(path)} == training
    aside = load_sources(path, held_out=True) if held_out_files(path) else []
    assert {source.name: len(source) for source in aside} == held_out
    for source in aside or load_sources(path, limit=200):
        assert all(record.instruction and record.output for record in source)

"""Bad data folders: one clear sentence, before training starts, nothing half-written."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from bench import LABELS, refused  # noqa: E402
from helpers import random_rows, write_data  # noqa: E402


def test_missing_data_folder(bench):
    refused(bench, bench.train("nowhere"), "nowhere/input0/dict.txt does not exist", "prepare_data")


@pytest.mark.parametrize("part", ["input0", "label"])
def test_missing_dictionary(bench, part):
    data = bench.own_data()
    (data / part / "dict.txt").unlink()
    refused(bench, bench.train(data), f"{part}/dict.txt does not exist")


def test_missing_split(bench):
    done = bench.train(valid_subset="valid,dev")
    refused(bench, done, "has no split 'dev'", "--valid-subset")


def test_missing_labels_of_a_split(bench):
    data = bench.own_data()
    for path in (data / "label").glob("test.*"):
        path.unlink()
    refused(bench, bench.train(data), "label/test.bin does not exist")


def test_split_named_twice(bench):
    refused(bench, bench.train(valid_subset="valid,valid"), "names a split twice")


def test_unknown_label(bench):
    def forget(rows):
        rows["valid"][3] = (rows["valid"][3][0], "ugly")

    data = bench.rows(forget)  # "ugly" is not in the dictionary: binarised as <unk>
    refused(bench, bench.train(data), "Row 4 of split 'valid' has the label '<unk>'", "bad, good")


def test_row_without_a_label(bench):
    def forget(rows):
        rows["train"][0] = (rows["train"][0][0], None)

    data = bench.rows(forget)
    refused(bench, bench.train(data), "Row 1 of split 'train' has the label 'nothing'")


def test_empty_row(bench):
    def empty(rows):
        rows["test"][20] = ([], "bad")

    refused(bench, bench.train(bench.rows(empty)), "input0: row 21 of split 'test' is empty")


def test_counts_that_differ(bench):
    data, other = bench.own_data(), bench.folder / "other"
    write_data(other, {"valid": random_rows()["valid"][:-1]}, LABELS)
    for suffix in (".bin", ".idx"):
        shutil.copy(other / f"label/valid{suffix}", data / f"label/valid{suffix}")
    refused(bench, bench.train(data), "'valid' has 21 rows in input0 and 20 in label")


def test_pairs_that_differ(bench):
    data = bench.own_data()
    shutil.copytree(data / "input0", data / "input1")
    for suffix in (".bin", ".idx"):
        shutil.copy(data / f"input0/test{suffix}", data / f"input1/train{suffix}")
    refused(bench, bench.train(data), "'train' has 21 rows in input1 and 67 in label")


def test_one_class(bench):
    data = bench.own_data()
    (data / "label/dict.txt").write_text("good 10\nmadeupword0000 0\n")
    refused(bench, bench.train(data), r"names 1 classes \(good\)", "at least 2")


def test_number_of_classes_that_differs(bench):
    refused(bench, bench.train(num_classes=3), "--num-classes 3, but .* names 2 classes")


def test_token_ids_beyond_the_dictionary(bench):
    data = bench.own_data()
    path = data / "input0/dict.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
    done = bench.train(data, finetune_from_model=None, from_scratch=True)
    refused(bench, done, "row 1 of split 'train' has the token id", "the dictionary 15 rows")


def test_rows_without_end_tokens(bench):
    """Data of another tool: the last word would be cut off in silence."""
    from fairseq.data.indexed_dataset import make_builder

    data = bench.own_data()
    builder = make_builder(str(data / "input0/test.bin"), impl="mmap", vocab_size=100)
    for _ in range(21):
        builder.add_item(torch.IntTensor([5, 6, 7]))
    builder.finalize(str(data / "input0/test.idx"))
    refused(bench, bench.train(data), "row 1 of split 'test' does not end with </s>")


@pytest.mark.parametrize("line", ["word", "word many", "w1 5"], ids=["no-count", "text", "double"])
def test_malformed_dictionary(bench, line):
    data = bench.own_data()
    with open(data / "input0/dict.txt", "a") as file:
        file.write(line + "\n")
    refused(bench, bench.train(data), "dict.txt is not a fairseq dictionary", "count")


@pytest.mark.parametrize("part", ["label", "input0"])
def test_dictionary_in_another_encoding(bench, part):
    data = bench.own_data()
    (data / part / "dict.txt").write_bytes("négatif 5\npositif 5\n".encode("latin-1"))
    refused(bench, bench.train(data), f"{part}/dict.txt is not a fairseq dictionary", "UTF-8")


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_data(bench, suffix, share):
    data = bench.own_data()
    bench.cut(data / f"input0/train{suffix}", f"data/input0/train{suffix}", share)
    refused(bench, bench.train(data), "input0/train.bin and .idx cannot be read", "Prepare")


def test_bin_without_idx(bench):
    data = bench.own_data()
    (data / "label/valid.idx").unlink()
    refused(bench, bench.train(data), "label/valid")

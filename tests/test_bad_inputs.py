"""Bad inputs: one clear sentence, a non-zero exit, before training starts, nothing half-written.

Each case goes through the command line of fairseq-train (or fairseq-validate) in a fresh process.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from helpers import TINY, random_rows, train_flags, write_data

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

LABELS = ["bad", "good"]


@pytest.fixture
def bench(fairseq, data_folder, base_checkpoint, tmp_path):
    return Bench(fairseq, data_folder, base_checkpoint, tmp_path)


class Bench:
    """A run that would work, to be spoiled in one place."""

    def __init__(self, fairseq, data, base, folder):
        self.fairseq, self.data, self.base, self.folder = fairseq, data, base, folder
        self.save_dir = folder / "run"

    def train(self, data=None, arch="roberta_small_lora", **more):
        flags = {"from_scratch": None, "finetune_from_model": self.base, **more}
        return self.fairseq("train", *train_flags(data or self.data, self.save_dir, arch, **flags))

    def own_data(self):
        """A copy of the data that a case may spoil."""
        return Path(shutil.copytree(self.data, self.folder / "data"))

    def rows(self, change, labels=LABELS, **more):
        """A folder with rows changed by ``change(rows)``."""
        rows = random_rows()
        change(rows)
        return write_data(self.folder / "data", rows, labels, **more)

    def spoiled_base(self, change):
        """A copy of the base whose state was changed by ``change(state)``."""
        state = torch.load(self.base, weights_only=True)
        change(state)
        torch.save(state, self.folder / "base.pt")
        return self.folder / "base.pt"

    def cut(self, path, name="cut.pt", share=0.5):
        content = Path(path).read_bytes()
        (self.folder / name).write_bytes(content[: int(len(content) * share)])
        return self.folder / name


def refused(bench, done, *parts):
    """One sentence of ours with ``parts`` in it, and nothing left behind."""
    assert done.returncode == 1, done.stdout[-2000:]
    lines = done.stderr.splitlines()
    ours = [line for line in lines if line.startswith("fairseq_peft: error: ")]
    assert len(ours) == 1 and "Traceback" not in done.stderr, done.stderr
    assert ours == lines, f"more than our line on stderr: {done.stderr}"
    for part in parts:
        assert re.search(part, ours[0]), f"{part!r} is not in: {ours[0]}"
    assert ours[0].rstrip().endswith("."), ours[0]
    left = [path.name for path in bench.save_dir.rglob("*")] if bench.save_dir.is_dir() else []
    assert left == [], f"left behind: {left}"
    assert "begin training epoch" not in done.stdout


# Where training starts


def test_missing_base(bench):
    done = bench.train(finetune_from_model="nowhere.pt")
    refused(bench, done, "base checkpoint nowhere.pt does not exist", "--from-scratch")


def test_missing_restore_file(bench):
    done = bench.train(finetune_from_model=None, restore_file="nowhere.pt")
    refused(bench, done, "base checkpoint nowhere.pt does not exist", "--from-scratch")


def test_no_base_and_not_from_scratch(bench):
    refused(bench, bench.train(finetune_from_model=None), "No base checkpoint", "--from-scratch")


def test_base_and_from_scratch(bench):
    refused(bench, bench.train(from_scratch=True), "--from-scratch and a base .* exclude each")


def test_base_and_restore_file(bench):
    done = bench.train(restore_file=bench.base)
    refused(bench, done, "--finetune-from-model .* and --restore-file .* exclude each other")


def test_base_and_reset_flags(bench):
    refused(bench, bench.train(reset_optimizer=True), "Leave --reset-optimizer and the like out")


def test_restore_file_of_another_criterion(bench):
    done = bench.train(finetune_from_model=None, restore_file=bench.base)
    refused(bench, done, "optimizer of a run with MaskedLmLoss", "--finetune-from-model")


# The checkpoint


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_base(bench, share):
    done = bench.train(finetune_from_model=bench.cut(bench.base, share=share))
    refused(bench, done, "cut.pt cannot be read as a checkpoint: it is cut short")


def test_truncated_last_checkpoint(bench):
    bench.save_dir.mkdir()
    last = bench.cut(bench.base, "run/checkpoint_last.pt")
    done = bench.train()
    last.unlink()
    refused(bench, done, "checkpoint_last.pt cannot be read as a checkpoint")


def test_base_that_is_text(bench):
    path = bench.folder / "model.pt"
    path.write_text("not a checkpoint\n")
    refused(bench, bench.train(finetune_from_model=path), "model.pt holds more than tensors")


def test_base_that_is_another_zip(bench):
    path = bench.folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    refused(bench, bench.train(finetune_from_model=path), "model.pt cannot be read")


def test_base_that_is_a_folder(bench):
    refused(bench, bench.train(finetune_from_model=bench.folder), "does not exist")


class Payload:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_base_with_a_payload_is_not_run(bench, legacy):
    path, trace = bench.folder / "model.pt", bench.folder / "the-payload-ran"
    if legacy:
        path.write_bytes(pickle.dumps({"model": {}, "x": Payload(trace)}))
    else:
        torch.save({"model": {}, "x": Payload(trace)}, path)
    refused(bench, bench.train(finetune_from_model=path), "is not opened, .* could run code")
    assert not trace.exists()


@pytest.mark.parametrize(
    "state, message",
    [
        ({"weights": torch.zeros(1)}, "has no weights under 'model'"),
        ([1, 2], "has no weights under 'model'"),
        ({"model": {"a": 1}}, "has no weights under 'model'"),
        ({"model": {"a": torch.zeros(1)}}, "not the entries 'optimizer_history'"),
    ],
)
def test_base_of_another_program(bench, state, message):
    torch.save(state, bench.folder / "model.pt")
    refused(bench, bench.train(finetune_from_model=bench.folder / "model.pt"), message)


def test_base_with_a_dictionary_of_another_size(bench):
    data = bench.rows(lambda rows: None, words=31)
    done = bench.train(data)
    refused(bench, done, r"embed_tokens.weight is \(35, 16\), expected \(36, 16\)", "dict.txt")


def test_base_with_another_dictionary_of_the_same_size(bench):
    """The ids would all be there, and mean other words."""
    data = bench.own_data()
    lines = (data / "input0/dict.txt").read_text().splitlines()
    base = Path(shutil.copy(bench.base, bench.folder / "base.pt"))
    (bench.folder / "dict.txt").write_text("\n".join(reversed(lines)) + "\n")
    done = bench.train(data, finetune_from_model=base)
    refused(bench, done, "comes with another dictionary: token 4 is 'w29'", "'w0' in")


@pytest.mark.parametrize(
    "knob, value",
    [("encoder_layers", 3), ("encoder_layers", 1), ("encoder_embed_dim", 32)],
)
def test_base_of_another_architecture(bench, knob, value):
    done = bench.train(**{knob: value})
    refused(bench, done, "does not fit the model", "Likely cause: .* another architecture")


def test_base_with_fewer_positions(bench):
    done = bench.train(max_positions=50)
    refused(bench, done, r"embed_positions.weight is \(42, 16\)", "--max-positions")


@pytest.fixture(scope="module")
def trained(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """The last checkpoint of a LoRA run on the two classes."""
    folder = tmp_path_factory.mktemp("trained")
    flags = {"from_scratch": None, "finetune_from_model": base_checkpoint}
    done = fairseq("train", *train_flags(data_folder, folder, **flags))
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint_last.pt"


def test_head_with_another_number_of_classes(bench, trained):
    def third(rows):
        rows["train"][0] = (rows["train"][0][0], "neutral")

    data = bench.rows(third, labels=[*LABELS, "neutral"])
    done = bench.train(data, finetune_from_model=trained)
    refused(bench, done, "knows 2 classes .*has 3", "--reset-head")
    done = bench.train(data, finetune_from_model=trained, reset_head=True)
    assert done.returncode == 0, done.stderr
    last = torch.load(bench.save_dir / "checkpoint_last.pt", weights_only=True)
    head = "classification_heads.sentence_classification_head.out_proj.weight"
    assert last["model"][head].shape[0] == 3
    # Resumed with the same flags, the head that was trained since is kept.
    done = bench.train(data, finetune_from_model=trained, reset_head=True, max_epoch=1)
    assert done.returncode == 0, done.stderr


def test_head_of_a_checkpoint_that_names_no_classes(bench, trained):
    """A stock checkpoint: the sizes are all there is to compare."""
    state = torch.load(trained, weights_only=True)
    del state["task_state"]
    torch.save(state, bench.folder / "base.pt")

    def third(rows):
        rows["train"][0] = (rows["train"][0][0], "neutral")

    data = bench.rows(third, labels=[*LABELS, "neutral"])
    done = bench.train(data, finetune_from_model=bench.folder / "base.pt")
    refused(bench, done, "has 2 classes, the data has 3", "--reset-head")


def test_head_of_other_classes(bench, trained):
    def rename(rows):
        for split in rows:
            rows[split] = [(words, label.upper()) for words, label in rows[split]]

    data = bench.rows(rename, labels=["BAD", "GOOD"])
    done = bench.train(data, finetune_from_model=trained)
    refused(bench, done, r"\(bad, good\)", r"\(BAD, GOOD\)", "--reset-head")


def test_lora_checkpoint_for_an_adapter_run(bench, trained):
    done = bench.train(arch="roberta_small_adapter", finetune_from_model=trained)
    refused(bench, done, "left over", "lora_")


def test_lora_checkpoint_of_another_rank(bench, trained):
    done = bench.train(lora_rank=4, finetune_from_model=trained)
    refused(bench, done, "Likely cause: .* another value of --peft or --lora-rank")


# The data folder


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


# Flags


@pytest.mark.parametrize(
    "more, parts",
    [
        ({"peft_targets": "query"}, ["'?query'? matches no module", "Try q_proj,v_proj"]),
        ({"peft": "loar"}, ["--peft 'loar' is unknown", "lora"]),
        ({"lora_rank": 0}, ["--lora-rank 0"]),
        ({"lora_dropout": 1}, ["--lora-dropout 1"]),
        ({"adapter_bottleneck": 8}, ["--adapter-bottleneck would be ignored: --peft lora"]),
        ({"peft": "prompt", "prompt_num_tokens": 35}, ["35 prompt or prefix tokens leave 5 of 40"]),
        ({"max_valid_steps": 1}, ["--max-valid-steps 1 would leave rows out"]),
        ({"fp16": True}, ["--precision bf16"]),
        ({"bf16": True}, ["--precision bf16"]),
        ({"precision": "half"}, ["--precision 'half' is unknown"]),
        ({"combine_val": True}, ["--combine-val would be ignored"]),
        ({"criterion": "cross_entropy"}, ["--criterion cross_entropy does not go with"]),
        ({"criterion": "sentence_prediction"}, ["--criterion sentence_prediction does not"]),
        ({"adamw_betas": "0.9"}, ["--adamw-betas '0.9' is not a pair"]),
        ({"arch": None}, ["--arch is missing"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_flag(bench, more, parts):
    refused(bench, bench.train(**more), *parts)


@pytest.mark.parametrize("arch", ["roberta_base", "transformer"])
def test_stock_architecture(bench, arch):
    """Stock fairseq owns the bare name roberta_base."""
    unknown = {name: None for name in TINY if arch != "roberta_base"}
    done = bench.train(arch=arch, **unknown)
    refused(bench, done, f"--arch {arch} does not go with --task sentence_classification")


def test_missing_init_embeddings(bench):
    done = bench.train(finetune_from_model=None, from_scratch=True, init_embeddings="no.npz")
    refused(bench, done, "--init-embeddings no.npz cannot be read")


def test_learning_rate_at_which_training_diverges(bench):
    """Known only in training; still a sentence, and no dump of all weights."""
    done = bench.train(lr=1e30)
    assert done.returncode == 1
    assert done.stderr.startswith("fairseq_peft: error: The gradients' norm is nan: training has")
    assert "--lr" in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in bench.save_dir.iterdir()) == ["run.json"]


# Places


def test_save_dir_that_is_a_file(bench):
    bench.save_dir.write_text("here first\n")
    refused(bench, bench.train(), "run", "--save-dir")
    assert bench.save_dir.read_text() == "here first\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_save_dir(bench):
    bench.save_dir.mkdir(mode=0o500)
    refused(bench, bench.train(), "run", "Permission denied", "--save-dir")


def test_run_that_exists_stays_as_it_was(bench, trained):
    """A resumed run with a flag that does not fit leaves checkpoint, run.json and metrics alone."""
    shutil.copytree(trained.parent, bench.save_dir)
    files = [path for path in bench.save_dir.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    done = bench.train(lora_rank=4, max_epoch=2)
    assert done.returncode == 1 and "--lora-rank" in done.stderr
    assert {path: path.read_bytes() for path in files} == before
    assert [path for path in bench.save_dir.rglob("*") if path.is_file()] == files


# fairseq-validate


def validate(bench, data, checkpoint, task="sentence_classification"):
    words = [data, "--user-dir", Path(__file__).parents[1] / "fairseq_peft", "--path", checkpoint]
    words += ["--batch-size", 8, "--num-workers", 0, "--cpu"]
    return bench.fairseq("validate", *words, *(["--task", task] if task else []))


def test_validate_without_a_task(bench, trained):
    refused(bench, validate(bench, bench.data, trained, task=None), "--task is missing")


def test_validate_on_an_unknown_class(bench, trained):
    data = bench.rows(lambda rows: None, labels=[*LABELS, "ugly"])
    refused(bench, validate(bench, data, trained), "class 'ugly'.* knows bad, good")


def test_validate_with_another_dictionary(bench, trained):
    data = bench.own_data()
    lines = (data / "input0/dict.txt").read_text().splitlines()
    (data / "input0/dict.txt").write_text("\n".join(reversed(lines)) + "\n")
    refused(bench, validate(bench, data, trained), "is not the dictionary that the checkpoint")


def test_validate_on_a_missing_split(bench, trained):
    data = bench.own_data()
    for path in data.rglob("valid.*"):
        path.unlink()
    refused(bench, validate(bench, data, trained), "has no split 'valid'")


# What looks bad and is not


def test_dictionary_that_lists_the_mask(bench):
    """31,995 lines make 32,000 rows; so do 31,996 that list <mask> themselves, at the end."""
    data = bench.own_data()
    with open(data / "input0/dict.txt", "a") as file:
        file.write("<mask> 0\n")
    done = bench.train(data)
    assert done.returncode == 0, done.stderr


def test_classes_in_another_order_keep_their_outputs(bench, trained):
    """The checkpoint's order wins over that of label/dict.txt, for training on and for scoring."""
    rows = random_rows()
    data = write_data(bench.folder / "data", rows, ["good", "bad"])
    a, b = (validate(bench, folder, trained) for folder in (bench.data, data))
    line = r"valid on 'valid' subset \| (.*)"
    assert a.returncode == b.returncode == 0, b.stderr
    assert re.search(line, a.stdout)[1] == re.search(line, b.stdout)[1]
    done = bench.train(data, finetune_from_model=trained)
    assert done.returncode == 0, done.stderr
    last = torch.load(bench.save_dir / "checkpoint_last.pt", weights_only=True)
    assert last["task_state"]["labels"] == ["bad", "good"]

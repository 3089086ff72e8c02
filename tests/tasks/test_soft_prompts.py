"""Soft prompts and prefixes by the command line: room for them, prompts from a text, going on."""

from __future__ import annotations

import argparse
import copy
import os
import shutil

import pytest
from helpers import TINY, task_config, train_flags
from runs import same, validate_flags

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq_peft.models.roberta import architecture  # noqa: E402
from fairseq_peft.tasks.sentence_classification import SentenceClassificationTask  # noqa: E402
from fairseq_peft.text import raw_text  # noqa: E402

PROMPT = "encoder.sentence_encoder.soft_prompt.embeddings"
TEXT = "un livre [beau]"


@pytest.fixture(scope="module")
def words_folder(data_folder, tmp_path_factory):
    """The data folder with pieces of a sentencepiece model for its 30 words."""
    folder = shutil.copytree(data_folder, tmp_path_factory.mktemp("words") / "tiny")
    lines = [
        "un beau livre et une fin vive que je relis",
        "la fin est triste et fade",
        "le livre est nul mais drôle",
        "bravo pour cet ouvrage que je garde",
    ]
    raw_text.train_tokenizer(5 * lines, folder, vocab_size=30 + raw_text.NUM_SPM_SPECIALS)
    shutil.copy(folder / raw_text.DICT_NAME, folder / "input0")
    return folder


def build_for(folder, peft, **given):
    """A task and a model that it built, as for a checkpoint."""
    task = SentenceClassificationTask.setup_task(task_config(folder))
    args = argparse.Namespace(_name="roberta_small", **TINY, peft=peft, **given)
    architecture("roberta_small", "full")(args)
    return task, task.build_model(args, from_checkpoint=True)


@pytest.mark.parametrize(
    "peft, given, room",
    [
        ("prompt", {"prompt_num_tokens": 7}, 33),
        ("prefix", {"prefix_num_tokens": 20}, 40),
        ("prefix", {"prefix_num_tokens": 20, "prefix_positions": "reserved"}, 20),
        ("prompt,prefix", {"prompt_num_tokens": 7, "prefix_num_tokens": 20}, 33),
    ],
)
def test_texts_are_cut_to_the_room_that_is_left(data_folder, peft, given, room):
    """Every text passes through the model, and the longest fills its positions."""
    task, model = build_for(data_folder, peft, **given)
    dataset = task.load_dataset("train")
    assert task.max_tokens == task.max_positions() == room == 40 - model.num_reserved
    longest = max(range(len(dataset)), key=dataset.num_tokens)
    assert dataset.num_tokens(longest) == min(room, 35)
    with torch.no_grad():
        model(**dataset.collater([dataset[longest]])["net_input"], features_only=True)


def test_a_text_is_read_as_the_data_was(words_folder):
    task, model = build_for(words_folder, "full")
    known = {line.split(" ")[0] for line in (words_folder / "dict.txt").open(encoding="utf-8")}
    tokenizer = raw_text.load_tokenizer(words_folder / raw_text.MODEL_NAME)
    expected = [
        piece if piece in known else "<unk>" for piece in tokenizer.encode(TEXT, out_type=str)
    ]
    assert len(expected) > 6 and expected[-1] == "<unk>"
    assert [task.dictionary[i] for i in model.encode_text(TEXT)] == expected
    assert copy.deepcopy(model).encode_text is model.encode_text  # and not a copy of the task


@pytest.fixture
def train(fairseq, words_folder, base_checkpoint, tmp_path):
    """``train(peft, ...)``: one epoch of fairseq-train from the base, into the folder ``to``."""

    def run(peft, data=words_folder, to="run", **more):
        flags = {"from_scratch": None, "finetune_from_model": base_checkpoint, "peft": peft}
        flags.update(arch="roberta_small", **more)
        return fairseq("train", *train_flags(data, tmp_path / to, **flags))

    return run


def load(path):
    return torch.load(path, weights_only=True)["model"]


TEXT_FLAGS = {"prompt_init": "text", "prompt_init_text": TEXT, "prompt_num_tokens": 6}


def test_a_run_starts_from_a_text_and_is_done_with_it(
    train, fairseq, words_folder, base_checkpoint, tmp_path
):
    """S5's start, with a learning rate of 0 to see it. Neither going on nor evaluating needs the
    sentencepiece model again."""
    data = shutil.copytree(words_folder, tmp_path / "data")
    done = train("prompt", data, lr=0.0, **TEXT_FLAGS)
    assert done.returncode == 0, done.stderr
    _, model = build_for(data, "full")
    rows = model.encode_text(TEXT)[:6]
    table = load(base_checkpoint)["encoder.sentence_encoder.embed_tokens.weight"]
    last = tmp_path / "run/checkpoint_last.pt"
    assert torch.equal(load(last)[PROMPT], table[rows])
    os.remove(data / raw_text.MODEL_NAME)
    done = train("prompt", data, lr=0.1, max_epoch=2, **TEXT_FLAGS)
    assert done.returncode == 0, done.stderr
    assert not torch.equal(load(last)[PROMPT], table[rows])
    done = fairseq("validate", *validate_flags(data, last, "valid"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scratch", [False, True], ids=["base", "scratch"])
def test_a_folder_without_a_sentencepiece_model_is_refused(train, data_folder, tmp_path, scratch):
    start = {"from_scratch": True, "finetune_from_model": None} if scratch else {}
    done = train("prompt", data_folder, **TEXT_FLAGS, **start)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    where = data_folder / raw_text.MODEL_NAME
    assert line.startswith(f"fairseq_peft: error: {where} does not exist: without the sentencepi")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_an_mlp_goes_on_to_the_same_bits(train, tmp_path):
    """1 + 1 epochs equal 2: checkpoints of training keep the MLP and its optimizer state."""
    flags = {"prefix_mlp": 6, "prompt_mlp": 5, "prefix_num_tokens": 3, "prompt_num_tokens": 2}
    peft = "prefix,prompt"
    done = train(peft, max_epoch=2, to="whole", **flags)
    assert done.returncode == 0, done.stderr
    for epochs in (1, 2):
        done = train(peft, max_epoch=epochs, **flags)
        assert done.returncode == 0, done.stderr
    assert same(tmp_path / "whole/checkpoint_last.pt", tmp_path / "run/checkpoint_last.pt")

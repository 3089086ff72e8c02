"""The tasks causal_lm and text_to_text: rows, loss, labels, answers, and whole runs."""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import runs
import torch
import verbs
from fairseq import utils
from fairseq.data import FairseqDataset
from fairseq.dataclass.configs import GenerationConfig
from helpers import PACKAGE
from hf_families import GPT2, T5, WORDS, write_base, write_rows, write_tokenizer
from hf_families import KINDS as FAMILIES
from safetensors.torch import load_file, save_file
from starlette import testclient
from torch.nn import functional as F

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.criterions.answers import AnswersCriterion
from fairseq_peft.data.answers import AnswerDataset, Layout
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import last_batch
from fairseq_peft.models import hf_base, hf_models
from fairseq_peft.serving.generate import Generator
from fairseq_peft.serving.service import generate as services
from fairseq_peft.serving.service.app import create_app
from fairseq_peft.serving.writers import OfTokenizer
from fairseq_peft.tasks import answers
from fairseq_peft.text import pairs
from fairseq_peft.text.folder_tokenizer import FolderTokenizer

AUTO = "AutoModelForSeq2SeqLM"
BART, _ = FAMILIES["bart"]
KINDS = {
    "causal_lm": ("hf_causal_lm", GPT2, ("prompt", "answer")),
    "text_to_text": ("hf_seq2seq", T5, ("input", "target")),
}


TEXT = [(name, False) for name in KINDS]


def write_bart(folder):
    """The config of an encoder-decoder with 32 positions."""
    ids = {"bos_token_id": 0, "pad_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 1}
    path = folder / "bart.json"
    path.write_text(json.dumps({**BART, **ids}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts whose label is told by one word, for both tasks; a tokenizer, two configs."""
    folder = tmp_path_factory.mktemp("answers")
    write_tokenizer(folder / "tokenizer")
    rng = random.Random(1)
    for split, number in (("train", 48), ("valid", 14)):
        rows = []
        for row in range(number):
            label = ("good", "bad")[row % 2]
            words = rng.choices(WORDS[10:], k=rng.randint(2, 8)) + [
                {"good": "w0", "bad": "w1"}[label]
            ]
            rng.shuffle(words)
            rows.append((" ".join(words), label))
        for task, (_, _, names) in KINDS.items():
            (folder / task).mkdir(exist_ok=True)
            if task == "causal_lm":
                lines = ["\t".join(names), *("\t".join(row) for row in rows)]
                path = folder / task / f"{split}.tsv"
            else:
                lines = [json.dumps(dict(zip(names, row))) for row in rows]
                path = folder / task / f"{split}.jsonl"
            path.write_text("\n".join(lines) + "\n")
    for task, (_, config, _) in KINDS.items():
        (folder / f"{task}.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def made(folder):
    """``made("causal_lm")``: the task and a model with a LoRA that is not zero, without a run."""

    def make(name, peft="lora", model=None, **given):
        config = answers.CausalLMTask if name == "causal_lm" else answers.TextToTextTask
        flags = {"data": str(folder / name), "hf_tokenizer": str(folder / "tokenizer")}
        cfg = answers.AnswersConfig(**{**flags, "max_answer_tokens": 8, **given})
        cfg._name = name
        task = config.setup_task(cfg)
        arch = KINDS[name][0]
        values = {"hf_config": str(folder / f"{name}.json"), "peft": peft, "precision": "fp32"}
        values.update(model or {})
        args = argparse.Namespace(_name=arch, arch=arch, **values)
        torch.manual_seed(1)
        model = task.build_model(args).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        return task, model

    return make


def test_a_causal_row_has_its_loss_on_the_answer_alone():
    layout = Layout(causal=True, pad=99, eos=1, start=None)
    batch = layout.batch([([5, 6, 7], [8]), ([5], [9])])
    assert batch["net_input"]["src_tokens"].tolist() == [[5, 6, 7, 8], [5, 9, 99, 99]]
    assert batch["target"].tolist() == [[99, 99, 8, 1], [9, 1, 99, 99]]
    assert batch["num_predicted"] == 4


def test_what_is_in_front_of_all_answers_is_not_predicted():
    """The prompts of the three rows have 5, 4 and 6 tokens, and the longest text 7."""
    layout = Layout(causal=True, pad=99, eos=1, start=None)
    rows = [([5] * 5, [8]), ([6] * 4, [9, 9]), ([7] * 6, [])]
    batch = layout.batch(rows)
    assert batch["target"].shape == (3, 6)
    assert batch["num_predicted"] == 3
    left_out = batch["target"][:, : -batch["num_predicted"]]
    assert (left_out == 99).all() and (batch["target"][:, -3] != 99).any()
    assert "num_predicted" not in Layout(causal=False, pad=99, eos=1, start=0).batch(rows)


def test_an_answer_of_an_encoder_decoder_begins_with_the_start():
    layout = Layout(causal=False, pad=99, eos=1, start=0)
    batch = layout.batch([([5, 6], [8, 9]), ([5], [9])])
    assert batch["net_input"]["src_tokens"].tolist() == [[5, 6], [5, 99]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [[0, 8, 9], [0, 9, 99]]
    assert batch["target"].tolist() == [[8, 9, 1], [9, 1, 99]]


@pytest.mark.parametrize(
    "longest, room, found", [(16, 99, 16), (17, 99, 24), (24, 99, 24), (17, 20, 20), (17, 0, 17)]
)
def test_batches_have_few_widths(longest, room, found):
    layout = Layout(causal=False, pad=99, eos=1, start=0, room=room)
    batch = layout.batch([([5] * longest, [8]), ([5], [9] * (longest - 1))])
    every = (*batch["net_input"].values(), batch["target"])
    assert [part.shape[1] for part in every if part.dim() == 2] == [found] * 3
    causal = replace(layout, causal=True).batch([([5] * (longest - 2), [8, 8]), ([5], [9])])
    assert causal["net_input"]["src_tokens"].shape == causal["target"].shape == (2, found)


def test_what_is_too_long_loses_the_end_of_the_prompt():
    layout = Layout(causal=True, pad=99, eos=1, start=None)
    rows = [([5, 6, 7, 8], [9, 9]), ([5], [9] * 4), ([5, 6, 7], [])]
    dataset = AnswerDataset(rows, layout, 3, 4, "train")
    assert dataset.rows == [([5, 6, 7], [9, 9]), ([5], [9] * 3), ([5, 6, 7], [])]
    assert dataset.num_cut == 2
    with pytest.raises(InputError, match="row 2: the prompt has no token"):
        AnswerDataset([rows[0], ([], [9])], layout, 3, 4, "train")


LONG = " ".join(WORDS[10:38] + WORDS[10:22])  # 40 words


def write_long(folder, name, answers, number=6):
    """Data of rows that are longer than the model reads, each with another first word."""
    rows = [(f"w{i} {LONG}", answers[i % len(answers)]) for i in range(number)]
    lines = [json.dumps(dict(zip(KINDS[name][2], row))) for row in rows]
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return [prompt for prompt, _ in rows]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("labels, longest", [("good,bad", 1), ("good,w3 w4 w5 w6", 4)])
def test_texts_are_cut_once_whoever_reads_them(made, tmp_path, name, labels, longest):
    """Behind a causal model's prompt the longest label has room, not the row's own, nor
    --max-answer-tokens; what predict and serve read is what validation did."""
    texts = write_long(tmp_path, name, labels.split(","))
    given = {"labels": labels, "max_prompt_tokens": 32, "max_answer_tokens": 128}
    task, model = made(name, data=str(tmp_path), **given)
    dataset, writer = task.load_dataset("valid"), OfTokenizer(task, model, {})
    prompts = [prompt for prompt, _ in dataset.rows]
    assert {len(prompt) for prompt in prompts} == {32 - (longest + 1) * task.causal}
    assert [writer.ids(text) for text in texts] == prompts
    assert [task.encode_prompt(text) for text in texts] == prompts
    assert writer.num_cut == dataset.num_cut == len(texts)
    criterion = AnswersCriterion(task).eval()
    with torch.no_grad():
        loss, _, _ = criterion(model, dataset.collater([dataset[i] for i in range(len(dataset))]))
    found = writer.label_scores(prompts)
    assert found.argmax(1).tolist() == criterion.predicted.tolist()
    assert -found[range(6), dataset.targets].sum().item() == pytest.approx(loss.item(), rel=1e-5)


def test_prompts_of_any_answers_are_cut_alike(made, tmp_path):
    """However long the row's own answer is."""
    texts = write_long(tmp_path, "causal_lm", ["good", "w3 w4 w5 w6 w7"])
    task, model = made("causal_lm", data=str(tmp_path), max_answer_tokens=5)
    prompts = [prompt for prompt, _ in task.load_dataset("train").rows]
    assert {len(prompt) for prompt in prompts} == {32 - 5}
    assert [OfTokenizer(task, model, {}).ids(text) for text in texts] == prompts
    assert {len(answer) for _, answer in task.load_dataset("train").rows} == {1, 4}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("number", [-3, 0, 1])
def test_answers_without_a_token_are_refused(made, tmp_path, name, number):
    given = {"save_dir": str(tmp_path), "valid_subset": "valid", "max_answer_tokens": number}
    task, _ = made(name, **given)
    for begin in (task.choose, lambda: task.load_dataset("train")):
        with pytest.raises(InputError, match=f"--max-answer-tokens {number} .* Give 2 or more"):
            begin()


@pytest.mark.parametrize(
    "name, given, message",
    [
        (
            "causal_lm",
            {"max_answer_tokens": 32},
            "reads 32 tokens: none is left .* answers of 32. Give fewer",
        ),
        (
            "causal_lm",
            {"max_prompt_tokens": 9, "max_answer_tokens": 9},
            "--max-prompt-tokens 9: none is left .* or fewer --max-answer",
        ),
        (
            "causal_lm",
            {"max_prompt_tokens": 2, "labels": "good,bad"},
            "answers of 2. Give more .* or shorter --labels",
        ),
        (
            "text_to_text",
            {"max_prompt_tokens": 0},
            "left for a prompt. Give more --max-prompt-tokens.$",
        ),
    ],
)
def test_flags_that_leave_nothing_of_a_prompt_are_refused(made, tmp_path, name, given, message):
    """Before a row is read. A model that is only asked reads half of what there is."""
    task, _ = made(name, save_dir=str(tmp_path), valid_subset="valid", **given)
    for begin in (task.choose, lambda: task.load_dataset("train")):
        with pytest.raises(InputError, match=message):
            begin()
    assert len(task.encode_prompt(LONG)) == max(min(32, task.cfg.max_prompt_tokens) // 2, 1)


def plain(model):
    """transformers' own model with the same, merged weights."""
    model.merge()
    transformers = hf_base.library()
    config = KINDS["causal_lm" if isinstance(model, hf_models.HFCausalLM) else "text_to_text"][1]
    values = {key: value for key, value in config.items() if key != "model_type"}
    auto = getattr(transformers, model.auto)
    stock = auto.from_config(transformers.AutoConfig.for_model(config["model_type"], **values))
    state = {name[len("hf.") :]: tensor for name, tensor in model.state_dict().items()}
    stock.load_state_dict(state, strict=True)
    return stock.eval()


def likelihood(stock, prompt, answer, causal):
    """The log likelihood of an answer with its end, by transformers' own model, row by row."""
    answer = [*answer, 1]
    with torch.no_grad():
        if causal:
            logits = stock(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        else:
            before = torch.tensor([[0, *answer[:-1]]])
            logits = stock(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0]
    return -F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_accuracy_are_those_of_transformers_row_by_row(made, name):
    task, model = made(name, labels="good,bad")
    dataset = task.load_dataset("valid")
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    criterion = AnswersCriterion(task)
    with torch.no_grad():
        loss, num_tokens, log = criterion(model, sample)
    stock = plain(model)
    scored = [
        [likelihood(stock, prompt, ids, task.causal) for ids in task.label_ids]
        for prompt, _ in dataset.rows
    ]
    gold = [task.label_ids.index(answer) for _, answer in dataset.rows]
    expected = -sum(row[label] for row, label in zip(scored, gold))
    assert num_tokens == 2 * len(dataset) and abs(loss.item() - expected) < 1e-3
    hits = sum(row.index(max(row)) == label for row, label in zip(scored, gold))
    assert log["_counts"][0].sum() == hits and log["_counts"].shape == (3, 2)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("peft", ["lora", "prompt", "prefix"])
def test_answers_are_written_as_one_pass_would(made, name, peft):
    """Greedy, step by step, rows of several lengths at once; prompt lengths differ, so a causal
    model has padding in front."""
    task, model = made(name, peft, max_answer_tokens=5)
    prompts = [[12, 13, 14, 15], [20], [17, 9]]
    found = task.answer_ids(model, prompts)
    for prompt, answer in zip(prompts, found):
        again = []
        with torch.no_grad():
            for _ in range(5):
                if task.causal:
                    logits = model(torch.tensor([prompt + again]))[0]
                else:
                    before = torch.tensor([[0, *again]])
                    logits = model(torch.tensor([prompt]), None, before)[0]
                again.append(logits[0, -1].argmax().item())
                if again[-1] == 1:
                    break
        assert answer == [token for token in again if token != 1]
    assert any(found)


@pytest.mark.parametrize("name", KINDS)
def test_beams_are_those_of_transformers(made, name):
    """The best of three, by transformers' own model with merged weights, row by row; prompts of
    several lengths are one batch here. (At the longest length transformers gives the end that is
    forced no score, so the other two may change places.)"""
    task, model = made(name)
    prompts = [[12, 13, 14, 15], [20], [17, 9]]
    found = task.written(model, prompts, GenerationConfig(beam=3, max_len_b=6, min_len=0))
    stock, own = plain(model), {"num_beams": 3, "early_stopping": True}
    own.update(max_new_tokens=7, forced_eos_token_id=1)
    for prompt, hypotheses in zip(prompts, found):
        tokens = torch.tensor([prompt])
        out = stock.generate(tokens, do_sample=False, pad_token_id=0, **own)
        begin = len(prompt) if task.causal else 1
        assert hypotheses[0]["tokens"].tolist() == out[0, begin:].tolist()


def test_a_prompt_behind_the_first_token_is_no_matter_of_the_batch(made):
    """Where it cannot be padded in front, prompts of other lengths are another batch."""
    task, model = made(
        "causal_lm", "prompt", max_answer_tokens=5, model={"prompt_placement": "after_bos"}
    )
    prompts = [[12, 13, 14, 15], [20], [17, 9, 5, 6]]
    assert task.answer_ids(model, prompts) == [task.answer_ids(model, [p])[0] for p in prompts]


@pytest.mark.parametrize("prompt", [[], [5] * 31])
def test_a_text_without_room_is_refused(made, prompt):
    task, model = made("causal_lm", "prompt")  # which takes positions
    with pytest.raises(InputError, match=f"Text 2 has {len(prompt)} tokens, and there is room"):
        task.answer_ids(model, [[5], prompt])


def test_texts_go_to_ids_and_back(folder):
    tokenizer = FolderTokenizer(folder / "tokenizer")
    assert tokenizer.encode("w0 good") == [5, 3] and len(tokenizer) == 40
    assert tokenizer.decode([5, 3]) == "w0 good"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"labels": "good"}, "is one label"),
        ({"labels": "good,better,best"}, "the same to the tokenizer"),
        ({"labels": "good,bad w1 w2", "max_answer_tokens": 3}, "there is room for 2"),
        ({"hf_tokenizer": ""}, "give --hf-tokenizer"),
        ({"hf_tokenizer": "none"}, "has no tokenizer.json"),
    ],
)
def test_bad_flags_are_one_sentence(made, given, message):
    with pytest.raises(InputError, match=message):
        made("causal_lm", **given)


def test_a_tokenizer_of_another_model_is_refused(made, tmp_path):
    larger = write_tokenizer(tmp_path / "larger", [*WORDS, "more"])
    with pytest.raises(InputError, match="do not belong together"):
        made("causal_lm", hf_tokenizer=str(larger))


def test_a_checkpoint_knows_its_tokenizer(made):
    """By its bytes; whoever loads a checkpoint tells the task before the model is built, or
    after."""
    task, _ = made("causal_lm")
    told = task.state_dict()
    task.load_state_dict(told)
    with pytest.raises(InputError, match="was trained with the tokenizer other"):
        task.load_state_dict({"tokenizer": {"name": "other", "sha256": "0" * 64}})
    later = answers.CausalLMTask.setup_task(task.cfg)
    later.load_state_dict({"tokenizer": {"name": "other", "sha256": "0" * 64}})
    with pytest.raises(InputError, match="was trained with the tokenizer other"):
        later.build_model(argparse.Namespace(_name="hf_causal_lm"))


def test_an_answer_that_is_no_label_is_refused(made):
    task, _ = made("causal_lm", labels="good,w7")
    with pytest.raises(InputError, match="row 2: 'bad' is none of --labels"):
        task.load_dataset("valid")


@pytest.mark.parametrize("end", ["jsonl", "tsv"])
def test_a_byte_order_mark_and_a_return_within_a_text_are_no_rows(tmp_path, end):
    content = {
        "jsonl": '{"prompt": "a b", "answer": "c"}\n',
        "tsv": "prompt\tanswer\na\rb\tc\n",
    }[end]
    (tmp_path / f"train.{end}").write_bytes(content.encode("utf-8-sig"))
    ((prompt, answer),) = pairs.read(tmp_path, "train", ("prompt", "answer"))
    assert prompt.split() == ["a", "b"] and answer == "c"


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"input": "a"}', "line 1: expected the texts input and target"),
        ('{"input": "a", "target": " "}', "line 1: expected the texts"),
        ("no json", "no JSON"),
        ("[1]", "line 1: expected"),
        ("", "is empty"),
        ("\n", "has no rows"),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path, content, message):
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        pairs.read(tmp_path, "train", ("input", "target"))
    with pytest.raises(InputError, match="neither"):
        pairs.read(tmp_path, "test", ("input", "target"))


def last(text, name):
    """The last number that a log has under a name."""
    return float(re.findall(rf"\b{name} (-?[\d.]+)", text)[-1])


@pytest.mark.parametrize("name, peft", [("causal_lm", "full"), ("text_to_text", "lora")])
def test_a_run_learns_and_its_checkpoint_gives_the_same(
    fairseq, folder, tmp_path, capsys, name, peft
):
    task = (folder / name, "--user-dir", PACKAGE, "--task", name, "--labels", "good,bad")
    task = (*task, "--eval-rouge", "--max-answer-tokens", 4)
    loss = ("--criterion", "answers", "--batch-size", 8, "--cpu", "--log-format", "simple")
    targets = ("--peft-targets", "all-linear") if peft == "lora" else ()
    tokenizer = ("--hf-tokenizer", folder / "tokenizer")
    base, task = ("--hf-config", folder / f"{name}.json"), (*task, *tokenizer)
    if peft == "lora":  # a folder, whose tokenizer is the task's
        torch.manual_seed(1)
        hf_base.build(
            "t5", {k: v for k, v in T5.items() if k != "model_type"}, "", AUTO
        ).save_pretrained(tmp_path / "model")
        shutil.copy(folder / "tokenizer" / "tokenizer.json", tmp_path / "model")
        base, task = ("--hf-model", tmp_path / "model"), task[:-2]
        base = (*base, "--generation", '{"beam": 2, "max_len_b": 2, "min_len": 2}')
    done = fairseq(
        *("train", *task, *loss, "--arch", KINDS[name][0], "--peft", peft, *targets),
        *(*base, "--optimizer", "adam", "--lr", 0.005 if peft == "full" else 0.03),
        *("--max-epoch", 20, "--save-dir", tmp_path / "run", "--no-epoch-checkpoints"),
        *("--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"),
        *("--num-workers", 0, "--validate-interval", 10),
    )
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    losses = [
        float(found) for found in re.findall(r"valid on 'valid' subset .*? loss ([\d.]+)", log)
    ]
    assert losses[-1] < losses[0] < math.log(len(WORDS)) + 1
    assert last(log, "best_accuracy") > 0.7
    assert last(log, "rouge1") > 0
    path = tmp_path / "run" / "checkpoint_last.pt"
    expected = [last(log, key) for key in ("accuracy", "loss")]
    done = fairseq("validate", *task, *loss, "--path", path, "--valid-subset", "valid")
    assert done.returncode == 0, done.stderr
    found = done.stdout + done.stderr
    assert last(found, "accuracy") == expected[0]
    if peft == "lora":
        weights = torch.load(path)["model"]
        assert all("lora_" in key or key == "base_sha256" for key in weights)
        check_served(folder, tmp_path, capsys, expected[0])


@pytest.fixture
def train(fairseq, folder, tmp_path):
    """``train(max_epoch=2)``: a run of causal_lm in tmp_path/run; its log, or its one sentence."""
    write_base(tmp_path / "base", {**GPT2, "vocab_size": len(WORDS)})

    def run(ok=True, cwd=None, **more):
        flags = {
            **{"user_dir": PACKAGE, "task": "causal_lm", "criterion": "answers"},
            **{"arch": "hf_causal_lm", "hf_model": tmp_path / "base", "peft": "lora"},
            **{"optimizer": "peft_adamw", "lr": 1e-2, "batch_size": 16, "max_epoch": 1},
            **{"save_dir": tmp_path / "run", "num_workers": 0, "log_format": "simple"},
            **{"cpu": True, "no_epoch_checkpoints": True, "max_answer_tokens": 8, **more},
        }
        words = [folder / "causal_lm"]
        for name, value in flags.items():
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
        done = fairseq("train", *words, cwd=cwd)
        assert (done.returncode == 0) is ok and "Traceback" not in done.stderr, done.stderr
        return done.stdout if ok else done.stderr

    return run


def test_a_run_whose_updates_would_be_counted_anew_does_not_go_on(train):
    train(no_save_optimizer_state=True)
    assert "without a state of the optimizer" in train(ok=False, max_epoch=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"validate_interval": 3}, "--validate-interval 3 with --max-epoch 1"),
        ({"validate_after_updates": 4}, "--validate-after-updates 4 with 3 updates"),
    ],
)
def test_a_run_that_would_validate_nothing_is_refused(train, tmp_path, given, said):
    assert f"{said}: without a validation nothing chooses" in train(ok=False, **given)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_checkpoint_says_where_its_config_is(train, fairseq, folder, tmp_path):
    """Where weights began at random; --hf-config is then a file, by a path from where it began."""
    config = tmp_path / "own.json"
    config.write_text(json.dumps({**GPT2, "vocab_size": len(WORDS)}))
    train(cwd=tmp_path, hf_model="", hf_config="own.json", hf_tokenizer="base")
    path = tmp_path / "run" / "checkpoint_last.pt"
    told = torch.load(path, weights_only=True)["cfg"]["model"]["hf_config"]
    assert told == str(config)

    task = ("--task", "causal_lm", "--criterion", "answers", "--user-dir", PACKAGE, "--cpu")
    task += ("--path", path, "--valid-subset", "valid", "--batch-size", 8)
    assert fairseq("validate", folder / "causal_lm", *task).returncode == 0
    config.rename(tmp_path / "other.json")
    told = fairseq("validate", folder / "causal_lm", *task)
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert f"{config} cannot be read" in told.stderr and "--model-overrides" in told.stderr
    there = ("--model-overrides", f"{{'hf_config': '{tmp_path / 'other.json'}'}}")
    assert fairseq("validate", folder / "causal_lm", *task, *there).returncode == 0


def test_a_checkpoint_says_where_its_base_is_and_what_it_computes_in(train, tmp_path):
    """fairseq hands the model a copy of its flags, which is not what it writes."""
    shutil.copytree(tmp_path / "base", tmp_path / "words")
    train(cwd=tmp_path, hf_model="base", hf_tokenizer="words")
    path = tmp_path / "run" / "checkpoint_last.pt"
    state = torch.load(path, weights_only=True)
    told = {**state["cfg"]["task"], **state["cfg"]["model"]}
    assert told["hf_model"] == str(tmp_path / "base") and told["precision"] == "fp32"
    assert told["hf_tokenizer"] == str(tmp_path / "words")
    state["cfg"]["model"]["precision"] = "bf16"  # as a machine that is quicker so would begin
    torch.save(state, path)
    train(cwd=tmp_path, hf_model="base", hf_tokenizer="words", max_epoch=2)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["hyperparameters"]["precision"] == "bf16"


@pytest.mark.end_to_end
@pytest.mark.parametrize("labels", [("--labels", "good,bad"), ()])
def test_two_processes_are_one_run(fairseq, tmp_path, labels):
    """As many rows an update, the same numbers; without dropout, which each draws for itself."""
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    base = write_base(tmp_path / "base", {**GPT2, **still})
    data = write_rows(tmp_path / "rows", KINDS["causal_lm"][2], train=32, valid=17)
    found = []
    for name, more in (
        ("two", ("--distributed-world-size", 2, "--batch-size", 4)),
        ("one", ("--update-freq", 2, "--batch-size", 4)),
    ):
        done = fairseq(
            *("train", data, "--user-dir", PACKAGE, "--task", "causal_lm", *labels),
            *("--criterion", "answers", "--arch", "hf_causal_lm", "--hf-model", base),
            *("--peft", "lora", "--optimizer", "peft_adamw", "--lr", 0.01, "--max-epoch", 2),
            *("--precision", "fp32", "--max-answer-tokens", 8, "--cpu", "--num-workers", 0),
            *("--no-epoch-checkpoints", "--save-dir", tmp_path / name, *more),
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(runs.metrics(tmp_path / name))
    for two, one in zip(*found):
        assert two["num_updates"] == one["num_updates"] == 4 * one["epoch"]
        assert two["train"]["num_tokens"] == one["train"]["num_tokens"]
        assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], abs=1e-5)
        for key, value in one["subsets"]["valid"].items():
            if key != "seconds":
                assert two["subsets"]["valid"][key] == pytest.approx(value, abs=1e-5), key
    assert len(found[0]) == len(found[1]) == 2


def check_served(folder, tmp_path, capsys, accuracy):
    """The adapter folder of a run beside its base, in other processes than the run's: labels as in
    validation, answers as by the checkpoint; other bases and tokenizers are refused."""
    adapter, model = tmp_path / "run" / "adapter", tmp_path / "model"
    told = adapter_folder.read(adapter, of_any_task=True).description
    tokenizer = FolderTokenizer(model)
    assert told["tokenizer"] == {"name": "model", "sha256": tokenizer.sha256}
    assert set(told["files"]) == {"adapter.safetensors"} and not told["complete"]
    verbs.run("inspect", adapter)
    verbs.run("verify", adapter, "--base", model)
    check_merged(tmp_path, adapter, model)
    capsys.readouterr()
    rows = pairs.read(folder / "text_to_text", "valid", ("input", "target"))
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text, _ in rows))
    given = (lines, "--base", model, "--adapter", adapter)
    verbs.run("predict", *given)
    labels = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    hits = sum(label == gold for label, (_, gold) in zip(labels, rows))
    assert len(labels) == len(rows) and abs(hits / len(rows) - accuracy) < 1e-3
    check_labels_over_http(Generator.load(model, adapter), [text for text, _ in rows], labels)
    verbs.run("generate", *given, "--beam", 1)
    written = capsys.readouterr().out.splitlines()
    best = Generator.load(tmp_path / "run" / "checkpoint_best.pt")
    texts = [text for text, _ in rows]
    assert written == [one.text for one in best.generate(texts, beam=1)] and len(set(written)) > 1
    generator = Generator.load(model, adapter)
    assert told["generation"] == {"beam": 2, "max_len_b": 2, "min_len": 2}
    as_told = generator.generate(texts)
    otherwise = generator.generate(texts, max_len_b=3, min_len=3)
    assert as_told == generator.generate(texts, beam=2, max_len_b=2, min_len=2) != otherwise
    assert {len(one.text.split()) for one in as_told} == {2}
    found = generator.generate(["", *texts[:3]], sampling=True, sampling_topk=2)
    assert found[0] == ("", 0.0, []) and all(one.score < 0 for one in found[1:])

    weights = load_file(model / "model.safetensors")
    weights["shared.weight"] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    message = verbs.refused(capsys, "generate", *given)
    assert "This is not the base that the adapter was trained on" in message
    write_tokenizer(tmp_path / "other", [*WORDS[:-1], "more"])
    shutil.copy(tmp_path / "other" / "tokenizer.json", model)
    message = verbs.refused(capsys, "predict", *given)
    assert "was trained with the tokenizer model, SHA-256" in message


def check_labels_over_http(generator, texts, labels):
    """``serve``: the labels that ``predict`` gives, beside what is written."""
    service = services.GenerateService(generator, services.Limits())
    with testclient.TestClient(create_app(service)) as client:
        (one,) = client.get("/adapters").json()["adapters"]
        assert one["labels"] == ["good", "bad"]
        found = client.post("/predict", json={"texts": texts}).json()["predictions"]
        assert [row["label"] for row in found] == labels
        again = [row.as_dict() for row in generator.predictions(texts)]
        assert [row["probability"] for row in found] == pytest.approx(
            [row["probability"] for row in again], rel=1e-5
        )
        assert len(client.post("/generate", json={"texts": texts[:2]}).json()["answers"]) == 2
        assert client.post("/predict", json={"texts": texts, "beam": 2}).status_code == 422


def check_merged(tmp_path, adapter, model):
    """``merge`` makes one folder of the adapter and of the checkpoint, which finds its base."""
    best = tmp_path / "run" / "checkpoint_best.pt"
    verbs.run("merge", adapter, tmp_path / "merged", "--base", model)
    verbs.run("merge", best, tmp_path / "merged2")
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("merged", "merged2")]
    base = load_file(model / "model.safetensors")
    assert found[0].keys() == found[1].keys() == base.keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    texts, search = ["w3 w0 w5", "w1"], {"beam": 1, "min_len": 1, "max_len_b": 4}
    told, plain = (
        [one.text for one in Generator.load(*given).generate(texts, **search)]
        for given in ((model, adapter), (tmp_path / "merged",))
    )
    assert told == plain and all(told)
    moved = [name for name in base if not torch.equal(base[name], found[0][name])]
    assert moved and all(".layer." in name for name in moved)


def test_no_row_is_left_out(made):
    """14 rows in batches of 8: fairseq drops the last 6, for they are no multiple of 8."""
    task, _ = made("causal_lm", train_subset="train")
    batches = task.get_batch_iterator(
        task.load_dataset("valid"), max_sentences=8, required_batch_size_multiple=8
    )
    rows = [i for batch in batches.next_epoch_itr() for i in batch["id"].tolist()]
    assert sorted(rows) == list(range(14))


def epochs_of(task, number, validates):
    """The rows of the batches of so many epochs, as fairseq-train makes them; ``validates``: the
    training rows, too, in the middle of each epoch and at its end."""
    dataset, found = task.load_dataset("train"), []
    limits = {"max_sentences": 8, "seed": 1}

    def train(epoch):
        with last_batch.training():  # as Trainer.get_train_iterator
            return task.get_batch_iterator(dataset, epoch=epoch, **limits)

    def validate():
        batches = task.get_batch_iterator(dataset, epoch=1, **limits)
        assert len(list(batches.next_epoch_itr(shuffle=False))) == 6

    batches = train(1)
    while batches.next_epoch_idx <= number:
        found.append([])
        for batch in batches.next_epoch_itr():
            found[-1].append(batch["id"].tolist())
            if len(found[-1]) == 2 and validates:
                validate()
                assert batches.state_dict()["iterations_in_epoch"] == 2
        if validates:
            validate()
        batches = train(batches.next_epoch_idx)
    return found


def test_a_validation_of_the_training_rows_leaves_training_where_it_is(made):
    """fairseq has one iterator for a data set, so that validation used epochs of training up."""
    length = {"max_epoch": 9, "max_update": 0, "update_freq": [1], "train_subset": "train"}
    plain, own = (
        epochs_of(made("causal_lm", **length)[0], 4, validates) for validates in (False, True)
    )
    assert own == plain and len({str(epoch) for epoch in own}) == len(own) == 4
    # A run that goes on in the middle of an epoch has the rest of it.
    task, _ = made("causal_lm", **length)
    batches = task.get_batch_iterator(task.load_dataset("train"), max_sentences=8, epoch=3)
    batches.load_state_dict({"epoch": 3, "iterations_in_epoch": 2, "shuffle": True})
    assert [batch["id"].tolist() for batch in batches.next_epoch_itr()] == plain[2][2:]


def write_lengths(folder, name, *lengths):
    """Data of rows with so many tokens of prompt and answer."""
    rows = [dict(zip(KINDS[name][2], (" ".join(["w9"] * n) for n in row))) for row in lengths]
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize("name, pack", [*TEXT, ("causal_lm", True)])
@pytest.mark.parametrize("limits", [{"max_sentences": 8}, {"max_tokens": 16}])
def test_long_rows_are_no_row_less(made, tmp_path, name, pack, limits):
    """Source and target together are more than each may have, or --max-tokens less than a row:
    such a row is a batch of its own, as with sentence_classification."""
    lengths = [(20, 7), (3, 2), (4, 1), (20, 7), (2, 2)]
    write_lengths(tmp_path, name, *lengths)
    bart = {} if name == "causal_lm" else {"hf_config": str(write_bart(tmp_path))}
    flags = {"max_epoch": 1, "max_update": 0, "update_freq": [1], "train_subset": "train"}
    task, model = made(name, model=bart, data=str(tmp_path), pack=pack, **flags)
    room = utils.resolve_max_positions(task.max_positions(), model.max_positions(), 16)
    for split in ("train", "valid"):
        dataset = task.load_dataset(split)
        batches = task.get_batch_iterator(dataset, max_positions=room, **limits).next_epoch_itr()
        batches = [batch["id"].tolist() for batch in batches]
        assert sorted(sum(batches, [])) == list(range(5)) and not dataset.num_cut
        if "max_tokens" in limits:
            assert [0] in batches and [3] in batches and len(batches) < 5


def test_batches_within_the_limit_are_fairseqs(made):
    task, _ = made("causal_lm")
    dataset = task.load_dataset("train")
    indices = dataset.ordered_indices()
    for limits in ({"max_tokens": 40}, {"max_tokens": 40, "max_sentences": 3}):
        stock = FairseqDataset.batch_by_size(dataset, indices, **limits)
        found = dataset.batch_by_size(indices, **limits)
        assert [batch.tolist() for batch in found] == [batch.tolist() for batch in stock]


def test_a_target_is_cut_to_what_the_decoder_has_room_for(made, tmp_path):
    """32 positions: the start and 31 tokens; a label that has none is refused."""
    write_lengths(tmp_path, "text_to_text", (3, 40), (3, 31), (3, 32))
    bart = {"hf_config": str(write_bart(tmp_path))}
    flags = {"data": str(tmp_path), "max_answer_tokens": 128}
    task, model = made("text_to_text", model=bart, **flags)
    dataset = task.load_dataset("train")
    assert [len(answer) for _, answer in dataset.rows] == [31] * 3 and dataset.num_cut == 2
    sample = dataset.collater([dataset[0]])
    assert sample["net_input"]["prev_output_tokens"].shape == (1, model.room)
    assert AnswersCriterion(task)(model, sample)[0].isfinite()
    with pytest.raises(InputError, match="has 32 tokens; there is room for 31"):
        made("text_to_text", model=bart, labels=f"good,{' '.join(['w9'] * 32)}", **flags)


def test_the_task_tells_methods_of_the_runs_updates(made):
    """AdaLoRA moves its ranks: it is told of each update, and how many there will be."""
    length = {"max_epoch": 3, "max_update": 0, "update_freq": [1], "train_subset": "train"}
    task, model = made("causal_lm", "adalora", skip_remainder_batch=False, **length)
    with last_batch.training():
        task.get_batch_iterator(task.load_dataset("train"), max_sentences=8)
    task.get_batch_iterator(task.load_dataset("train"), max_sentences=48)  # --valid-subset train
    assert task.planned_updates == 3 * 48 // 8
    seen = []
    model.after_update = lambda number, planned: seen.append(number)
    task.optimizer_step(SimpleNamespace(step=lambda: None), model, 4)
    assert seen == [5]

"""fairseq's own task translation, unchanged, with an encoder-decoder of the plugin: trained,
validated, generated from, merged."""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import types

import pytest
import torch
import verbs
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer import TransformerModel
from helpers import PACKAGE, WORD_START, opens_without_plugin, word_tokenizer

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import finetuned, slim
from fairseq_peft.errors import InputError
from fairseq_peft.serving.generate import Generator
from fairseq_peft.text import raw_text

NUMBERS = {
    f"{half}_{name}": value
    for half in ("encoder", "decoder")
    for name, value in (
        *(("layers", 2), ("embed_dim", 16), ("ffn_embed_dim", 24), ("attention_heads", 4)),
    )
}
SIZES = [f"--{name.replace('_', '-')}={value}" for name, value in NUMBERS.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A language whose sentences are those of the other, word for word, the other way round; a
    sentencepiece model that reads both."""
    folder, rng, words = tmp_path_factory.mktemp("pair"), random.Random(1), Dictionary()
    for i in range(20):
        words.add_symbol(f"{WORD_START}w{i}", n=20 - i)
    (folder / raw_text.MODEL_NAME).write_bytes(word_tokenizer(20))
    rows = {"train": 80, "valid": 12, "test": 12}
    for language in ("en", "xx"):
        words.save(str(folder / f"dict.{language}.txt"))
    for split, number in rows.items():
        sentences = [
            [rng.randrange(4, 24) for _ in range(rng.randint(2, 6))] for _ in range(number)
        ]
        for language, turn in (("en", 1), ("xx", -1)):
            out = str(folder / f"{split}.en-xx.{language}")
            builder = make_builder(out + ".bin", impl="mmap", vocab_size=len(words))
            for sentence in sentences:
                builder.add_item(torch.IntTensor([*sentence[::turn], words.eos()]))
            builder.finalize(out + ".idx")
    return folder


@pytest.fixture
def run(fairseq, data):
    """``run("train", ...)``: fairseq's tool on the data; its output."""

    def call(name, *words):
        done = fairseq(name, data, "--task", "translation", "--cpu", *words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    return call


def train(run, arch, save_dir, max_update, *words):
    return run(
        *("train", "--arch", arch, "--save-dir", save_dir, "--max-update", max_update),
        *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1),
        *("--optimizer", "adam", "--lr", 1e-2, "--batch-size", 16, "--seed", 1),
        *("--num-workers", 0, "--no-epoch-checkpoints", "--log-format", "simple"),
        *("--source-lang", "en", "--target-lang", "xx", *words),
    )


def weights(path):
    return slim.read(str(path))["model"]


@pytest.fixture
def base(dictionary_of_data, tmp_path):
    """A checkpoint of stock fairseq, of random numbers."""
    args = argparse.Namespace(share_all_embeddings=True, **NUMBERS)
    ARCH_CONFIG_REGISTRY["transformer"](args)
    task = types.SimpleNamespace(
        source_dictionary=dictionary_of_data, target_dictionary=dictionary_of_data
    )
    torch.manual_seed(7)
    model = TransformerModel.build_model(args, task)
    flags = {"model": {"_name": "transformer", **vars(args)}}
    finetuned.write(tmp_path / "base.pt", {}, flags, model.state_dict())
    return tmp_path / "base.pt"


@pytest.fixture
def dictionary_of_data(data):
    return Dictionary.load(str(data / "dict.en.txt"))


PLUGIN = ("--user-dir", PACKAGE)
LEARNED = ("--encoder-learned-pos", "--decoder-learned-pos", "--max-source-positions", 40)


def test_train_validate_generate_merge(run, tmp_path, capsys):
    """A base of stock fairseq, with positions of its own; a LoRA on it in all three places, a
    prefix, a prompt and two rows of the embedding; what is generated from its checkpoint, and from
    the merged weights in stock fairseq."""
    base = tmp_path / "base" / "checkpoint_last.pt"
    flags = (*SIZES, *LEARNED, "--max-target-positions", 40, "--share-all-embeddings")
    train(run, "transformer", tmp_path / "base", 4, *flags)

    given = (*PLUGIN, "--finetune-from-model", base)
    targets = ("--peft-targets", "all-linear,embed_tokens")
    rows = ("--peft-train-tokens", f"{WORD_START}w3,{WORD_START}w7")
    train(run, "transformer_lora", tmp_path / "lora", 12, *given, *targets)
    train(run, "transformer_peft", tmp_path / "both", 12, *given, *rows, "--peft", "prefix,prompt")

    before = weights(base)
    for name, number in (("lora", 33), ("both", 4)):
        path = tmp_path / name / "checkpoint_last.pt"
        after = weights(path)
        assert all(torch.equal(after[key], value) for key, value in before.items())
        added = after.keys() - before.keys()
        assert (
            len({key.rpartition(".")[0] for key in added if "decoder.embed" not in key}) == number
        )
        moved = [key for key in added if "lora_B" in key and after[key].abs().max() > 1e-3]
        assert name == "both" or len(moved) >= 32

    sources = {}

    def generated(path, *words):
        search = ("--batch-size", 4, "--beam", 3, "--max-len-b", 8)
        out = run("generate", "--path", path, *search, *words)
        found = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", out, re.MULTILINE)
        assert len(found) == 12 and "BLEU4" in out
        sources.update(re.findall(r"^S-(\d+)\t(.*)$", out, re.MULTILINE))
        return {row: (words, float(score)) for row, score, words in found}

    for name in ("lora", "both"):
        path = tmp_path / name / "checkpoint_best.pt"
        loss = run("validate", "--path", path, "--batch-size", 4, *PLUGIN)
        assert "nll_loss" in loss
        found = generated(path, *PLUGIN, "--print-alignment")
    found = generated(tmp_path / "lora" / "checkpoint_best.pt", *PLUGIN)

    merged = tmp_path / "merged.pt"
    verbs.run("merge", tmp_path / "lora" / "checkpoint_best.pt", merged)
    assert weights(merged).keys() == before.keys()
    # Alone, fairseq leaves out what is left of a division by 8.
    expected = generated(merged, "--required-batch-size-multiple", 1)
    assert {row: words for row, (words, _) in found.items()} == {
        row: words for row, (words, _) in expected.items()
    }
    for row, (_, score) in found.items():
        assert score == pytest.approx(expected[row][1], abs=1e-3)
    for name in ("lora", "both"):
        verbs.run("verify", tmp_path / name / "adapter", "--base", base)
    adapter = tmp_path / "lora" / "adapter"
    told = adapter_folder.read(adapter, of_any_task=True).description
    assert told["task"]["source_lang"] == "en" and told["metrics"]["metric"] == "loss"
    assert set(told["files"]) == {
        *("adapter.safetensors", "dict.en.txt", "dict.xx.txt", raw_text.MODEL_NAME)
    }
    verbs.run("inspect", adapter)
    again = tmp_path / "again.pt"
    verbs.run("merge", adapter, again, "--base", base)
    one, other = weights(merged), weights(again)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    # Every row as fairseq-generate has it, word for word, in one process, by adapters in turn;
    # there as pieces, here as text.
    def plain(pieces):
        return pieces.replace(WORD_START, "")

    expected = {
        name: generated(tmp_path / name / "checkpoint_best.pt", *PLUGIN)
        for name in ("lora", "both")
    }
    generator = Generator.load(base, adapter, name="lora")
    generator.add("both", tmp_path / "both" / "adapter")
    one, other = (generator._writers[name].model for name in ("lora", "both"))
    assert other.encoder.embed_tokens.token_update.abs().max(1)[0].min() > 1e-3
    assert one.encoder.embed_tokens.weight is other.encoder.embed_tokens.weight
    rows = [(row, name) for row in sources for name in ("lora", "both")]
    texts, names = [plain(sources[row]) for row, _ in rows], [name for _, name in rows]
    found = generator.generate(texts, names, batch_size=5, beam=3, max_len_b=8)
    for (row, name), one in zip(rows, found):
        words, score = expected[name][row]
        assert one.text == plain(words) and abs(one.score / math.log(2) - score) < 1e-3
    assert {one.text for one in found[::2]} != {one.text for one in found[1::2]}

    capsys.readouterr()
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text in [*texts[::2], ""]))
    flags = ("--beam", 3, "--max-len-b", 8, "--nbest", 2)
    verbs.run("generate", lines, "--base", base, "--adapter", adapter, *flags)
    written = capsys.readouterr().out.splitlines()
    assert written[::2] == [*(one.text for one in found[::2]), ""] and written[-1] == ""
    beams = generator.beams(texts[::2], "lora", nbest=2, beam=3, max_len_b=8)
    assert written[1:-1:2] == [second.text for _, second in beams]
    with pytest.raises(InputError, match="nbest 4: give at most the number of beams, 3"):
        generator.beams(texts, "lora", nbest=4, beam=3)
    with pytest.raises(InputError, match="is of --task translation, and this is for classifiers"):
        adapter_folder.read(adapter)
    with open(adapter / "dict.xx.txt", "a") as file:
        file.write("more 1\n")
    message = verbs.refused(capsys, "verify", adapter)
    assert "dict.xx.txt is not the file that adapter.json speaks of" in message
    message = verbs.refused(
        capsys, "merge", tmp_path / "both" / "checkpoint_best.pt", tmp_path / "no.pt"
    )
    assert "cannot be merged" in message


def test_texts_of_a_checkpoint_are_those_of_its_adapter_whatever_auto_means_here(
    run, base, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAIRSEQ_PEFT_PRECISION", "bf16")
    given = (*PLUGIN, "--finetune-from-model", base, "--share-all-embeddings")
    train(run, "transformer_lora", tmp_path / "run", 2, *given)
    path = tmp_path / "run" / "checkpoint_best.pt"
    found = []
    for generator in (Generator.load(path), Generator.load(base, tmp_path / "run" / "adapter")):
        (writer,) = generator._writers.values()
        assert writer.model.args.precision == "fp32"
        found.append(generator.generate(["w3 w4 w5", "w7"], beam=2, max_len_b=6))
    assert found[0] == found[1]


def test_seeds_and_resume(run, base, tmp_path):
    """--seed draws the methods' tensors, though the task knows none; a run that was stopped goes on
    as one that was not, bit for bit. Checkpoints hold what trains, unless it is asked for all."""
    rows = ("--peft-train-tokens", f"{WORD_START}w3")
    flags = (*PLUGIN, "--finetune-from-model", base, "--save-interval-updates", 4, *rows)
    train(run, "transformer_lora", tmp_path / "whole", 8, *flags, "--full-checkpoints")
    train(run, "transformer_lora", tmp_path / "halves", 4, *flags)
    train(run, "transformer_lora", tmp_path / "halves", 8, *flags)
    paths = [tmp_path / name / "checkpoint_last.pt" for name in ("whole", "halves")]
    whole, halves = (torch.load(path, weights_only=False)["model"] for path in paths)
    assert whole.keys() > halves.keys()
    assert all("lora" in key or ".token_" in key for key in halves)
    assert len(halves) == 2 * 12 + 2 * 2  # the embedding has two names
    one, other = map(weights, paths)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    drawn = [
        weights(tmp_path / f"seed{seed}" / "checkpoint_last.pt")
        for seed in (1, 2)
        if train(run, "transformer_lora", tmp_path / f"seed{seed}", 1, *flags, "--seed", seed)
    ]
    key = "encoder.layers.0.self_attn.q_proj.lora_A"
    assert (drawn[0][key] - drawn[1][key]).abs().max() > 0.05

    base.rename(tmp_path / "other.pt")
    flags = ("--path", paths[1], "--batch-size", 4, *PLUGIN)
    with pytest.raises(AssertionError, match="Put that base back"):
        run("validate", *flags)
    moved = f"{{'finetune_from_model': '{tmp_path / 'other.pt'}'}}"
    assert "nll_loss" in run("validate", *flags, "--model-overrides", moved)


def test_the_optimizer_of_another_run_or_no_model_is_one_sentence(run, tmp_path):
    train(run, "transformer", tmp_path / "stock", 1, *SIZES, "--share-all-embeddings")
    base = tmp_path / "stock" / "checkpoint_last.pt"
    with pytest.raises(AssertionError) as error:
        train(run, "transformer_lora", tmp_path / "run", 2, *PLUGIN, "--restore-file", base)
    said = str(error.value)
    assert "is of another run" in said and "Give a base with --finetune-from-model" in said
    assert "Traceback" not in said and not (tmp_path / "run" / "checkpoint_last.pt").exists()
    with pytest.raises(AssertionError) as error:
        run("generate", *PLUGIN, "--path", tmp_path / "no.pt")
    assert "no.pt does not exist" in str(error.value) and "Traceback" not in str(error.value)


def test_patience_counts_on_where_a_run_goes_on(run, base, tmp_path):
    """fairseq forgets how long it has waited when the process ends; at this rate no validation is
    better than the first one."""
    flags = (*PLUGIN, "--finetune-from-model", base, "--lr", 1e-12, "--patience", 3)
    train(run, "transformer_lora", tmp_path / "whole", 100, *flags)
    for updates in (10, 15, 100):  # 5 an epoch
        train(run, "transformer_lora", tmp_path / "parts", updates, *flags)
    paths = [tmp_path / name / "checkpoint_last.pt" for name in ("whole", "parts")]
    whole, parts = (torch.load(path, weights_only=True) for path in paths)
    told = [state["optimizer_history"][-1]["num_updates"] for state in (whole, parts)]
    assert told == [20, 20]
    assert whole["extra_state"]["waited"] == parts["extra_state"]["waited"]
    before = paths[1].read_bytes()
    said = train(run, "transformer_lora", tmp_path / "parts", 100, *flags)
    assert "the run has ended: --patience 3" in said and paths[1].read_bytes() == before

    given = (*flags, "--no-save-optimizer-state")  # with which fairseq counts updates from 0
    train(run, "transformer_lora", tmp_path / "alone", 5, *given)
    said = train(run, "transformer_lora", tmp_path / "alone", 5, *given)
    assert "the run has ended: --max-update 5" in said

    # A run that starts from that checkpoint is another one, and waits anew.
    flags = (*PLUGIN, "--finetune-from-model", paths[1], *flags[4:])
    said = train(run, "transformer_lora", tmp_path / "next", 100, *flags)
    assert "epoch 4 @ 20 updates" in said and "@ 25 updates" not in said


@pytest.fixture(scope="module")
def monolingual(data, tmp_path_factory):
    """The source language alone, as ``denoising`` reads it."""
    folder = tmp_path_factory.mktemp("one")
    for split in ("train", "valid"):
        for end in ("bin", "idx"):
            shutil.copy(data / f"{split}.en-xx.en.{end}", folder / f"{split}.{end}")
    shutil.copy(data / "dict.en.txt", folder / "dict.txt")
    return folder


PAIR = ("--source-lang", "en", "--target-lang", "xx")
LANGUAGES = ("--langs", "en,xx", "--lang-pairs", "en-xx")
#: Task -> (arch, its flags, a language that it adds to the dictionary).
OTHER_TASKS = {
    "translation_multi_simple_epoch": (
        "transformer",
        (
            *(*LANGUAGES, "--encoder-langtok", "tgt", "--decoder-langtok"),
            *("--sampling-method", "temperature"),
        ),
        "__xx__",
    ),
    "translation_from_pretrained_bart": ("bart_base", (*PAIR, "--langs", "en,xx"), "[xx]"),
    "denoising": (
        "bart_base",
        (
            *("--mask", 0.3, "--mask-length", "span-poisson", "--replace-length", 1),
            *("--sample-break-mode", "eos", "--tokens-per-sample", 32),
        ),
        "<mask>",
    ),
}


def test_a_new_language_of_a_multilingual_base(fairseq, data, tmp_path, capsys):
    """As docs/translation.md has it: a base whose task holds the languages, rows for another one,
    data by the new dictionary, and a LoRA; old languages keep their rows."""
    task = ("--task", "translation_multi_simple_epoch", "--encoder-langtok", "src")
    task += ("--decoder-langtok", "--cpu", *PLUGIN)
    flags = ("--sampling-method", "temperature", "--criterion", "label_smoothed_cross_entropy")
    flags += ("--optimizer", "adam", "--lr", 1e-2, "--batch-size", 16, "--num-workers", 0)
    flags += ("--no-epoch-checkpoints", "--max-update", 4, "--seed", 1)

    def call(name, folder, *words):
        done = fairseq(name, folder, *task, *words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    call("train", data, *LANGUAGES, *flags, "--arch", "transformer", *SIZES,
         "--share-all-embeddings", "--save-dir", tmp_path / "base")  # fmt: skip
    extended, tokenizer = tmp_path / "extended", data / raw_text.MODEL_NAME
    shutil.copy(data / "dict.en.txt", tmp_path / "dict.txt")
    base = tmp_path / "base" / "checkpoint_best.pt"
    for token in ("__xx__", "[xx]", "xx"):
        words = ("add-tokens", base, extended, "--dict", tmp_path / "dict.txt", "--tokens", token)
        assert "adds the language xx to the dictionary" in verbs.refused(capsys, *words)
    verbs.run("add-tokens", base, extended, "--dict", tmp_path / "dict.txt", "--tokens", "__fr__")
    for language in ("en", "fr"):
        (tmp_path / f"text.{language}").write_text("w1 w2 w3\nw4 w5\n" * 8)
    pair = f"{tmp_path}/text.en:{tmp_path}/text.fr"
    words = ("--spm", tokenizer, "--dict", extended / "dict.txt", "--train", pair, "--valid", pair)
    verbs.run("prepare-pairs", tmp_path / "en-fr", "-s", "en", "-t", "fr", *words)
    languages = ("--langs", "en,xx,fr", "--lang-pairs", "en-fr")
    given = ("--finetune-from-model", extended / "model.pt", "--peft-train-tokens", "__fr__")
    search = json.dumps({"source_lang": "en", "target_lang": "fr", "max_len_b": 8})
    call("train", tmp_path / "en-fr", *languages, *flags, "--arch", "transformer_lora", *given,
         "--save-dir", tmp_path / "run", "--generation", search)  # fmt: skip
    other = ("--langs", "xx,en,fr", "--lang-pairs", "en-fr", "--arch", "transformer_lora")
    words = (*task, *other, *flags, *given[:2], "--save-dir", tmp_path / "no")
    done = fairseq("train", tmp_path / "en-fr", *words)
    assert done.returncode == 1 and not (tmp_path / "no" / "checkpoint_last.pt").exists()
    assert "was trained with --langs en,xx, and --langs xx,en,fr" in done.stderr
    path = tmp_path / "run" / "checkpoint_best.pt"
    rows, old = (weights(p)["encoder.embed_tokens.weight"] for p in (path, base))
    moved = slim.read(str(path))["model"]["encoder.embed_tokens.token_update"]
    assert moved.shape == (1, NUMBERS["encoder_embed_dim"]) and moved.abs().max() > 1e-3
    new = len(Dictionary.load(str(data / "dict.en.txt")))
    assert torch.equal(torch.cat([rows[:new], rows[new + 1 :]]), old)
    words = (*languages, "-s", "en", "-t", "fr", "--path", path, "--gen-subset", "valid")
    out = call("generate", tmp_path / "en-fr", *words, "--max-len-b", 8)
    expected = re.findall(r"^H-\d+\t\S+\t(.*)$", out, re.MULTILINE)
    generator = Generator.load(extended / "model.pt", tmp_path / "run" / "adapter")
    texts = (tmp_path / "text.en").read_text().splitlines()
    found = {answer.text for answer in generator.generate(texts)}
    assert len(expected) == len(texts) and found == {words_of(row) for row in expected}


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_other_tasks_train_save_and_reload(task, fairseq, data, monolingual, tmp_path):
    """A LoRA and the row of a language on a base of the task: they train alone, and their
    checkpoint has the loss that it had when it was written."""
    arch, flags, language = OTHER_TASKS[task]
    folder = monolingual if task == "denoising" else data
    common = ("--task", task, *flags, "--cpu", "--batch-size", 16, "--num-workers", 0)

    def call(name, *words):
        done = fairseq(name, folder, *common, *words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    def trained(arch, name, *words):
        out = call(
            *("train", "--arch", arch, "--save-dir", tmp_path / name, "--max-update", 4),
            *("--criterion", "cross_entropy", "--optimizer", "adam", "--lr", 1e-2, "--seed", 1),
            *("--no-epoch-checkpoints", "--log-format", "simple", *words),
        )
        return tmp_path / name / "checkpoint_last.pt", losses(out)[-1]

    base, _ = trained(arch, "base", *SIZES, *PLUGIN)  # for what it mends of these tasks
    method = f"{arch.partition('_')[0]}_lora"
    search = {"beam": 3, "max_len_b": 8, "min_len": 4, "source_lang": "en", "target_lang": "xx"}
    given = ("--finetune-from-model", base, "--generation", json.dumps(search))
    path, loss = trained(method, "lora", *PLUGIN, *given, "--peft-train-tokens", language)
    kept = torch.load(path, weights_only=False)["model"]
    assert len(kept) == 28 and all("lora" in key or ".token_" in key for key in kept)
    assert kept["encoder.embed_tokens.token_update"].abs().max() > 1e-3
    assert all(value.abs().max() > 1e-3 for key, value in kept.items() if "lora_B" in key)
    if task != "denoising":  # which draws its noise anew
        out = call("validate", "--path", path, *PLUGIN)
        assert losses(out)[-1] == pytest.approx(loss, abs=2e-3)
        # What fairseq-generate writes, with the language tokens of the task, and as the run kept.
        kept = ("--beam", 3, "--max-len-b", 8, "--min-len", 4, "--nbest", 3)
        out = call("generate", "--path", path, *PLUGIN, *dict.fromkeys(PAIR), *kept)
        sources = re.findall(r"^S-\d+\t(.*)$", out, re.MULTILINE)
        expected = re.findall(r"^H-\d+\t(\S+)\t(.*)$", out, re.MULTILINE)
        generator = Generator.load(base, tmp_path / "lora" / "adapter")
        beams = list(generator.beams([words_of(row) for row in sources], nbest=3))
        found = [(one.score / math.log(2), one.text) for row in beams for one in row]
        assert len(found) == 36 and any(text for _, text in found)
        assert [text for _, text in found] == [words_of(row) for _, row in expected]
        scores = [float(score) for score, _ in expected]
        assert [score for score, _ in found] == pytest.approx(scores, abs=1e-3)
    adapter = tmp_path / "lora" / "adapter"
    verbs.run("verify", adapter, "--base", base)
    merged = tmp_path / "merged.pt"
    verbs.run("merge", adapter, merged, "--base", base)
    assert opens_without_plugin(merged)
    one, other = weights(merged), weights(base)
    assert one.keys() == other.keys()
    words = one["encoder.embed_tokens.weight"] - other["encoder.embed_tokens.weight"]
    assert len(words.abs().sum(1).nonzero()) == 1


def words_of(pieces):
    """The text of pieces without special tokens."""
    return " ".join(re.findall(rf"{WORD_START}(\w+)", pieces))


def losses(out):
    """Of the validations, in the order in which they were logged."""
    return [float(found) for found in re.findall(r"valid.* subset \| loss ([\d.]+)", out)]

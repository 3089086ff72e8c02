"""Classification with BART: the last </s> of the decoder, as fairseq's own recipe has it."""

from __future__ import annotations

import argparse
import types

import pytest
import torch
import verbs
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.bart import BARTModel
from families import BART
from helpers import (
    HEAD,
    TINY,
    TOLERANCE,
    WORD_START,
    opens_without_plugin,
    random_rows,
    train_flags,
    word_tokenizer,
    write_data,
)
from runs import metrics, validate_flags, validated

import fairseq_peft
from fairseq_peft.checkpoints import finetuned, slim
from fairseq_peft.checkpoints.file import told
from fairseq_peft.errors import InputError
from fairseq_peft.models import end_heads
from fairseq_peft.text import raw_text

SETTINGS = [
    ("lora", {"peft_targets": "all-linear"}),
    ("adapter", {"adapter_placement": "both"}),
    ("prefix", {"prefix_num_tokens": 3}),
    ("prompt", {"prompt_num_tokens": 3}),
    ("ia3", {}),
    ("bitfit", {}),
    ("adalora", {"peft_targets": "all-linear", "adalora_tfinal": 0}),
    ("head_only", {}),
]


@pytest.fixture
def bart(dictionary):
    def build(peft="full", seed=1, **given):
        model = BART(dictionary).build(peft, seed, **given)
        model.register_classification_head("head", num_classes=3, seed=seed)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return build


#: Pairs of texts, of several lengths: <s> a </s> </s> b </s>.
ROWS = [[0, 5, 6, 2, 2, 7, 2], [0, 9, 2, 2, 8, 10, 11, 12, 13, 2], [0, 4, 5, 2, 2, 9, 2]]


def padded(rows):
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[1] * (longest - len(row))] for row in rows])


def scores(model, tokens):
    return model(tokens, classification_head_name="head")[0]


def test_scores_are_those_of_stock_fairseq(bart, dictionary):
    """The input of the decoder is what fairseq's task makes with --add-prev-output-tokens: each row
    turned by one. Rows do not depend on the padding of others."""
    model = bart()
    stock = BART(dictionary).stock(model)
    stock.register_classification_head("head", num_classes=3)
    stock.load_state_dict(model.state_dict(), strict=True)
    tokens = padded(ROWS)
    before = padded([[row[-1], *row[:-1]] for row in ROWS])
    assert end_heads.decoder_input(tokens, dictionary.pad()).equal(before)
    with torch.no_grad():
        lengths = tokens.ne(1).sum(1)
        expected, _ = stock(tokens, lengths, before, classification_head_name="head")
        found = scores(model, tokens)
        alone = torch.cat([scores(model, torch.tensor([row])) for row in ROWS])
    assert (found - expected).abs().max() < TOLERANCE["fp32"]
    assert (found - alone).abs().max() < TOLERANCE["fp32"]
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize("peft, given", SETTINGS)
def test_every_trained_tensor_moves_the_scores(bart, peft, given):
    model, tokens = bart(peft, **given), padded(ROWS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith("classification_heads.") for name in trained)
    assert len(trained) > 4 or peft == "head_only" or peft == "prompt"
    for train in (False, True):
        model.train(train)
        torch.manual_seed(1)
        before = scores(model, tokens)
        for name, parameter in trained.items():
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape))
            torch.manual_seed(1)
            moved = (scores(model, tokens) - before).abs().max()
            assert moved > 1e-6 or name.endswith("k_proj.bias"), name
            with torch.no_grad():
                parameter.copy_(kept)
    state = model.state_dict()
    again = bart(peft, seed=3, **given)
    again.accepts_base = False
    again.load_state_dict(state, strict=True)
    assert torch.equal(scores(again, tokens), scores(model.eval(), tokens))
    del state["classification_heads.head.out_proj.weight"]
    with pytest.raises(InputError, match="its classification head is missing"):
        again.load_state_dict(state)


def write_base(path, data):
    """A checkpoint of stock fairseq's BART, without a head, for the words of a data folder."""
    words = Dictionary.load(str(data / "input0" / "dict.txt"))
    words.add_symbol("<mask>")
    flags = {"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 16}
    flags.update({f"{half}_ffn_embed_dim": 24 for half in ("encoder", "decoder")})
    flags.update({f"{half}_attention_heads": 4 for half in ("encoder", "decoder")})
    flags.update(max_source_positions=40, max_target_positions=40)
    args = argparse.Namespace(**flags)
    ARCH_CONFIG_REGISTRY["bart_base"](args)
    task = types.SimpleNamespace(source_dictionary=words, target_dictionary=words)
    torch.manual_seed(7)
    model = BARTModel.build_model(args, task)
    cfg = {"model": {"_name": "bart", **vars(args)}}
    finetuned.write(path, {}, cfg, model.state_dict())
    return path


@pytest.fixture
def data(tmp_path):
    """Texts of one word that tells the class, and others; a tokenizer that reads them."""
    folder = write_data(tmp_path / "tiny", random_rows(), ["bad", "good"], mark=WORD_START)
    (folder / raw_text.MODEL_NAME).write_bytes(word_tokenizer())
    return folder


def test_train_validate_predict_merge(fairseq, data, tmp_path, capsys):
    base, run = write_base(tmp_path / "base.pt", data), tmp_path / "run"
    more = {"finetune_from_model": base, "peft_targets": "all-linear", "max_epoch": 8, "cpu": True}
    more.update(dict.fromkeys([*TINY, "from_scratch"]))  # the base says it
    done = fairseq("train", *train_flags(data, run, "bart_lora", **more))
    assert done.returncode == 0, done.stderr
    best = max(line["subsets"]["valid"]["accuracy"] for line in metrics(run))
    assert best > 0.7  # half of the rows are of each class
    path = run / "checkpoint_best.pt"
    before, after = slim.read(str(base))["model"], slim.read(str(path))["model"]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    kept = torch.load(path, weights_only=False)["model"]
    assert all("lora_" in name or name.startswith("classification_heads.") for name in kept)
    done = fairseq("validate", *validate_flags(data, path))
    assert done.returncode == 0, done.stderr
    assert validated(done.stdout)["valid"]["accuracy"] == pytest.approx(best, abs=1e-5)

    # The folder beside its base, in another process than the run's: the same scores.
    adapter = run / "adapter"
    verbs.run("inspect", adapter)
    verbs.run("verify", adapter, "--base", base)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    dataset = task.load_dataset("valid")
    rows = [dataset[i]["tokens"] for i in range(len(dataset))]
    with torch.no_grad():
        expected, _ = model.eval()(padded(rows), classification_head_name=HEAD)
    texts = [" ".join(task.dictionary[i].strip(WORD_START) for i in row[1:-1]) for row in rows]
    classifier = fairseq_peft.Classifier.load(base, adapter)
    classifier.add("again", adapter)
    names = [("default", "again")[i % 2] for i in range(len(texts))]
    found = torch.stack([row for _, row in classifier.logits(texts, names, batch_size=5)])
    assert (found - expected).abs().max() < TOLERANCE["fp32"]
    shared = [model for model, _ in classifier._shared.adapters.values()]
    assert shared[0].encoder.layers[0].fc1.weight is shared[1].encoder.layers[0].fc1.weight
    whole = fairseq_peft.Classifier.load(path)
    assert whole.predict(texts).labels == classifier.predict(texts, "again").labels

    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}\n" for text in texts))
    capsys.readouterr()
    verbs.run("predict", lines, "--base", base, "--adapter", adapter)
    labels = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    gold = [task.labels[int(target)] for target in dataset.targets]
    assert sum(map(str.__eq__, labels, gold)) / len(gold) == pytest.approx(best, abs=1e-5)

    merged = tmp_path / "merged.pt"
    verbs.run("merge", adapter, merged, "--base", base)
    stock = slim.read(str(merged))
    assert told(stock)["_name"] == "bart_large"  # an architecture
    assert opens_without_plugin(merged)
    assert stock["cfg"]["task"]["add_prev_output_tokens"]
    (plain,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(merged)])
    tokens = padded(rows)
    with torch.no_grad():
        before = end_heads.decoder_input(tokens, 1)
        again, _ = plain.eval()(tokens, tokens.ne(1).sum(1), before, classification_head_name=HEAD)
    assert (again - expected).abs().max() < TOLERANCE["fp32"]
    merged_alone = fairseq_peft.Classifier.load(merged)
    found = torch.stack([row for _, row in merged_alone.logits(texts)])
    assert (found - expected).abs().max() < TOLERANCE["fp32"]
    capsys.readouterr()
    message = verbs.refused(capsys, "generate", lines, "--base", base, "--adapter", adapter)
    assert "is a classifier's" in message

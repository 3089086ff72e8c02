"""``--peft-train-tokens``: rows of the embedding that train beside any method; and
``fairseq-peft add-tokens``, which gives a base rows for new ones. The contract runs them, too."""

from __future__ import annotations

import adapter_folders
import pytest
import torch
from fairseq.data import Dictionary
from families import BART, Roberta, Transformer
from hf_models import weights_of
from verbs import refused, run

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import InputError
from fairseq_peft.hf import check
from fairseq_peft.methods.token_rows import TokenRows

SOURCE = torch.tensor([[9, 7, 20, 2], [8, 30, 2, 1]])
TARGET = torch.tensor([[2, 9, 7], [2, 8, 30]])


def moved(family, peft="lora", tokens="w5,w3", **given):
    """A model whose rows have moved; those of w5 and w3 are 9 and 7."""
    model = family.build(peft, peft_train_tokens=tokens, **given)
    for module in model.modules():
        if isinstance(module, TokenRows):
            module.token_update.data += 0.5 * torch.arange(1.0, 17)
    return model


@torch.no_grad()
def logits(model, source=SOURCE, target=TARGET):
    return model(source, source.ne(1).sum(1), target)[0]


def test_rows_are_seen_wherever_the_embedding_is(dictionary):
    """By both halves and, where it is tied, by the output; step by step as in one pass."""
    family = Transformer(dictionary)
    plain, model = family.build("lora"), moved(family)
    assert list(model.encoder.embed_tokens.token_ids) == [9, 7]
    assert model.decoder.embed_tokens is model.encoder.embed_tokens
    one, other = logits(plain), logits(model)
    assert (one != other).any(-1).all()
    alone = torch.tensor([[8, 20, 2]]), torch.tensor([[2, 8, 30]])  # no named token is read
    difference = (logits(plain, *alone) - logits(model, *alone)).abs().amax((0, 1))
    assert set(difference.nonzero().flatten().tolist()) == {7, 9}
    lengths = SOURCE.ne(1).sum(1)
    with torch.no_grad():
        written = check.greedy(model, SOURCE, lengths, 2)
        again = torch.cat([TARGET[:, :1], written[:, :-1]], 1)
        assert torch.equal(logits(model, SOURCE, again).argmax(-1), written)
    merged = family.stock(model)
    model.merge()
    merged.load_state_dict(model.state_dict(), strict=True)
    assert (logits(merged) - other).abs().max() < 1e-5
    rows = model.state_dict()["encoder.embed_tokens.weight"] - plain.encoder.embed_tokens.weight
    assert rows.abs().sum(1).nonzero().flatten().tolist() == [7, 9]


def test_a_checkpoint_is_rebuilt_without_its_dictionary(dictionary, tmp_path):
    """``merge`` of a checkpoint has no words: which rows they are is in the file."""
    model = moved(Transformer(dictionary))
    told = {name: value for name, value in vars(model.args).items() if value is not None}
    cfg = {"model": {**told, "_name": "transformer_lora"}, "task": {"_name": "translation"}}
    again = finetuned.rebuild(tmp_path, {"cfg": cfg, "model": model.state_dict()})
    assert torch.equal(logits(again), logits(model))


def test_a_folder_names_the_tokens(dictionary, tmp_path):
    family = Roberta(dictionary)
    base = adapter_folders.base_state(dictionary)
    model = family.build("bitfit", peft_train_tokens="w5")
    model.load_state_dict(dict(base))
    found = adapter_folder.read(adapter_folders.write(tmp_path / "adapter", model, base))
    told = found.description["method"]
    assert told["peft"] == "bitfit+tokens" and told["knobs"]["tokens"] == {"tokens": "w5"}
    assert found.tensors["encoder.sentence_encoder.embed_tokens.token_update"].shape == (1, 16)


@pytest.mark.parametrize(
    ("family", "peft", "given", "words"),
    [
        (Transformer, "lora", {"peft_train_tokens": "w5,__new__"}, "fairseq-peft add-tokens"),
        (Transformer, "lora", {"peft_train_tokens": "w5,w5"}, "names a token twice"),
        (Transformer, "lora", {"peft_train_tokens": "<pad>"}, "read by nobody"),
        (Roberta, "full", {"peft_train_tokens": "w5"}, "one of the two is in vain"),
        (
            Transformer,
            "lora",
            {"peft_train_tokens": "w5", "peft_targets": "embed_tokens"},
            "adapts encoder.embed_tokens as a whole already",
        ),
    ],
)
def test_what_cannot_be_is_refused(family, peft, given, words, dictionary):
    with pytest.raises(InputError) as error:
        family(dictionary).build(peft, **given)
    assert words in str(error.value)


def write_base(folder, family, dictionary):
    """A base of ``family`` and its dict.txt, which <mask> is no part of."""
    model = family(dictionary).build("full", seed=11, head=False)
    words = Dictionary()
    for symbol in dictionary.symbols[words.nspecial : -1]:
        words.add_symbol(symbol)
    words.save(str(folder / "dict.txt"))
    adapter_folders.save_base(folder / "model.pt", model.state_dict())
    return model


@pytest.mark.parametrize("family", [BART, Roberta], ids=["bart", "roberta"])
def test_added_tokens_have_rows_and_train(family, dictionary, tmp_path, capsys):
    """Every old word keeps its row, <mask> behind the new ones; the model that they make is the
    old one for old words, and trains the new."""
    old = write_base(tmp_path, family, dictionary)
    words = ("add-tokens", tmp_path / "model.pt")
    run(*words, tmp_path / "mean", "--tokens", "__xx__,__yy__")
    assert "rows 34 to 35, each at first the mean of all words" in capsys.readouterr().out
    run(*words, tmp_path / "like", "--tokens", "__xx__,__yy__", "--like", "w5")
    new = Dictionary.load(str(tmp_path / "mean" / "dict.txt"))
    new.add_symbol("<mask>")
    assert new.symbols == [*dictionary.symbols[:-1], "__xx__", "__yy__", "<mask>"]
    before, mean, like = (weights_of(tmp_path / n / "model.pt") for n in (".", "mean", "like"))
    rows = [*range(34), 36]
    for name in before:
        per_word = len(before[name].shape) and len(before[name]) == 35
        assert torch.equal(before[name], mean[name][rows] if per_word else mean[name]), name
        if per_word:
            expected = before[name][4:34].mean(0)
            assert (mean[name][34:36] - expected).abs().max() < 1e-6
            assert torch.equal(like[name][34:36], before[name][[9, 9]])
    model = family(new).build("lora", peft_train_tokens="__xx__,__yy__", head=False)
    model.load_state_dict(dict(mean))
    if family is BART:
        assert torch.allclose(logits(model)[..., rows], logits(old), atol=1e-5)
    names = [name for name in model.state_dict() if name.endswith("embed_tokens.token_ids")]
    assert all(model.state_dict()[name].tolist() == [34, 35] for name in names) and names


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--tokens", "w5"), "w5 is in the dictionary already"),
        (("--tokens", "a,a"), "named twice"),
        (("--tokens", "a b"), "no spaces"),
        (("--tokens", "a", "--like", "b"), "--like b"),
        (("--tokens", "a", "--dict", "none.txt"), "none.txt does not exist"),
    ],
)
def test_tokens_that_cannot_be_added(flags, word, dictionary, tmp_path, capsys):
    write_base(tmp_path, BART, dictionary)
    line = refused(capsys, "add-tokens", tmp_path / "model.pt", tmp_path / "out", *flags)
    assert word in line and not (tmp_path / "out").exists()

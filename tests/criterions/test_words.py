"""fairseq's losses of words in parts: the numbers and gradients of fairseq's own way."""

from __future__ import annotations

import types

import pytest
import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from families import BART, FAMILIES, Roberta, Transformer, TransformerLM, parametrize
from helpers import TOLERANCE
from settings import collect
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_peft.criterions import words
from fairseq_peft.injection import surgery
from fairseq_peft.layers import word_losses

PART = 4  # rows
KINDS = {"transformer": Transformer, "bart": BART, "transformer_lm": TransformerLM}
SETTINGS = {
    "full": {"peft": "full"},
    "lora": {"peft": "lora"},
    "words": {"peft": "lora", "peft_targets": "all-linear,embed_tokens"},
    "rows": {"peft": "lora", "peft_train_tokens": "</s>,<unk>"},
    "norms": {"peft": "layer_norm"},
    "prompt": {"peft": "prompt"},
}
every_setting = parametrize(collect(), ["transformer", "transformer_lm"])
UNTIED = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}


@pytest.fixture
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(word_losses, "LOGITS", 1)
    monkeypatch.setattr(word_losses, "ROWS", PART)


@pytest.fixture
def sample(dictionary):
    """Three texts of 5 to 7 words, and what follows them."""
    texts = torch.randint(4, 34, (3, 8), generator=torch.Generator().manual_seed(3))
    texts[1, 6:] = dictionary.pad()
    texts[2, 7:] = dictionary.pad()
    source, target = texts[:, :-1].contiguous(), texts[:, 1:].contiguous()
    source[target.eq(dictionary.pad())] = dictionary.pad()
    return {
        "net_input": {"src_tokens": source, "src_lengths": source.ne(dictionary.pad()).sum(1)},
        "target": target,
        "ntokens": int(target.ne(dictionary.pad()).sum()),
    }


def moved(dictionary, kind, peft="full", **given):
    """A model in train mode without dropout, away from its start."""
    model = kind(dictionary).build(peft, dropout=0.0, attention_dropout=0.0, **given)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.train()


def criterion_of(dictionary, kind=LabelSmoothedCrossEntropyCriterion, **given):
    task = types.SimpleNamespace(target_dictionary=dictionary)
    if issubclass(kind, LabelSmoothedCrossEntropyCriterion):
        given.setdefault("label_smoothing", 0.1)
    return kind(task, sentence_avg=False, **given)


def batch_of(model, sample):
    """The batch as the model takes it."""
    if hasattr(model, "encoder"):
        inputs = sample["net_input"]
        return {**sample, "net_input": {**inputs, "prev_output_tokens": inputs["src_tokens"]}}
    return sample


def numbers(model, criterion, sample, forward):
    """Loss and log, and the gradient of each tensor, of seven times the loss."""
    model.zero_grad()
    torch.manual_seed(5)  # some methods drop out
    loss, size, log = forward(criterion, model, batch_of(model, sample))
    (7 * loss).backward()
    grads = {n: t.grad.clone() for n, t in model.named_parameters() if t.grad is not None}
    return {"loss": loss.detach(), "size": size, **log}, grads


def assert_same(found, expected, tolerance):
    assert found[0].keys() == expected[0].keys() and found[1].keys() == expected[1].keys()
    for name, number in expected[0].items():
        assert float(found[0][name]) == pytest.approx(float(number), rel=tolerance), name
    for name, grad in expected[1].items():
        size = max(grad.abs().max().item(), 1)
        assert (found[1][name] - grad).abs().max().item() < tolerance * size, name


def both_ways(model, criterion, sample):
    kind = type(criterion)
    assert words.can(kind, criterion, model, True)
    return [numbers(model, criterion, sample, f) for f in (kind.forward, kind.forward.__wrapped__)]


@every_setting
def test_each_method_learns_from_it_what_it_does_from_fairseqs(
    dictionary, sample, family, peft, given
):
    model = moved(dictionary, family, peft, **given)
    found, expected = both_ways(model, criterion_of(dictionary), sample)
    trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert found[1].keys() == trained
    assert_same(found, expected, TOLERANCE["fp32"])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_fairseqs(dictionary, sample, kind, given, smoothing):
    model = moved(dictionary, kind, **given)
    criterion = criterion_of(dictionary, label_smoothing=smoothing)
    found, expected = both_ways(model, criterion, sample)
    assert found[1], "nothing trains"
    assert_same(found, expected, TOLERANCE["fp32"])


def test_cross_entropy_an_output_of_its_own_and_sentence_avg(dictionary, sample):
    model = moved(dictionary, Transformer, **UNTIED)
    criterion = criterion_of(dictionary, CrossEntropyCriterion)
    criterion.sentence_avg = True
    found, expected = both_ways(model, criterion, sample)
    assert "decoder.output_projection.weight" in found[1] and found[0]["size"] == 3
    assert_same(found, expected, TOLERANCE["fp32"])


def test_words_at_the_start_may_count_for_nothing(dictionary, sample):
    model = moved(dictionary, Transformer)
    whole, _ = both_ways(model, criterion_of(dictionary), sample)
    found, expected = both_ways(model, criterion_of(dictionary, ignore_prefix_size=2), sample)
    assert found[0]["loss"] < whole[0]["loss"]
    assert_same(found, expected, TOLERANCE["fp32"])


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_in_bf16_it_is_as_near_as_bf16_is(dictionary, sample, given):
    model = moved(dictionary, Transformer, precision="bf16", **given)
    found, expected = both_ways(model, criterion_of(dictionary), sample)
    assert_same(found, expected, TOLERANCE["bf16"])
    exact = numbers(
        moved(dictionary, Transformer, **given),
        criterion_of(dictionary),
        sample,
        LabelSmoothedCrossEntropyCriterion.forward,
    )
    assert found[0]["loss"] != exact[0]["loss"]  # it was computed in bf16


def test_in_evaluation_the_loss_is_the_same_and_nothing_is_kept(dictionary, sample):
    model = moved(dictionary, Transformer, **SETTINGS["words"]).eval()
    criterion = criterion_of(dictionary)
    with torch.no_grad():
        found = criterion(model, batch_of(model, sample))
        expected = type(criterion).forward.__wrapped__(criterion, model, batch_of(model, sample))
    assert not found[0].requires_grad
    for name, number in expected[2].items():
        assert float(found[2][name]) == pytest.approx(float(number), rel=2e-6), name


class Largest(TorchDispatchMode):
    """The most rows of any tensor whose rows are as long as the dictionary."""

    def __init__(self, num_words):
        super().__init__()
        self.num_words, self.rows = num_words, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.num_words,):
                self.rows = max(self.rows, tensor.numel() // self.num_words)
        return out


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_there_never_are_the_logits_of_all_tokens(dictionary, sample, given):
    model = moved(dictionary, Transformer, **given)
    criterion, rows = criterion_of(dictionary), []
    for forward in (type(criterion).forward, type(criterion).forward.__wrapped__):
        with Largest(len(dictionary)) as found:
            numbers(model, criterion, sample, forward)
        rows.append(found.rows)
    # The matrix of the words, turned, has C rows of that length.
    assert rows[0] <= max(PART, 16) < rows[1] == sample["target"].numel()


def test_a_batch_of_padding_alone_has_no_loss(dictionary, sample):
    model = moved(dictionary, Transformer)
    sample["target"].fill_(dictionary.pad())
    found, expected = both_ways(model, criterion_of(dictionary), sample)
    assert found[0]["loss"] == expected[0]["loss"] == 0
    assert all(not grad.any() for grad in found[1].values())


# ---- What goes fairseq's own way -----------------------------------------------------------------


class Other(LabelSmoothedCrossEntropyCriterion):
    """A criterion of somebody's, made of fairseq's: it may read the logits."""

    def compute_loss(self, model, net_output, sample, reduce=True):
        self.seen = net_output[0].shape
        return super().compute_loss(model, net_output, sample, reduce)


def test_a_criterion_that_is_made_of_fairseqs_gets_its_logits(dictionary, sample):
    model, criterion = moved(dictionary, Transformer), criterion_of(dictionary, Other)
    criterion(model, batch_of(model, sample))
    assert criterion.seen == (*sample["target"].shape, len(dictionary))


def test_who_asks_for_more_gets_it(dictionary, sample):
    model = moved(dictionary, Transformer)
    _, _, log = criterion_of(dictionary, report_accuracy=True)(model, batch_of(model, sample))
    assert log["total"] == sample["ntokens"]
    each, _, _ = criterion_of(dictionary)(model, batch_of(model, sample), reduce=False)
    assert each.numel() == sample["target"].numel()


def test_other_models_and_precisions_are_left_alone(dictionary, sample):
    family, criterion = Transformer(dictionary), criterion_of(dictionary)
    model = moved(dictionary, Transformer)

    def can(model):
        return words.can(LabelSmoothedCrossEntropyCriterion, criterion, model, True)

    assert can(model)
    assert not can(family.stock(model))  # fairseq's own
    assert not can(torch.nn.DataParallel(model))  # around it may only be called as a whole
    assert not can(moved(dictionary, Roberta, head=False))
    assert not can(moved(dictionary, Transformer, precision="fp16"))  # its loss is scaled
    with torch.autocast("cpu", torch.bfloat16):  # fairseq's --amp
        assert not can(model)
    assert not can(moved(dictionary, Transformer).half())  # fairseq's --fp16
    assert can(surgery.unwrap(model))

"""fairseq's encoder-decoders with methods in them: against stock fairseq, and step by step against
one pass. ``tests/methods/test_contract.py`` runs the transformer with every setting, too."""

from __future__ import annotations

import argparse
import re

import pytest
import torch
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_REGISTRY,
)
from fairseq.sequence_generator import SequenceGenerator
from families import BART, Transformer, parametrize
from helpers import TOLERANCE
from settings import collect

from fairseq_peft import methods
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.models import transformer
from fairseq_peft.models.transformer import ANY_SIZE, FAMILY

VARIANTS = {
    "transformer": (Transformer, {}),
    "norms first": (Transformer, {"encoder_normalize_before": True}),
    "learned positions": (
        Transformer,
        dict.fromkeys(("encoder_learned_pos", "decoder_learned_pos"), 1),
    ),
    "no positions": (Transformer, {"no_token_positional_embeddings": True}),
    "two dictionaries' tables": (
        Transformer,
        {"share_all_embeddings": False, "share_decoder_input_output_embed": True},
    ),
    "untied": (Transformer, {"share_all_embeddings": False}),
    "bart": (BART, {}),
    "mbart": (BART, {"no_scale_embedding": False, "encoder_normalize_before": True}),
}
every_variant = pytest.mark.parametrize("kind, given", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture
def family(request, dictionary):
    return Transformer(dictionary)


@pytest.fixture
def source(dictionary):
    """(3, 6) words in front of </s>; padded at the left, as fairseq's translation pads them."""
    words = torch.randint(4, 34, (3, 6), generator=torch.Generator().manual_seed(2))
    words[:, -1] = dictionary.eos()
    words[1, :3] = dictionary.pad()
    words[2, :1] = dictionary.pad()
    return words


@pytest.fixture
def target(dictionary):
    """(3, 7) words behind </s>, without padding."""
    words = torch.randint(4, 34, (3, 7), generator=torch.Generator().manual_seed(3))
    words[:, 0] = dictionary.eos()
    return words


def perturbed(family, peft="lora", scale=0.3, **given):
    model = family.build(peft, **given)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def distance(one, other):
    return (one - other).abs().max().item()


def stock_of(family, model):
    stock = family.stock(model)
    stock.load_state_dict(model.state_dict(), strict=True)
    return stock


# ---- Stock fairseq -------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_logits_and_gradients_equal_stock(dictionary, source, target, kind, given, train):
    family = kind(dictionary)
    ours = perturbed(family, "full", scale=0.1, dropout=0.0, attention_dropout=0.0, **given)
    stock = stock_of(family, ours)
    target[1, 5:] = dictionary.pad()
    text = target.ne(dictionary.pad())
    for model in (ours, stock):
        model.train(train)
        model.logits, model.extra = model(source, None, target)
        model.logits[text].logsumexp(-1).sum().backward()
    size = max(stock.logits.abs().max().item(), 1)
    assert distance(ours.logits[text], stock.logits[text]) < 1e-6 * size
    found = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        scale = max(parameter.grad.abs().max().item(), 1)
        assert distance(parameter.grad, found[name].grad) < TOLERANCE["fp32"] * scale, name
    if not train:  # the alignment that fairseq-generate --print-alignment shows
        found, expected = (model.extra["attn"][0][text] for model in (ours, stock))
        assert distance(found, expected) < TOLERANCE["fp32"]


def test_a_base_that_was_trained_in_bf16_is_one_of_stock_fairseq(dictionary, source, target):
    """``scripts/translation.sh`` trains its base so: the same keys, in fp32."""
    family = Transformer(dictionary)
    model = family.build("full", precision="bf16").train()
    model(source, None, target)[0].float().logsumexp(-1).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    stock = stock_of(family, model.eval())
    assert all(tensor.dtype == torch.float32 for tensor in stock.parameters())
    with torch.no_grad():
        found, expected = model(source, None, target)[0], stock(source, None, target)[0]
    assert 0 < distance(found, expected) < TOLERANCE["bf16"]


@every_variant
@pytest.mark.parametrize("beam", [1, 3])
def test_beam_search_is_that_of_the_merged_model(dictionary, source, kind, given, beam):
    """fairseq's own generator: the same hypotheses, scores and alignments from ours and from stock
    fairseq with the merged weights. The beams of a sentence share the keys of its memory, and an
    earlier search may have had others."""
    family = kind(dictionary)
    words = "all-linear,embed_tokens"
    model = perturbed(family, "lora", scale=0.5, peft_targets=words, **given)

    def generate(model):
        generator = SequenceGenerator([model], dictionary, beam_size=beam, max_len_b=8)
        lengths = source.ne(dictionary.pad()).sum(1)
        sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
        with torch.no_grad():
            return [h for row in generator.generate([model], sample) for h in row]

    SequenceGenerator([model], dictionary, beam_size=beam + 2)
    asked = []
    keys = model.decoder.layers[0].encoder_attn.k_proj
    keys.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    found = generate(model)
    assert asked == [len(source)]
    model.merge()
    expected = generate(stock_of(family, model))
    assert [h["tokens"].tolist() for h in found] == [h["tokens"].tolist() for h in expected]
    assert len({tuple(h["tokens"].tolist()) for h in found}) >= beam
    for one, other in zip(found, expected):
        assert one["score"].item() == pytest.approx(other["score"].item(), abs=1e-4)
        assert distance(one["attention"], other["attention"]) < 1e-4


# ---- Step by step --------------------------------------------------------------------------------


@parametrize(collect(), ["transformer"])
def test_steps_equal_one_pass(family, source, target, peft, given):
    """Every setting, moved from its start: token by token, two beams a sentence, which change
    places, and then a sentence is finished, as in a beam search."""
    model = perturbed(family, peft, **given)
    beams = torch.tensor([0, 0, 1, 1, 2, 2])
    source, target = source[beams], target[(beams + torch.arange(6)) % 3]
    orders = {3: torch.tensor([1, 0, 2, 2, 5, 4]), 5: torch.tensor([0, 1, 4, 5])}
    state = {}
    with torch.no_grad():
        memory = model.encoder(source)
        for length in range(1, target.shape[1] + 1):
            if length in orders:
                order = orders[length]
                model.decoder.reorder_incremental_state_scripting(state, order)
                memory = model.encoder.reorder_encoder_out(memory, order)
                source, target = source[order], target[order]
            tokens = target[:, :length]
            step = model.decoder(tokens, memory, state)[0]
            whole = model(source, None, tokens)[0]
            assert step.shape[1] == 1
            size = max(whole.abs().max().item(), 1)  # tied to a moved embedding, tens
            assert distance(step[:, 0], whole[:, -1]) < TOLERANCE["fp32"] * size


ENTRANCES = [
    ("lora", {}),
    ("prefix", {}),
    ("prefix", {"prefix_positions": "reserved"}),
    ("prompt", {}),
    ("prompt", {"prompt_placement": "before_bos"}),
    ("prefix,prompt", {}),
]


@parametrize(ENTRANCES, ["transformer"])
@pytest.mark.parametrize("where", ["right", "left"])
@pytest.mark.parametrize("begins", [False, True], ids=["words", "<s>"])
def test_padding_does_not_matter(family, source, target, peft, given, where, begins):
    """A padded row gives the logits that it gives alone, in one pass and step by step."""
    model = perturbed(family, peft, encoder_learned_pos=True, **given)
    words, pad = source[:1, 1:].clone(), torch.full((1, 3), family.dictionary.pad())
    if begins:
        words[0, 0] = family.dictionary.bos()
    sides = [words, pad] if where == "right" else [pad, words]
    others = torch.randint(4, 34, (2, 8), generator=torch.Generator().manual_seed(9))
    rows, targets = torch.cat([torch.cat(sides, 1), others]), target.clone()
    targets[0, 4:] = family.dictionary.pad()
    state = {}
    with torch.no_grad():
        expected = model(words, None, target[:1, :4])[0][0]
        whole = model(rows, None, targets)[0]
        memory = model.encoder(rows)
        steps = [model.decoder(targets[:, :n], memory, state)[0] for n in range(1, 5)]
    assert distance(whole[0, :4], expected) < TOLERANCE["fp32"]
    assert distance(torch.cat(steps, 1)[0], expected) < TOLERANCE["fp32"]
    assert whole.isfinite().all()


@pytest.mark.parametrize("learned", [False, True], ids=["sinusoids", "learned"])
@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
def test_where_a_prompt_stands(family, target, placement, learned):
    """A prompt of two words' embeddings is these two words: in front of the text, behind the
    padding; behind <s>, where there is one, and it is asked."""
    bos, pad = family.dictionary.bos(), family.dictionary.pad()
    given = {"prompt_num_tokens": 2, "prompt_placement": placement, "encoder_learned_pos": learned}
    model = family.build("prompt", **given)
    plain = family.build("full", encoder_learned_pos=learned)
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if "soft_prompt" not in n})
    with torch.no_grad():
        words = model.encoder.embed_tokens.weight[[20, 21]]
        model.encoder.soft_prompt.embeddings.copy_(model.encoder.embed_scale * words)
    front = [bos, 20, 21] if placement == "after_bos" else [20, 21, bos]
    rows = torch.tensor([[pad, pad, 7, 8, 2], [pad, bos, 7, 8, 2]])
    expected = torch.tensor([[pad, pad, 20, 21, 7, 8, 2], [pad, *front, 7, 8, 2]])
    found = model(rows, None, target[:2])
    wanted = plain(expected, None, target[:2])
    assert distance(found[0], wanted[0]) < TOLERANCE["fp32"]
    assert found[1]["attn"][0].shape == (2, 7, 5)
    memory = model.encoder(rows)
    assert memory["encoder_out"][0].shape[0] == memory["encoder_padding_mask"][0].shape[1] == 7


def test_a_later_word_changes_nothing_before_it(family, source, target):
    model = perturbed(family, "prefix,prompt,lora,adapter")
    before = model(source, None, target)[0]
    target[:, 5] = 4 + (target[:, 5] - 3) % 10
    after = model(source, None, target)[0]
    assert distance(after[:, :5], before[:, :5]) < 1e-6 < distance(after[:, 5:], before[:, 5:])


ATTENTIONS = ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn")


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("part", ["q_proj", "v_proj", "k_proj", "out_proj"])
def test_negative_control_stock_attention_is_two_models(family, source, target, attention, part):
    """Why there is an attention of our own: in stock fairseq a LoRA on self-attention trains
    nothing, and in the decoder it is applied all the same when text is generated."""
    stock = family.stock(family.build("full"))
    base = stock(source, None, target)[0]
    setting = methods.setting("lora", {"peft_targets": f"{attention}.{part}"})
    setting.inject(stock, FAMILY, lambda name: torch.Generator().manual_seed(1))
    added = [p for name, p in stock.named_parameters() if "lora" in name]
    with torch.no_grad():
        for parameter in added:
            parameter.normal_()
    logits = stock(source, None, target)[0]
    assert torch.equal(logits, base)
    logits.sum().backward()
    assert len(added) == 2 and all(parameter.grad is None for parameter in added)
    state, memory = {}, stock.encoder(source)
    for length in range(1, target.shape[1] + 1):
        step = stock.decoder(target[:, :length], memory, state)[0]
    moved = distance(step[:, 0], base[:, -1])
    assert moved > 1e-2 if attention.startswith("decoder") else moved < TOLERANCE["fp32"]


# ---- Targets, flags, sizes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, layers, number",
    [
        ("q_proj", "", 6),
        ("decoder.layers.0.encoder_attn.q_proj", "", 1),
        ("encoder_attn.q_proj", "", 2),
        ("self_attn.q_proj", "1", 2),
        (r"decoder\..*attn\.[qv]_proj", "", 8),
        ("all-linear", "", 32),
    ],
)
def test_targets_are_told_by_stack_and_attention(family, words, layers, number):
    model = family.build("lora", peft_targets=words, lora_layers=layers)
    assert sum(name.endswith("lora_A") for name in model.added) == number


@pytest.mark.parametrize(
    "peft, given, message",
    [
        ("head_only", {}, "an encoder-decoder has none"),
        ("last_layers", {}, "several stacks of layers (encoder and decoder)"),
        ("lora", {"adaptive_input": True}, "--adaptive-input is not for"),
        ("lora", {"decoder_layerdrop": 0.1}, "--decoder-layerdrop is not for"),
        ("lora", {"cross_self_attention": True}, "--cross-self-attention is not for"),
        ("lora", {"precision": "fp8"}, "--precision 'fp8'"),
        ("lora", {"decoder_attention_heads": 3}, "--decoder-attention-heads 3"),
        ("lora", {"decoder_embed_dim": 32}, "--decoder-embed-dim 32 is not --encoder-embed-dim 16"),
        ("lora", {"activation_fn": "glu"}, "--activation-fn 'glu' is unknown"),
        ("lora", {"peft_targets": "cross"}, "'cross' matches no module"),
    ],
)
def test_what_is_not_for_this_model_is_refused(family, peft, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        family.build(peft, **given)


def test_the_models_own_name_has_the_decoders_widths(family):
    """As hydra builds it: no architecture has completed the flags."""
    model = family.build("lora", decoder_input_dim=None, decoder_output_dim=None)
    assert model.args.decoder_output_dim == model.args.encoder_embed_dim


def test_one_embedding_needs_one_dictionary(family):
    from fairseq.data import Dictionary

    task, model = family.task(), family.build("full")
    task.target_dictionary = Dictionary()
    with pytest.raises(InputError, match="needs one dictionary for source and target"):
        type(model).build_model(model.args, task)


def test_too_long_a_text_is_one_sentence(family, source, target):
    learned = {"encoder_learned_pos": True, "decoder_learned_pos": True}
    model = family.build("prompt", prompt_num_tokens=2, **learned)
    assert model.max_positions() == (38, 40)
    with pytest.raises(InputError, match="A source has 39 tokens, and there is room for 38"):
        model(torch.full((1, 39), 5), None, target[:1])
    with pytest.raises(InputError, match="41 tokens and 0 prompt .* --max-target-positions"):
        model(source[:1], None, torch.full((1, 41), 5))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpoint_activations_compute_the_same(family, source, target, precision):
    found = []
    for again in (False, True):
        model = perturbed(
            family, "lora,prefix,prompt", checkpoint_activations=again, precision=precision
        )
        torch.manual_seed(5)
        model.train()(source, None, target)[0].float().logsumexp(-1).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = found
    assert len(plain) > 10
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_architectures():
    named = set(ARCH_MODEL_REGISTRY)
    sizes = [start for starts in ANY_SIZE.values() for start in starts]
    sizes += ["transformer_iwslt_de_en", "transformer_wmt_en_de_big", "bart_base", "mbart_large"]
    assert {f"{size}_{way}" for size in sizes for way in (*methods.available(), "peft")} < named


@pytest.mark.parametrize("name", ["mine", "transformer_mine"])
def test_architectures_of_another_plugin_are_left_alone(monkeypatch, name):
    """Whatever they are called, and however they read their flags."""

    def complete(args):
        args.decoder_layers = args.encoder_layers

    monkeypatch.setitem(ARCH_MODEL_INV_REGISTRY, "transformer", [name])
    monkeypatch.setitem(ARCH_CONFIG_REGISTRY, name, complete)
    before = set(ARCH_MODEL_REGISTRY)
    transformer._register_architectures()
    assert set(ARCH_MODEL_REGISTRY) == before


@every_variant
def test_sizes_come_from_the_base(dictionary, source, target, kind, given, tmp_path):
    """Of stock fairseq's model, whatever it is, by its file alone."""
    family = kind(dictionary)
    ours = perturbed(family, "full", scale=0.1, **given)
    stock = stock_of(family, ours)
    state = {"model": stock.state_dict(), "args": argparse.Namespace(**vars(ours.args))}
    torch.save({**state, "best_loss": 1.0}, tmp_path / "base.pt")
    start = "bart" if kind is BART else "transformer"
    args = argparse.Namespace(restore_file=str(tmp_path / "base.pt"))
    ARCH_CONFIG_REGISTRY[f"{start}_lora"](args)
    config = family.config_class.from_namespace(args)
    model = family.model_class.build_model(config, family.task()).eval()
    model.load_state_dict(dict(stock.state_dict()))
    expected = stock(source, None, target)[0]
    assert distance(model(source, None, target)[0], expected) < TOLERANCE["fp32"]

    size = {"bart": "bart_base", "transformer": "transformer_iwslt_de_en"}[start]
    other = argparse.Namespace(restore_file=str(tmp_path / "base.pt"))
    with pytest.raises(InputError, match=f"encoder_layers 6 .the base has 2.*{start}_lora"):
        ARCH_CONFIG_REGISTRY[f"{size}_lora"](other)


def test_checkpoints_of_older_versions_load(family):
    """M2M-100 and the WMT models: a buffer for sinusoids, no output matrix; and, from other
    writers, no version."""
    model = family.build("lora", encoder_normalize_before=True)
    base = family.build("full", seed=3, encoder_normalize_before=True).state_dict()
    for half in ("encoder", "decoder"):
        base[f"{half}.embed_positions._float_tensor"] = torch.zeros(1)
        del base[f"{half}.version"]
    del base["decoder.output_projection.weight"]
    model.load_state_dict(dict(base), strict=True)
    assert model.encoder.layer_norm is not None and model.decoder.layer_norm is not None
    words = base["encoder.embed_tokens.weight"]
    assert torch.equal(model.decoder.output_projection.weight, words)


def test_the_same_layer_has_one_number_in_both_stacks(family):
    """What ``--layer-lr-decay`` and ``--frozen-dropout`` count by."""
    model = family.build("full", layer_lr_decay=0.5)
    scales = {name: p.lr_scale for name, p in model.named_parameters()}
    assert scales["encoder.layers.1.fc1.weight"] == scales["decoder.layers.1.fc1.weight"] == 1
    assert scales["decoder.layers.0.encoder_attn.q_proj.weight"] == 0.5
    assert len(surgery.places(model, FAMILY)) == 4

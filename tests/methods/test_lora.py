"""LoRA: targets, ranks by name, starts, the embedding, biases, LoRA+."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import TOLERANCE, train_flags
from torch import nn

from fairseq_peft.checkpoints import slim
from fairseq_peft.injection import counting
from fairseq_peft.methods.lora import LoRALinear
from fairseq_peft.methods.shared import low_rank
from fairseq_peft.models.roberta import FAMILY

EMBEDDING = "encoder.sentence_encoder.embed_tokens"


def updates(model):
    """Name below the root -> module with an update."""
    kinds = (LoRALinear, low_rank.LoRAEmbedding)
    root = model.encoder.sentence_encoder
    return {name: module for name, module in root.named_modules() if isinstance(module, kinds)}


def perturb(model, scale=0.3):
    """Move all that LoRA added."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in model.added:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def lm_logits(model, tokens):
    with torch.no_grad():
        return model(tokens)[0]


# Which maps, and how


@pytest.mark.parametrize("targets", ["query", "q_proj,value", "", " , "])
def test_targets_that_match_nothing_are_refused(build, targets):
    with pytest.raises(
        ValueError, match="matches no module. Modules here: q_proj.*Try q_proj,v_proj"
    ):
        build("lora", peft_targets=targets)


def test_all_linear_leaves_embeddings_alone(build):
    found = updates(build("lora", peft_targets="all-linear"))
    assert len(found) == 12 and all(isinstance(m, LoRALinear) for m in found.values())
    assert list(updates(build("lora", peft_targets="all-linear", lora_layers="1"))) == [
        name for name in found if name.startswith("layers.1.")
    ]


def test_ranks_and_alphas_by_pattern(build):
    """The first pattern that fits decides; the scale is alpha / rank, or alpha / sqrt(rank)."""
    knobs = {
        "peft_targets": "all-linear",
        "lora_rank_pattern": "layers.0.self_attn.q_proj=4,q_proj=2",
        "lora_alpha_pattern": r"layers\.1\..*_proj=3,fc1=1.5",
    }
    found = updates(build("lora", **knobs))
    ranks = {name: len(module.lora_A) for name, module in found.items()}
    assert ranks.pop("layers.0.self_attn.q_proj") == 4
    assert ranks.pop("layers.1.self_attn.q_proj") == 2
    assert set(ranks.values()) == {8}
    scales = {name: module.scale for name, module in found.items()}
    assert scales["layers.0.self_attn.q_proj"] == 16 / 4
    assert scales["layers.1.self_attn.q_proj"] == 3 / 2
    assert scales["layers.0.fc1"] == scales["layers.1.fc1"] == 1.5 / 8
    assert scales["layers.0.fc2"] == 16 / 8
    stable = updates(build("lora", lora_rslora=True, **knobs))
    assert stable["layers.1.self_attn.q_proj"].scale == 3 / math.sqrt(2)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"lora_rank": 0}, "--lora-rank 0"),
        ({"lora_dropout": 1.0}, "--lora-dropout 1.0"),
        ({"lora_alpha": 0.0}, "--lora-alpha 0.0"),
        ({"lora_alpha": math.nan}, "--lora-alpha nan"),
        ({"lora_lr_ratio": 0.0}, "--lora-lr-ratio 0.0"),
        ({"lora_bias": "some"}, "--lora-bias 'some' is unknown: give one of none, all, lora_only"),
        ({"lora_init": "svd"}, "--lora-init 'svd' is unknown: give one of zero, pissa, olora"),
        ({"lora_rank_pattern": "fc1=4"}, "--lora-rank-pattern fc1=4 would be ignored"),
        ({"lora_rank_pattern": "q_proj=4,layers.0.self_attn.q_proj=2"}, "an earlier pattern"),
        ({"lora_alpha_pattern": "q_proj"}, "--lora-alpha-pattern 'q_proj' is no pair"),
        ({"lora_init": "pissa", "lora_rank": 17}, "layers.0.self_attn.q_proj is (16, 16)"),
        ({"lora_layers": "2"}, "there is no layer 2"),
        ({"peft_targets": "embed_tokens", "lora_layers": "0"}, "matches no module of the layers 0"),
        ({"peft_targets": "embed_tokens", "lora_dropout": 0.1}, "--lora-dropout would be ignored"),
        ({"peft_targets": "embed_tokens", "lora_bias": "lora_only"}, "--lora-bias lora_only would"),
        ({"peft_targets": "embed_tokens", "lora_init": "pissa"}, "--lora-init would be ignored"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("lora", **given)
    assert message in str(error.value)


@pytest.mark.parametrize("peft", ["lora,dora", "adalora,lora", "dora,adalora"])
def test_two_low_rank_methods_are_refused(build, peft):
    with pytest.raises(ValueError, match="do not go together: .*low"):
        build(peft)


# Starts


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("target", ["q_proj", "fc1", "fc2"])
def test_starts_correct_the_weight_and_keep_the_sum(build, init, target):
    base = build("full", seed=11, head=False).state_dict()
    model = build("lora", lora_init=init, peft_targets=target, lora_rank=3, lora_alpha=6.0)
    model.load_state_dict(dict(base))
    for name, module in updates(model).items():
        weight = base[f"encoder.sentence_encoder.{name}.weight"]
        a, b = module.lora_A.detach(), module.lora_B.detach()
        assert torch.allclose(module.weight + 2.0 * b @ a, weight, atol=1e-6)
        if init == "pissa":
            # What stays lacks the three strongest directions; A and B share them alike.
            values = torch.linalg.svdvals(weight)
            assert torch.allclose(torch.linalg.svdvals(module.weight)[:-3], values[3:], atol=1e-5)
            for norms in (a.norm(dim=1), b.norm(dim=0)):
                assert torch.allclose(norms, (values[:3] / 2.0).sqrt(), atol=1e-5)
        else:
            assert torch.allclose(b.T @ b, torch.eye(3), atol=1e-5)
            assert torch.allclose(a.tril(-1), torch.zeros_like(a), atol=1e-6)
            assert torch.allclose((b @ a)[:, :3], weight[:, :3], atol=1e-5)


def test_a_model_that_is_rebuilt_from_its_own_checkpoint_keeps_it(build, batch, logits):
    """No second decomposition, neither where a base would be accepted nor where none is."""
    model = build("lora", lora_init="pissa")
    model.load_state_dict(build("full", seed=11, head=False).state_dict())
    perturb(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for accepts in (True, False):
        again = build("lora", lora_init="pissa", seed=3)
        again.accepts_base = accepts
        again.load_state_dict(dict(state))
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
        assert torch.equal(logits(again, batch), logits(model, batch))


def test_from_scratch_the_weights_at_hand_are_decomposed(build, batch, logits):
    model, plain = build("lora", lora_init="olora"), build("full")
    assert torch.equal(logits(model, batch), logits(plain, batch))  # not yet: B is zero
    model.adopt_base()
    assert (logits(model, batch) - logits(plain, batch)).abs().max() < TOLERANCE["fp32"]
    for module in updates(model).values():
        assert module.lora_B.abs().max() > 0.1


# The embedding, and the LM head that shares its matrix


def test_lm_head_and_embedding_stay_one_matrix(build, batch, logits):
    """Masked-LM logits and class scores, before the merge as after it."""
    model = build("lora", peft_targets="embed_tokens,fc1", lora_rank=3)
    head, plain = model.encoder.lm_head, lm_logits(model, batch)
    assert head.weight is model.get_submodule(EMBEDDING).weight
    assert not head.weight.requires_grad
    perturb(model, scale=0.1)  # LM logits of size 1, as the tolerance has it
    scores, words = logits(model, batch), lm_logits(model, batch)
    assert (words - plain).abs().max() > 0.1
    model.merge()
    embedding = model.get_submodule(EMBEDDING)
    assert type(embedding) is nn.Embedding and embedding.padding_idx == 1
    assert head.weight is embedding.weight and head.output_update is None
    assert (logits(model, batch) - scores).abs().max() < TOLERANCE["fp32"]
    assert (lm_logits(model, batch) - words).abs().max() < TOLERANCE["fp32"]


def test_lm_logits_move_with_the_update_of_the_head_alone(build, batch):
    """The head's share of the update, not only that of the input."""
    model = build("lora", peft_targets="embed_tokens", lora_rank=3)
    perturb(model)
    with_update = lm_logits(model, batch)
    model.encoder.lm_head.output_update = None
    assert (lm_logits(model, batch) - with_update).abs().max() > 0.1


def test_an_untied_lm_head_keeps_its_own_matrix(build, batch):
    model = build("lora", peft_targets="embed_tokens", untie_weights_roberta=True)
    own = model.encoder.lm_head.weight.detach().clone()
    perturb(model)
    words = lm_logits(model, batch)
    assert model.encoder.lm_head.output_update is None
    model.merge()
    assert torch.equal(model.encoder.lm_head.weight, own)
    assert (lm_logits(model, batch) - words).abs().max() < TOLERANCE["fp32"]


def test_the_lm_head_is_stock_fairseqs(build, batch, dictionary):
    from fairseq.models.roberta import RobertaEncoder, RobertaModel

    model = build("full")
    stock = RobertaModel(model.args, RobertaEncoder(model.args, dictionary)).eval()
    state = model.state_dict()
    stock.load_state_dict({k: v for k, v in state.items() if "classification_heads" not in k})
    masked = batch.eq(5)
    with torch.no_grad():
        for given in ({}, {"masked_tokens": masked}):
            expected = stock.encoder.lm_head(torch.ones(4, 12, 16), **given)
            assert torch.equal(model.encoder.lm_head(torch.ones(4, 12, 16), **given), expected)


def test_padding_gets_no_gradient_from_the_lookup(build, batch):
    model = build("lora", peft_targets="embed_tokens", lora_rank=3)
    perturb(model)
    model(batch, features_only=True, classification_head_name="head")[0].sum().backward()
    gradient = model.get_submodule(EMBEDDING).lora_A.grad
    assert gradient[:, 1].eq(0).all() and gradient[:, batch[0, 1]].ne(0).any()


def test_a_copy_of_the_model_updates_with_its_own_embedding(build, batch):
    import copy

    model = build("lora", peft_targets="embed_tokens", lora_rank=3)
    perturb(model)
    expected, twin = lm_logits(model, batch), copy.deepcopy(model)
    with torch.no_grad():
        model.get_submodule(EMBEDDING).lora_A.zero_()
    assert torch.equal(lm_logits(twin, batch), expected)


# Biases


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_which_biases_train(build, peft):
    def trained(which):
        model = build(peft, peft_targets="q_proj,fc1", lora_layers="1", lora_bias=which)
        found = model.setting.trainable_base_names(model, FAMILY)
        return {name[len("encoder.sentence_encoder.") :] for name in found}

    assert trained("none") == set()
    assert trained("lora_only") == {"layers.1.self_attn.q_proj.bias", "layers.1.fc1.bias"}
    body = build("full").encoder.sentence_encoder
    assert trained("all") == {n for n, _ in body.named_parameters() if n.endswith(".bias")}


# LoRA+


def test_the_ratio_is_told_to_the_optimizer_on_b_alone(build):
    model = build("lora", peft_targets="all-linear", lora_lr_ratio=16.0)
    scales = {key: getattr(p, "lr_scale", 1.0) for key, p in model.named_parameters()}
    assert {key for key, scale in scales.items() if scale == 16.0} == {
        key for key in scales if key.endswith(".lora_B")
    }
    assert counting.count(model, "classification_heads.").method == 12 * 8 * 32 + 4 * 8 * 8


# Through the command line


@pytest.mark.parametrize(
    "arch, knobs",
    [
        ("roberta_small_lora", {"lora_init": "pissa", "peft_targets": "embed_tokens,fc1,q_proj"}),
        ("roberta_small_dora", {"peft_targets": "fc1,q_proj"}),
    ],
)
def test_a_run_that_is_resumed_adopts_no_base_again(
    fairseq, data_folder, base_checkpoint, tmp_path, arch, knobs
):
    """One epoch and one more end with the bits of two."""

    def train(folder, **more):
        flags = {"from_scratch": None, "finetune_from_model": base_checkpoint, **knobs, **more}
        done = fairseq("train", *train_flags(data_folder, tmp_path / folder, arch, **flags))
        assert done.returncode == 0, done.stderr
        return slim.read(tmp_path / folder / "checkpoint_last.pt")["model"]

    train("parts", max_epoch=1)
    parts, whole = train("parts", max_epoch=2), train("whole", max_epoch=2)
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    base = torch.load(base_checkpoint, weights_only=True)["model"]
    weight = "encoder.sentence_encoder.layers.0.fc1.weight"
    assert torch.equal(whole[weight], base[weight]) == (arch == "roberta_small_dora")
    assert torch.equal(whole[f"{EMBEDDING}.weight"], base[f"{EMBEDDING}.weight"])
    assert torch.equal(whole["encoder.lm_head.weight"], whole[f"{EMBEDDING}.weight"])

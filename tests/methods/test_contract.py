"""The contract: every registered method, with weights perturbed away from the identity start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from fairseq.models.roberta import RobertaModel
from helpers import ROOT, TINY, TOLERANCE
from torch import nn

from fairseq_peft import methods, surgery
from fairseq_peft.architectures import Dims
from fairseq_peft.models.roberta import FAMILY, HEADS

METHODS = methods.available()
LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

#: Every setting that puts tensors somewhere else: (method, flags).
SETTINGS = [(name, {}) for name in METHODS]
SETTINGS += [("lora", {"peft_targets": target, "lora_rank": 3}) for target in LINEARS]
SETTINGS += [
    ("adapter", {"adapter_placement": p, "adapter_bottleneck": 5}) for p in ("attention", "both")
]
SETTINGS += [("prompt", {"prompt_placement": "before_bos", "prompt_num_tokens": 3})]
IDS = [f"{name}-{'-'.join(map(str, given.values()))}".rstrip("-") for name, given in SETTINGS]
every_setting = pytest.mark.parametrize("name, given", SETTINGS, ids=IDS)
every_method = pytest.mark.parametrize("name", METHODS)


def perturb(model, seed=0, scale=0.3):
    """Move every tensor that the method added, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.added:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def base_state(build, batch):
    """The state of a plain pre-trained model, as a stock checkpoint has it: no head."""
    model = build("full", seed=11, head=False)
    return {key: value.clone() for key, value in model.state_dict().items()}


def step(model, batch, optimizer):
    optimizer.zero_grad()
    scores, _ = model(batch, features_only=True, classification_head_name="head")
    nn.functional.cross_entropy(scores, torch.tensor([0, 1, 1, 0])).backward()
    optimizer.step()


@every_setting
def test_base_checkpoint_loads_with_every_key_accounted_for(build, batch, name, given):
    base = base_state(build, batch)
    model = build(name, **given)
    model.load_state_dict(dict(base), strict=True)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in base.items())
    assert {key for key in loaded if key not in base} == model.added | {
        key for key in loaded if key.startswith(HEADS)
    }


@every_setting
def test_starts_as_the_base_bit_for_bit(build, batch, logits, name, given):
    base = base_state(build, batch)
    plain, model = build("full"), build(name, **given)
    plain.load_state_dict(dict(base))
    model.load_state_dict(dict(base))
    same = torch.equal(logits(plain, batch), logits(model, batch))
    assert same == (name != "prompt")  # prompts are no identity, and say so


@every_setting
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_perturbed_tensors_move_the_logits(build, batch, name, given, train):
    """Each added tensor by itself, in train and in eval mode, at the same dropout seed."""
    model = build(name, **given)
    perturb(model)
    model.train(train)

    def scores():
        torch.manual_seed(5)
        with torch.no_grad():
            return model(batch, features_only=True, classification_head_name="head")[0]

    before = scores()
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if key in model.added:
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            moved = (scores() - before).abs().max().item()
            assert moved > 1e-6, f"{key} does not reach the logits"
            with torch.no_grad():
                parameter.copy_(kept)


@every_method
def test_trainable_set_is_the_declared_set_and_the_head(build, name):
    model = build(name)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    head = {key for key, _ in model.named_parameters() if key.startswith(HEADS)}
    encoder = {
        key for key, _ in model.named_parameters() if key.startswith("encoder.sentence_encoder.")
    }
    expected = {"full": encoder | head, "head_only": head}.get(name, model.added | head)
    assert head and trainable == expected


@every_setting
def test_trainable_tensors_move_and_frozen_ones_stay(build, batch, name, given):
    model = build(name, **given)
    perturb(model)
    model.train()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        step(model, batch, optimizer)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{key} gets no gradient"
            assert not torch.equal(parameter, before[key]), f"{key} trains but does not move"
        else:
            assert parameter.grad is None
            assert torch.equal(parameter, before[key]), f"{key} is frozen but moved"


def test_save_and_load_are_exact_in_a_fresh_process(build, batch, logits, tmp_path):
    """Every setting: perturbed, saved, rebuilt by another process at another seed, the same logits.

    One process for all settings, because a process costs seconds of imports.
    """
    saved = {}
    for key, (name, given) in zip(IDS, SETTINGS):
        model = build(name, **given)
        perturb(model)
        saved[key] = {"state": model.state_dict(), "logits": logits(model, batch)}
    torch.save({"tokens": batch, "models": saved}, tmp_path / "models.pt")
    (tmp_path / "fresh.py").write_text(FRESH_PROCESS)
    settings = json.dumps(
        [[key, name, {**TINY, **given}] for key, (name, given) in zip(IDS, SETTINGS)]
    )
    done = subprocess.run(
        [sys.executable, "fresh.py", str(ROOT), settings],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == IDS


FRESH_PROCESS = """
import argparse, json, sys, types
sys.path.insert(0, sys.argv[1])
import fairseq, torch
import fairseq_peft
from fairseq_peft.models.options import architecture
from fairseq_peft.models.roberta import RobertaPeftModel

saved = torch.load("models.pt", weights_only=True)
words = fairseq.data.Dictionary()
for i in range(30):
    words.add_symbol(f"w{i}")
words.add_symbol("<mask>")
task = types.SimpleNamespace(source_dictionary=words, cfg=types.SimpleNamespace(seed=99))
for key, method, flags in json.loads(sys.argv[2]):
    args = argparse.Namespace(_name="x", **flags)
    architecture("roberta_small", method)(args)
    model = RobertaPeftModel.build_model(args, task)
    model.register_classification_head("head", num_classes=2, seed=99)
    model.accepts_base = False
    model.load_state_dict(saved["models"][key]["state"], strict=True)
    model.eval()
    with torch.no_grad():
        found = model(saved["tokens"], features_only=True, classification_head_name="head")[0]
    assert torch.equal(found, saved["models"][key]["logits"]), key
    print(key)
"""


@every_setting
def test_merged_weights_load_into_stock_fairseq(build, batch, logits, dictionary, name, given):
    model = build(name, **given)
    perturb(model)
    expected = logits(model, batch)
    if not model.method.mergeable:
        with pytest.raises(ValueError, match="cannot be merged"):
            model.method.merge(model)
        return
    model.method.merge(model)
    stock = RobertaModel(model.args, stock_encoder(model.args, dictionary))
    stock.register_classification_head("head", num_classes=2)
    stock.load_state_dict(model.state_dict(), strict=True)
    assert (logits(stock.eval(), batch) - expected).abs().max() < TOLERANCE["fp32"]


def stock_encoder(args, dictionary):
    from fairseq.models.roberta import RobertaEncoder

    return RobertaEncoder(args, dictionary)


@every_setting
def test_count_equals_the_formula(build, dictionary, name, given):
    model = build(name, **given)
    dims = Dims(
        TINY["encoder_layers"],
        TINY["encoder_embed_dim"],
        TINY["encoder_ffn_embed_dim"],
        TINY["encoder_attention_heads"],
        TINY["max_positions"],
        len(dictionary),
    )
    added = sum(p.numel() for key, p in model.named_parameters() if key in model.added)
    assert model.method.count(dims, model.config).total == added
    if name not in ("full", "head_only"):
        assert surgery.count(model, HEADS).method == added > 0


@pytest.mark.parametrize("module", ["q_proj", "v_proj"])
def test_negative_control_the_checks_fail_on_stock_attention(build, batch, module):
    """The trap itself: behind fairseq's own attention the same LoRA gets no gradient and moves
    nothing."""
    from fairseq.modules import MultiheadAttention

    model = build("lora", peft_targets=module)

    def stock_forward(self, x, keep=None, first_only=False):
        padding = None if keep is None else ~keep[:, 0, 0]
        x = x.transpose(0, 1)
        out, _ = MultiheadAttention.forward(
            self, x, x, x, key_padding_mask=padding, need_weights=False
        )
        out = out.transpose(0, 1)
        return out[:, :1] if first_only else out

    for layer in model.encoder.sentence_encoder.layers:
        layer.self_attn.__class__ = type("Stock", (MultiheadAttention,), {"forward": stock_forward})
    scores, _ = model(batch, features_only=True, classification_head_name="head")
    scores.sum().backward()
    assert all(p.grad is None for key, p in model.named_parameters() if key in model.added)


def test_methods_do_not_disturb_each_other(build):
    """At one seed: the same head, the same body and the same generator state, whatever the
    method."""
    heads, states, bodies = [], [], []
    for name in METHODS:
        model = build(name, seed=4)
        states.append(torch.get_rng_state())
        heads.append([p.clone() for p in model.classification_heads.parameters()])
        bodies.append(model.encoder.sentence_encoder.layers[0].fc1.weight.clone())
    for head, state, body in zip(heads, states, bodies):
        assert all(torch.equal(a, b) for a, b in zip(head, heads[0]))
        assert torch.equal(state, states[0]) and torch.equal(body, bodies[0])
    other = build("lora", seed=5)
    assert not torch.equal(next(other.classification_heads.parameters()), heads[0][0])


def test_vocabulary_prompts_take_the_rows_of_the_base(build, batch):
    base = base_state(build, batch)
    model = build("prompt")
    model.load_state_dict(dict(base))
    prompt = model.encoder.sentence_encoder.soft_prompt
    table = base["encoder.sentence_encoder.embed_tokens.weight"]
    assert torch.equal(prompt.embeddings, table[prompt.vocab_rows])
    assert prompt.vocab_rows.min() >= 4
    # A checkpoint that has a prompt keeps it.
    own = model.state_dict()
    own["encoder.sentence_encoder.soft_prompt.embeddings"] = torch.ones_like(prompt.embeddings)
    model.load_state_dict(own)
    assert torch.equal(prompt.embeddings, torch.ones_like(prompt.embeddings))


@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
def test_what_the_head_reads_with_a_prompt(build, batch, placement):
    """after_bos: <s>; before_bos: the first prompt token, as in Hugging Face PEFT."""
    model = build("prompt", prompt_placement=placement, prompt_num_tokens=3)
    encoder = model.encoder.sentence_encoder
    captured = {}
    hook = encoder.layers[0].register_forward_pre_hook(lambda m, args: captured.update(x=args[0]))
    with torch.no_grad():
        model(batch, features_only=True)
    hook.remove()
    with torch.no_grad():
        position = encoder.embed_positions.weight[2]
        prompt, bos = encoder.soft_prompt.embeddings, encoder.embed_tokens.weight[0]
        first = prompt[0] if placement == "before_bos" else bos
        expected = encoder.layernorm_embedding(first + position)
    assert torch.allclose(captured["x"][:, 0], expected.expand(4, -1), atol=1e-6)
    assert captured["x"].shape[1] == 12 + 3


@pytest.mark.parametrize("targets", ["query", "q_proj,value", "", " , "])
def test_targets_that_match_nothing_are_refused(build, targets):
    with pytest.raises(
        ValueError, match="matches no module. Modules here: q_proj.*Try q_proj,v_proj"
    ):
        build("lora", peft_targets=targets)


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("lora", {"lora_rank": 0}, "--lora-rank 0"),
        ("lora", {"lora_dropout": 1.0}, "--lora-dropout 1.0"),
        ("lora", {"lora_alpha": 0.0}, "--lora-alpha 0.0"),
        ("adapter", {"adapter_bottleneck": 0}, "--adapter-bottleneck 0"),
        ("adapter", {"adapter_placement": "middle"}, "--adapter-placement 'middle'"),
        ("prompt", {"prompt_num_tokens": 0}, "--prompt-num-tokens 0"),
        ("prompt", {"prompt_init": "zeros"}, "--prompt-init 'zeros'"),
        ("prompt", {"prompt_placement": "end"}, "--prompt-placement 'end'"),
        ("adapter", {"lora_rank": 4}, "--lora-rank would be ignored: --peft adapter"),
        ("full", {"peft_targets": "q_proj"}, "--peft-targets would be ignored: --peft full"),
        ("lora", {"peft": "loar"}, "--peft 'loar' is unknown"),
        ("full", {"precision": "fp8"}, "--precision 'fp8'"),
        ("full", {"encoder_attention_heads": 3}, "--encoder-attention-heads 3"),
    ],
)
def test_bad_knobs_are_refused(build, name, given, message):
    with pytest.raises(ValueError) as error:
        build(name, **given)
    assert message in str(error.value)


def test_the_family_names_what_is_there(build):
    model = build("full")
    assert len(surgery.match(model, FAMILY, ",".join(LINEARS))) == 2 * len(LINEARS)

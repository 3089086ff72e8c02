"""The contract: every registered method, alone and combined, in every family of models, with
weights perturbed away from the start."""

from __future__ import annotations

import copy
import subprocess

import adapter_folders
import pytest
import torch
from families import FAMILIES, parametrize
from helpers import ROOT, TOLERANCE
from settings import collect, identifier
from torch import nn

from fairseq_peft import methods
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.injection import counting, surgery
from fairseq_peft.models import folder
from fairseq_peft.models.options import METHOD_FIELDS


def merges(peft, given):
    return methods.setting(peft, {f: v for f, v in given.items() if f in METHOD_FIELDS}).mergeable


SETTINGS = collect()
every_setting = parametrize(SETTINGS)
every_setting_that_merges = parametrize([s for s in SETTINGS if merges(*s)])
every_setting_that_does_not_merge = parametrize([s for s in SETTINGS if not merges(*s)])
#: Adapter folders are written by the task of classifiers.
every_setting_of_a_classifier = parametrize(
    SETTINGS, [name for name in FAMILIES if FAMILIES[name].has_head]
)

SUPPORT, PROGRAM = ROOT / "tests" / "support", "fresh_process.py"
#: Tensors that train although no logit can depend on them: part of the name -> reason.
UNSEEN = {
    "k_proj.bias": "what is added to all keys shifts a query's scores alike: softmax cancels it"
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, dictionary):
    return FAMILIES[request.param](dictionary)


@pytest.fixture(scope="module")
def made(family):
    """``made("lora", {...})``: a perturbed model, one for all tests, which leave it as it is."""
    kept = {}

    def make(peft, given):
        key = identifier(peft, given)
        if key not in kept:
            model = family.build(peft, **given)
            perturb(model)
            kept[key] = model, cloned(model.state_dict())
        return kept[key][0]

    yield make
    for key, (model, state) in kept.items():
        assert same(model.state_dict(), state) and not model.training, f"a test has changed {key}"


@pytest.fixture(scope="module")
def base_of(family):
    """``base_of({...})``: the state of a plain pre-trained model, as a stock checkpoint has it
    (no head), of the sizes that a setting's flags say."""
    kept = {}

    def make(given):
        flags = {flag: value for flag, value in given.items() if flag not in METHOD_FIELDS}
        key = str(flags)
        if key not in kept:
            kept[key] = cloned(family.build("full", seed=11, head=False, **flags).state_dict())
        return dict(kept[key])

    return make


def cloned(state):
    return {key: value.clone() for key, value in state.items()}


def same(state, other):
    """Whether two states have the same tensors in the same order, bit for bit."""
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


def copied(model):
    """The model once more; its dictionary is shared."""
    dictionary = (model.encoder if hasattr(model, "encoder") else model.decoder).dictionary
    return copy.deepcopy(model, {id(dictionary): dictionary})


def is_unseen(name):
    return any(part in name for part in UNSEEN)


def own_tensors(model):
    """Name -> parameter, for what the methods added and what they chose of the base."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("classification_heads.")
    }


def perturb(model, seed=0, scale=0.3):
    """Move every tensor that the methods train, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in own_tensors(model).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def step(family, model, batch, optimizer):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(family.scores(model, batch), torch.tensor([0, 1, 1, 0]))
    penalty = model.penalty()
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()


def logits(family, model, batch):
    with torch.no_grad():
        return family.scores(model, batch)


@every_setting
def test_base_checkpoint_loads_with_every_key_accounted_for(family, base_of, peft, given):
    base = base_of(given)
    model = family.build(peft, **given)
    model.load_state_dict(dict(base), strict=True)
    loaded = model.state_dict()
    assert {key for key in loaded if key not in base} == model.added | {
        key for key in loaded if key.startswith(family.heads)
    }
    changed = {key for key, value in base.items() if not torch.equal(loaded[key], value)}
    if model.setting.logits_at_start == "nearly":  # the weights beside the update are corrected
        frozen = [method.frozen_base_names(model, family.family) for method in model.setting]
        assert changed <= set().union(*frozen)
    else:
        assert not changed


@every_setting
def test_starts_as_the_base_where_it_says_so(family, base_of, batch, peft, given):
    base = base_of(given)
    sizes = {flag: value for flag, value in given.items() if flag not in METHOD_FIELDS}
    plain, model = family.build("full", **sizes), family.build(peft, **given)
    plain.load_state_dict(dict(base))
    model.load_state_dict(dict(base))
    expected, found = logits(family, plain, batch), logits(family, model, batch)
    if model.setting.logits_at_start == "equal":
        assert torch.equal(expected, found)
    elif model.setting.logits_at_start == "nearly":
        assert (expected - found).abs().max() < TOLERANCE["fp32"]
    else:
        assert not torch.equal(expected, found)


@every_setting
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_perturbed_tensors_move_the_logits(family, made, batch, peft, given, train):
    """Each tensor that trains, by itself, in train and in eval mode, at the same dropout seed."""
    model = copied(made(peft, given)).train(train)

    def scores():
        torch.manual_seed(5)
        return logits(family, model, batch)

    before = scores()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in own_tensors(model).items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        moved = (scores() - before).abs().max().item()
        if not is_unseen(name):
            assert moved > 1e-6, f"{name} does not reach the logits"
        with torch.no_grad():
            parameter.copy_(kept)


@every_setting
def test_trainable_set_is_the_declared_set_and_the_head(family, made, peft, given):
    model = made(peft, given)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    names = {key for key, _ in model.named_parameters()}
    head = {key for key in names if key.startswith(family.heads)}
    declared = model.setting.trainable_base_names(model, family.family)
    assert declared <= names - model.added
    if peft == "full":
        declared = {key for key in names if key.startswith(family.body)}
    assert bool(head) == family.has_head
    assert trainable == declared | (model.added & names) | head


@every_setting
def test_trainable_tensors_move_and_frozen_ones_stay(family, made, batch, peft, given):
    model = copied(made(peft, given)).train()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        step(family, model, batch, optimizer)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{key} gets no gradient"
            assert not torch.equal(parameter, before[key]), f"{key} trains but does not move"
        else:
            assert parameter.grad is None
            assert torch.equal(parameter, before[key]), f"{key} is frozen but moved"


@pytest.mark.end_to_end
def test_save_and_load_are_exact_in_a_fresh_process(family, made, batch, tmp_path, python):
    """Every setting: perturbed, saved, rebuilt by another process at another seed, the same logits.

    One process for all settings, because a process costs seconds of imports.
    """
    saved = {}
    for peft, given in [setting for setting in SETTINGS if family.takes(*setting)]:
        model = made(peft, given)
        saved[identifier(peft, given)] = {
            "setting": (peft, given),
            "state": model.state_dict(),
            "logits": logits(family, model, batch),
        }
    torch.save({"family": family.name, "tokens": batch, "models": saved}, tmp_path / "models.pt")
    family.dictionary.save(str(tmp_path / "dict.txt"))
    code = f"import sys; sys.path[:0] = ['{SUPPORT}', '{ROOT}']\n{(SUPPORT / PROGRAM).read_text()}"
    done = subprocess.run([python, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == list(saved)


@every_setting_of_a_classifier
def test_an_adapter_folder_gives_the_same_model_on_its_base(
    family, base_of, batch, peft, given, tmp_path
):
    """Written, read, put on the base: the same logits, bit for bit. A whole model needs no base;
    everything else does, and holds nothing that the base has."""
    base = base_of(given)
    model = family.build(peft, **given)
    model.load_state_dict(dict(base))
    perturb(model)
    expected = logits(family, model, batch)
    found = adapter_folder.read(adapter_folders.write(tmp_path / "adapter", model, base))
    assert found.description["complete"] == (peft == "full")
    again = folder.load(found, None if peft == "full" else base)
    moved = (logits(family, again, batch) - expected).abs().max()
    assert moved < 1e-6 if any("mlp" in flag for flag in given) else moved == 0
    if peft != "full":
        body = adapter_folder.body(base)
        same = [n for n, t in found.tensors.items() if n in body and torch.equal(t, body[n])]
        assert not same and set(found.tensors) == again.own_names()


@every_setting_that_merges
def test_merged_weights_load_into_the_stock_model(family, made, batch, peft, given):
    model = copied(made(peft, given))
    expected = logits(family, model, batch)
    model.merge()
    stock = family.stock(model)
    stock.load_state_dict(model.state_dict(), strict=True)
    assert (logits(family, stock, batch) - expected).abs().max() < TOLERANCE["fp32"]


@every_setting_that_does_not_merge
def test_what_cannot_be_merged_is_refused_and_left_as_it_is(made, peft, given):
    model = copied(made(peft, given))
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge()
    assert same(model.state_dict(), made(peft, given).state_dict())


@every_setting_that_merges
def test_half_precision_merges_in_fp32_and_casts_once(made, peft, given):
    """bf16 tensors: the merged weight is the fp32 merge of the same values, rounded once."""
    model = copied(made(peft, given)).bfloat16()
    exact = copied(model).float()
    model.merge()
    exact.merge()
    for key, value in exact.state_dict().items():
        assert torch.equal(model.state_dict()[key], value.bfloat16()), key


@every_setting
def test_a_folded_model_is_rebuilt_from_its_own_args(family, made, batch, peft, given):
    """What only training needs goes; the logits stay, and a strict reload works."""
    model = copied(made(peft, given))
    expected = logits(family, model, batch)
    model.fold()
    folded = logits(family, model, batch)
    assert (folded - expected).abs().max() < 1e-6
    knobs = {flag: getattr(model.args, flag) for flag in given if flag in METHOD_FIELDS}
    again = family.build(peft, seed=99, **{**given, **knobs})
    again.accepts_base = False
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(family, again, batch), folded)
    assert again.setting.knobs() == model.setting.knobs() and again.added == model.added
    assert set(own_tensors(again)) == set(own_tensors(model))


@every_setting
def test_count_equals_the_formula(family, made, peft, given):
    model = made(peft, given)
    added = sum(p.numel() for key, p in model.named_parameters() if key in model.added)
    chosen = sum(p.numel() for key, p in own_tensors(model).items() if key not in model.added)
    assert model.setting.count(family.dims).total == added
    assert model.setting.count_base(family.dims).total == chosen
    assert counting.count(model, family.heads).method == added + chosen


@every_setting
def test_bf16_layers_compute_nearly_the_same(family, batch, peft, given):
    """Every method's arithmetic goes through bf16 autocast, forward and backward."""
    exact, model = (family.build(peft, precision=p, **given) for p in ("fp32", "bf16"))
    perturb(exact, scale=0.1)
    perturb(model, scale=0.1)
    scores, expected = family.scores(model, batch), logits(family, exact, batch)
    assert (scores - expected).abs().max() < TOLERANCE["bf16"] * max(expected.abs().max(), 1)
    scores.sum().backward()
    for name, parameter in own_tensors(model).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("module", ["q_proj", "v_proj"])
def test_negative_control_the_checks_fail_on_stock_attention(build, batch, module):
    """The trap itself: behind fairseq's own attention the same LoRA gets no gradient and moves
    nothing."""
    from fairseq.modules import FairseqDropout, MultiheadAttention

    model = build("lora", peft_targets=module)

    def stock_forward(self, x, keep=None, first_only=False, prefix=None):
        padding = None if keep is None else ~keep[:, 0, 0]
        x = x.transpose(0, 1)
        out, _ = MultiheadAttention.forward(
            self, x, x, x, key_padding_mask=padding, need_weights=False
        )
        out = out.transpose(0, 1)
        return out[:, :1] if first_only else out

    for layer in model.encoder.sentence_encoder.layers:
        layer.self_attn.dropout_module = FairseqDropout(0.1)
        layer.self_attn.__class__ = type("Stock", (MultiheadAttention,), {"forward": stock_forward})
    scores, _ = model(batch, features_only=True, classification_head_name="head")
    scores.sum().backward()
    assert all(p.grad is None for key, p in model.named_parameters() if key in model.added)


def test_the_family_names_what_is_there(family):
    """Formulas and models speak of the same linear maps, by the same names and shapes."""
    model = family.build("full")
    found = {
        name: (linear.in_features, linear.out_features)
        for name, linear in surgery.linears(model, family.family).items()
    }
    assert found == family.dims.linears()
    tables = surgery.embeddings(model, family.family)
    assert {name: tuple(m.weight.shape) for name, m in tables.items()} == family.dims.embeddings()

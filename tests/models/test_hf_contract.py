"""The contract on Hugging Face's models: every method, with weights perturbed away from the start,
on every kind of model that is known."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig
from helpers import TOLERANCE
from hf_families import KINDS, PAD, WINDOWED, Kind
from torch import nn

from fairseq_peft import methods
from fairseq_peft.architectures.decoder_only import SIZES as DECODERS
from fairseq_peft.architectures.t5 import SIZES as T5_SIZES
from fairseq_peft.criterions.answers import label_losses, predictions, token_losses
from fairseq_peft.data.answers import Layout
from fairseq_peft.errors import InputError
from fairseq_peft.models import hf_base
from fairseq_peft.models.options import METHOD_FIELDS
from fairseq_peft.tasks import answers

#: On every kind.
COMMON = [
    ("lora", {"peft_targets": "all-linear"}),
    ("ia3", {}),
    ("adapter", {"adapter_style": "pfeiffer", "adapter_placement": "both"}),
    ("prompt", {"prompt_num_tokens": 3}),
    ("prefix", {"prefix_num_tokens": 3}),
    ("lora,adapter,prompt", {"peft_targets": "all-linear", "prompt_num_tokens": 2}),
]
#: On T5, GPT-2 and BLOOM.
PUBLISHED = [("lora", {}), ("full", {}), ("last_layers", {"last_layers_embeddings": True})]
#: On T5 and GPT-2.
MORE = [
    *PUBLISHED,
    ("adapter", {"adapter_placement": "both", "adapter_bottleneck": 4}),
    ("adapter", {"adapter_style": "parallel"}),
    ("layer_norm", {}),
    ("bitfit", {}),
    ("lora", {"lora_init": "pissa"}),
    ("lora", {"lora_bias": "lora_only"}),
    ("lora", {"peft_targets": "EMBEDDING"}),
    ("dora", {"peft_targets": "all-linear"}),
    ("adalora", {"peft_targets": "all-linear", "adalora_tfinal": 0}),
    ("vera", {"peft_targets": "all-linear", "vera_rank": 4}),
    ("oft", {"peft_targets": "all-linear", "oft_block_size": 8}),
    ("ia3", {"ia3_targets": "all-linear"}),
    ("compacter", {"compacter_n": 2, "compacter_bottleneck": 4}),
    ("prompt", {"prompt_num_tokens": 3, "prompt_mlp": 5}),
    ("prompt", {"prompt_num_tokens": 3, "prompt_placement": "after_bos"}),
    ("prefix", {"prefix_num_tokens": 3, "prefix_mlp": 5}),
    ("prefix", {"prefix_num_tokens": 3, "prefix_positions": "reserved"}),
    ("ia3,adapter", {"adapter_placement": "both"}),
]
EXTRA = {"t5": MORE, "gpt2": MORE, "bloom": PUBLISHED}
EMBEDDINGS = {"t5": "embed_tokens", "gpt2": "wte"}
#: (setting, kind) that are refused -> a part of the sentence.
REFUSED = {
    ("bitfit", "t5"): "no biases",
    ("last_layers", "t5"): "several stacks",
    ("prefix-reserved", "t5"): "would be ignored",
    ("prefix", "t5-gated"): "no place for a prefix",
    ("prefix", "llama-grouped"): "no place for a prefix",
}
#: Tensors that train although no logit can depend on them.
UNSEEN = ("k_proj.bias",)  # what is added to all keys shifts a query's scores alike


def short(peft, given):
    reserved = given.get("prefix_positions") == "reserved"
    return "prefix-reserved" if reserved else peft


def cases():
    for kind in KINDS:
        for peft, given in COMMON + EXTRA.get(kind, []):
            given = {
                flag: EMBEDDINGS.get(kind) if value == "EMBEDDING" else value
                for flag, value in given.items()
            }
            values = "-".join(map(str, given.values()))
            yield kind, peft, given, f"{kind}-{peft}-{values}"


TAKEN = [case for case in cases() if (short(*case[1:3]), case[0]) not in REFUSED]
NOT_TAKEN = [case for case in cases() if (short(*case[1:3]), case[0]) in REFUSED]


def merges(peft, given):
    return methods.setting(peft, {f: v for f, v in given.items() if f in METHOD_FIELDS}).mergeable


def parametrize(found):
    listed = [pytest.param(kind, peft, given, id=name) for kind, peft, given, name in found]
    return pytest.mark.parametrize("kind, peft, given", listed, indirect=["kind"])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Name -> kind, and the state of its base."""
    folder = tmp_path_factory.mktemp("configs")
    made = {name: Kind(name, folder) for name in KINDS}
    return {name: (kind, kind.base()) for name, kind in made.items()}


@pytest.fixture
def kind(request, kinds):
    return kinds[request.param][0]


@pytest.fixture
def base(kind, kinds):
    return dict(kinds[kind.name][1])


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def start(kind, base, kept, peft, given):
    """The model at its start; one for all tests, which leave it as it is."""
    key = (kind.name, peft, str(given))
    if key not in kept:
        kept[key] = kind.build(peft, **given)
        kept[key].load_state_dict(dict(base), strict=True)
    return kept[key]


@pytest.fixture
def model(start):
    """The same, perturbed."""
    moved = copy.deepcopy(start)
    perturb(moved)
    return moved


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def perturb(model, scale=0.3):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_the_base_is_transformers_own_model(kind, base):
    model = kind.build()
    model.load_state_dict(dict(base), strict=True)
    with torch.no_grad():
        expected = kind.stock_logits(kind.stock(base))
        assert (kind.logits(model) - expected).abs().max() < TOLERANCE["fp32"] * 10  # of size 10


@pytest.fixture
def base_logits(kind, base, kept):
    if kind.name not in kept:
        plain = kind.build()
        plain.load_state_dict(base, strict=True)
        with torch.no_grad():
            kept[kind.name] = kind.logits(plain)
    return kept[kind.name]


@parametrize(TAKEN)
def test_starts_as_the_base_where_it_says_so(kind, base_logits, start, peft, given):
    with torch.no_grad():
        differ = (base_logits - kind.logits(start)).abs().max()
    says = start.setting.logits_at_start
    assert differ == 0 if says == "equal" else (differ < 1e-4) == (says == "nearly")


@parametrize(TAKEN)
def test_every_trained_tensor_moves_the_logits_and_gets_a_gradient(kind, model, peft, given):
    """Each by itself, in train and in eval mode, at the same dropout seed; what is frozen stays
    without a gradient."""
    generator = torch.Generator().manual_seed(1)

    def logits():
        torch.manual_seed(5)
        return kind.logits(model)

    for train in (False, True):
        model.train(train)
        with torch.no_grad():
            before = logits()
            for name, parameter in trained(model).items():
                kept = parameter.detach().clone()
                parameter.add_(torch.randn(parameter.shape, generator=generator))
                moved = (logits() - before).abs().max()
                assert moved > 1e-6 or name.endswith(UNSEEN), f"{name} does not reach the logits"
                parameter.copy_(kept)
    loss = nn.functional.cross_entropy(logits(), torch.arange(len(before)) % 7)
    penalty = model.penalty()
    (loss if penalty is None else loss + penalty).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@parametrize(TAKEN)
def test_step_by_step_is_one_pass(kind, model, peft, given):
    """In pieces of 1 and 2 tokens, with rows reordered on the way as beam search does."""
    tokens = kind.tokens() if kind.causal else kind.answers()
    order = torch.tensor([2, 0, 1])
    tokens = tokens.masked_fill(tokens.eq(PAD), 3)
    with torch.no_grad():
        if kind.causal:
            expected, encoded = model(tokens)[0], None
        else:
            encoded = model.encode(kind.tokens())
            expected = model.decode(tokens, encoded)[0]
        state, found = {}, []
        for end in (1, 3, 4, tokens.shape[1]):
            logits, _ = model.decoder(tokens[:, :end], encoded, incremental_state=state)
            found.append(logits)
        assert (torch.cat(found, 1) - expected).abs().max() < 1e-4  # logits of size 10
        # Rows reordered in the middle.
        state = {}
        model.decoder(tokens[:, :2], encoded, incremental_state=state)
        model.decoder.reorder_incremental_state(state, order)
        if encoded is not None:
            encoded = model.encoder.reorder_encoder_out(encoded, order)
        logits, _ = model.decoder(tokens[order, :3], encoded, incremental_state=state)
        assert (logits[:, -1] - expected[order, 2]).abs().max() < 1e-4


@parametrize(TAKEN)
def test_labels_are_scored_as_whole_answers(kind, model, peft, given, monkeypatch):
    """Each prompt is read once, whatever the number of labels, all at once or a few at a time; the
    scores are those of prompt and label in one pass."""
    check_label_losses(kind, model.eval(), monkeypatch)


@pytest.mark.parametrize("name", WINDOWED)
def test_labels_behind_prompts_that_are_longer_than_a_window(name, tmp_path, monkeypatch):
    kind = Kind(name, tmp_path)
    model = kind.build("lora", peft_targets="all-linear")
    model.load_state_dict({**model.state_dict(), **kind.base()}, strict=True)
    perturb(model)
    check_label_losses(kind, model, monkeypatch)


def check_label_losses(kind, model, monkeypatch):
    layout = Layout(kind.causal, PAD, eos=1, start=0)
    prompts = [[3, 4, 5, 6, 7, 8], [5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [4, 5, 9]]
    labels = [[3], [4, 5, 6], [4], []]
    expected = []
    reads = []  # tokens of each call
    with torch.no_grad():
        for ids in labels:
            batch = layout.batch([(prompt, ids) for prompt in prompts])
            expected.append(token_losses(*predictions(model, batch), PAD))
        before = copy.deepcopy(model.state_dict())
        monkeypatch.setattr(model, "read", lambda t: reads.append(t) or type(model).read(model, t))
        found = label_losses(model, layout, prompts, labels)
        monkeypatch.setattr("fairseq_peft.models.hf_models.KEPT", 1)
        one_by_one = label_losses(model, layout, prompts, labels)
    assert (found - torch.stack(expected, 1)).abs().max() < 2e-4  # losses of size 10 and more
    assert (found - one_by_one).abs().max() < 2e-4
    assert sum(map(len, reads)) == 2 * len(prompts)
    assert found.std(1).min() > 1e-3
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@parametrize(TAKEN)
def test_a_wider_batch_has_the_same_loss(kind, model, peft, given):
    """Widths are rounded up: padding changes nothing."""
    rows = [([3, 4, 5] * 5 + [7], [4, 6]), ([5, 6, 7], [9]), ([9, 8, 7] * 4, [])]
    narrow = Layout(kind.causal, PAD, eos=1, start=0)
    wide = replace(narrow, room=model.longest_text)
    losses = []
    with torch.no_grad():
        for layout in (narrow, replace(wide, room=20), wide):
            batch = layout.batch([(prompt + [4], answer) for prompt, answer in rows])
            width = batch["net_input"]["src_tokens"].shape[1]
            losses.append(token_losses(*predictions(model, batch), PAD))
            assert width == {0: 17 + 2 * kind.causal, 20: 20}.get(layout.room, 24)
        labels = [
            label_losses(model, lay, [p for p, _ in rows], [[3], [4]]) for lay in (narrow, wide)
        ]
    assert (torch.stack(losses) - losses[0]).abs().max() < 2e-4  # losses of size 10 and more
    assert (labels[0] - labels[1]).abs().max() < 2e-4


@parametrize(TAKEN)
def test_generated_scores_are_those_of_one_pass(kind, model, peft, given):
    """Beams of fairseq's generator, prompts of several lengths at once: each word's score is what
    one pass over prompt and answer gives it, and so every tensor that moves logits moves it."""
    task = answers.CausalLMTask if kind.causal else answers.TextToTextTask
    task = task(answers.AnswersConfig(data=""))
    task.layout, task.model = Layout(kind.causal, PAD, eos=1, start=0), model
    task.room = model.longest_text
    rows = [row[row.ne(PAD)].tolist() for row in kind.tokens()]
    found = task.written(model, rows, GenerationConfig(beam=2, max_len_b=4))
    for prompt, hypotheses in zip(rows, found):
        for hypothesis in hypotheses:
            batch = task.layout.batch([(prompt, hypothesis["tokens"].tolist()[:-1])])
            with torch.no_grad():
                logits = model(**batch["net_input"])[0].log_softmax(-1)[0]
            kept = batch["target"][0].ne(PAD)
            expected = logits[kept].gather(-1, batch["target"][0, kept][:, None])[:, 0]
            assert (hypothesis["positional_scores"] - expected).abs().max() < 1e-3


@parametrize(TAKEN)
def test_a_reloaded_model_has_the_same_logits(kind, model, peft, given):
    """Rebuilt at another seed, strictly: the state has all that counts."""
    again = kind.build(peft, seed=9, **given)
    again.accepts_base = False
    again.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(kind.logits(again), kind.logits(model))


@parametrize([case for case in TAKEN if merges(*case[1:3])])
def test_merged_weights_are_transformers_own_model(kind, model, peft, given):
    with torch.no_grad():
        expected = kind.logits(model)
        model.merge()
        found = kind.stock_logits(kind.stock(model.state_dict()))
        # PiSSA's and OFT's products are of large matrices here.
        assert (found - expected).abs().max() < 2e-4 * max(1, expected.abs().max())


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_frozen_dropout_is_off_where_it_is_said(kind, base):
    """Every dropout of the frozen body, whichever way its layers keep it."""
    for choice in ("on", "off"):
        model = kind.build("lora", frozen_dropout=choice)
        model.load_state_dict(dict(base), strict=True)
        with torch.no_grad():
            trained, evaluated = kind.logits(model.train()), kind.logits(model.eval())
        equal = torch.allclose(trained, evaluated, atol=1e-5)
        assert equal == (choice == "off" or kind.name.startswith("llama"))  # which has none


def test_a_prefix_that_no_attention_would_read_is_refused(kinds, monkeypatch):
    """An attention that computes by itself, as that of older versions of transformers."""
    kind = kinds["gpt2"][0]
    attention = hf_base.library().models.gpt2.modeling_gpt2.GPT2Attention
    monkeypatch.setattr(attention, "forward", lambda self, *given, **more: None)
    with pytest.raises(InputError, match="would not read a prefix"):
        kind.build("prefix")


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"hf_config": ""}, "Give either --hf-model"),
        ({"hf_config": "none.json"}, "none.json cannot be read"),
        ({"hf_config": "", "hf_model": "none"}, "cannot be read"),
        ({"peft": "head_only"}, "head_only trains"),
        ({"peft": "lora+head_only"}, "head_only trains"),
        ({"peft": "fusion"}, "fusion chooses among adapters of classifiers"),
        ({"hf_config": "t5-small"}, "does not know models of type 't5'"),
    ],
)
def test_bad_input_is_one_sentence(kinds, flags, message):
    with pytest.raises(InputError, match=message):
        kinds["gpt2"][0].build(**flags)


@pytest.mark.parametrize("peft", ["lora+prefix", "lora, bitfit", "ia3 + prompt"])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_several_methods_have_the_defaults_of_each(kinds, name, peft):
    """However they are joined."""
    model = kinds[name][0].build(peft)
    alone = [kinds[name][0].build(method.name) for method in model.setting]
    assert len(alone) == 2
    for one in alone:
        assert set(one.added) <= set(model.added)


def test_split_maps_are_for_fused_ones(kinds):
    with pytest.raises(InputError, match="--hf-split-qkv would be ignored"):
        kinds["opt"][0].build(hf_split_qkv=True)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_folder_is_read_and_its_weights_are_those_of_the_model(kinds, tmp_path, name):
    kind, base = kinds[name]
    stock = kind.stock(base)
    stock.save_pretrained(tmp_path)
    model = kind.build("lora", hf_config="", hf_model=str(tmp_path))
    with torch.no_grad():
        differ = kind.logits(model) - kind.stock_logits(stock)
    assert differ.abs().max() < TOLERANCE["fp32"] * 10  # of size 10
    (weights,) = tmp_path.glob("*.safetensors")
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickles .* are not read"):
        kind.build(hf_config="", hf_model=str(tmp_path))


@pytest.mark.parametrize(
    "name, peft, given",
    [
        ("t5", "lora", {"lora_init": "pissa"}),
        ("t5", "lora", {"peft_targets": "embed_tokens"}),
        ("gpt2-split", "last_layers", {"last_layers_embeddings": True}),
        ("bloom-split", "lora", {}),
    ],
)
def test_a_checkpoint_leaves_out_its_folder_and_is_filled_from_it(
    kinds, tmp_path, name, peft, given
):
    kind, base = kinds[name]
    kind.stock(base).save_pretrained(tmp_path / "base")
    flags = {"hf_config": "", "hf_model": str(tmp_path / "base"), **given}
    model = kind.build(peft, **flags)
    perturb(model)
    slim = model.leave_out_base(model.state_dict())
    assert sum(t.numel() for t in slim.values()) < sum(t.numel() for t in base.values())
    again = kind.build(peft, seed=9, **flags)
    again.accepts_base = False
    again.load_state_dict(dict(slim), strict=True)
    with torch.no_grad():
        assert torch.equal(kind.logits(again), kind.logits(model))
    other = {name: tensor + 1 for name, tensor in base.items()}
    kind.stock(other).save_pretrained(tmp_path / "other")
    wrong = kind.build(peft, **{**flags, "hf_model": str(tmp_path / "other")})
    with pytest.raises(InputError, match="leaves out .* tensors of its base, and .*other has"):
        wrong.load_state_dict(dict(slim), strict=True)


@parametrize(NOT_TAKEN)
def test_what_has_no_place_is_refused_in_a_sentence(kind, peft, given):
    with pytest.raises(InputError, match=REFUSED[short(peft, given), kind.name]):
        kind.build(peft, **given)


@parametrize([case for case in TAKEN if case[0] in EXTRA])
def test_counts_equal_the_formulas(kind, start, peft, given):
    if kind.name == "t5":
        dims = replace(
            T5_SIZES["t5_small"],
            num_encoder_layers=1,
            num_decoder_layers=1,
            embed_dim=16,
            ffn_dim=24,
            num_heads=4,
            vocab_size=40,
        )
    else:
        sizes = DECODERS["gpt2_small" if kind.name == "gpt2" else "bloom_560m"]
        dims = replace(sizes, num_layers=2, embed_dim=16, ffn_dim=64, num_heads=4, vocab_size=40)
        dims = replace(dims, max_positions=32 if kind.name == "gpt2" else 0)
    if given.get("peft_targets") == "embed_tokens":
        given = {**given, "peft_targets": "shared"}
    flags = {f: getattr(start.args, f) for f in METHOD_FIELDS if hasattr(start.args, f)}
    flags.update({f: v for f, v in given.items() if f in METHOD_FIELDS})
    setting = methods.setting(peft, {f: v for f, v in flags.items() if v is not None})
    added = sum(p.numel() for n, p in trained(start).items() if n in start.added)
    chosen = sum(p.numel() for n, p in trained(start).items() if n not in start.added)
    assert setting.count(dims).total == added
    assert setting.count_base(dims).total == chosen


@pytest.mark.parametrize("peft, given", [("lora", {}), ("prompt", {"prompt_num_tokens": 3})])
@pytest.mark.parametrize("name", [name for name in KINDS if "t5" not in name and name != "bart"])
def test_logits_of_the_answers_alone_are_those_of_all_tokens(name, peft, given, tmp_path):
    """A prompt's are not computed: the loss and what it teaches are the same without."""
    kind = Kind(name, tmp_path)
    model = kind.build(peft, **given)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    rows = [([3, 4, 5, 6, 7, 8], [9, 4]), ([5, 6, 7, 3, 9], [6]), ([9, 8, 7, 6, 5, 4, 3], [2])]
    batch = Layout(True, PAD, eos=1, start=0).batch(rows)
    assert batch["num_predicted"] < batch["target"].shape[1]
    seen = []
    head = model.hf.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    found = []
    for number in (batch["target"].shape[1], batch["num_predicted"]):
        model.zero_grad()
        loss = token_losses(*predictions(model, {**batch, "num_predicted": number}), PAD)
        loss.sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append([loss.detach(), *(p.grad.clone() for p in trained)])
    assert seen[1] == batch["num_predicted"] < seen[0]
    for every, answers_alone in zip(*found):
        assert torch.allclose(every, answers_alone, atol=TOLERANCE["fp32"])
    assert all(gradient.any() for gradient in found[0][1:])

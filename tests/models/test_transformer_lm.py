"""fairseq's decoder-only language model with methods in it: against stock fairseq, and step by step
against one pass. ``tests/methods/test_contract.py`` runs it with every setting, too."""

from __future__ import annotations

import argparse
import re
import types

import pytest
import torch
import verbs
from fairseq import checkpoint_utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.sequence_generator import SequenceGenerator
from families import FAMILIES, TransformerLM, parametrize
from helpers import PACKAGE, TOLERANCE
from settings import collect

from fairseq_peft import methods
from fairseq_peft.checkpoints import slim
from fairseq_peft.errors import InputError
from fairseq_peft.models.transformer_lm import (
    FAMILY,
    TransformerLMPeftConfig,
    TransformerLMPeftModel,
)
from fairseq_peft.serving.generate import Generator

VARIANTS = {
    "norms first": {},
    "norms last": {"encoder_normalize_before": True},  # the family turns it round
    "sinusoids": {"decoder_learned_pos": False},
    "no positions": {"no_token_positional_embeddings": True},
    "untied": {"share_decoder_input_output_embed": False},
    "normed embedding, gelu": {"layernorm_embedding": True, "activation_fn": "gelu"},
}
every_variant = pytest.mark.parametrize("given", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture
def family(request, dictionary):
    return FAMILIES[getattr(request, "param", "transformer_lm")](dictionary)


@pytest.fixture
def tokens(dictionary):
    """(3, 7) words behind </s>, without padding."""
    words = torch.randint(4, len(dictionary), (3, 7), generator=torch.Generator().manual_seed(2))
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


@every_variant
def test_logits_and_gradients_equal_stock(family, batch, given):
    ours = perturbed(family, "full", **given)
    stock = family.stock(ours)
    stock.load_state_dict(ours.state_dict(), strict=True)
    text = batch.ne(family.dictionary.pad())
    for model in (ours, stock):
        model.logits = model(batch)[0]
        model.logits[text].logsumexp(-1).sum().backward()
    assert distance(ours.logits[text], stock.logits[text]) < TOLERANCE["fp32"]
    found = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        assert distance(parameter.grad, found[name].grad) < 1e-4, name  # sums over 29 tokens


@every_variant
def test_steps_equal_those_of_stock(family, tokens, given):
    ours = perturbed(family, "full", **given)
    stock = family.stock(ours)
    stock.load_state_dict(ours.state_dict(), strict=True)
    states = {}, {}
    for length in range(1, tokens.shape[1] + 1):
        found, expected = (
            model(tokens[:, :length], incremental_state=state)[0]
            for model, state in zip((ours, stock), states)
        )
        assert found.shape == expected.shape
        assert distance(found, expected) < TOLERANCE["fp32"]


@parametrize(collect(), ["transformer_lm"])
def test_steps_equal_one_pass(family, tokens, peft, given):
    """Every setting, moved from its start: token by token, the rows in another order half-way, as
    in a beam search, what was computed is what one pass over the same rows computes."""
    model = perturbed(family, peft, **given)
    order = torch.tensor([2, 0, 0])
    state, half = {}, 4
    with torch.no_grad():
        for length in range(1, tokens.shape[1] + 1):
            if length == half:
                model.decoder.reorder_incremental_state_scripting(state, order)
                before = tokens[order, : half - 1]
                tokens = torch.cat([before, tokens[:, half - 1 :]], dim=1)
            step = model(tokens[:, :length], incremental_state=state)[0]
            whole = model(tokens[:, :length])[0]
            assert step.shape[1] == 1
            size = max(whole.abs().max().item(), 1)  # tied to a moved embedding, tens
            assert distance(step[:, 0], whole[:, -1]) < TOLERANCE["fp32"] * size


@pytest.mark.parametrize("peft", ["prefix", "prompt", "prefix,prompt"])
def test_several_tokens_in_one_step(family, tokens, peft):
    """A beginning that is given goes in at once."""
    model, state = perturbed(family, peft), {}
    with torch.no_grad():
        whole = model(tokens)[0]
        first = model(tokens[:, :3], incremental_state=state)[0]
        rest = model(tokens, incremental_state=state)[0]
    assert distance(torch.cat([first, rest], 1), whole) < TOLERANCE["fp32"]


@pytest.mark.parametrize("peft", ["lora", "prefix", "prompt", "prefix,prompt"])
@pytest.mark.parametrize("where", ["right", "left"])
def test_padding_does_not_matter(family, tokens, peft, where):
    """A padded row gives the logits that it gives alone, in one pass and step by step."""
    given = {"prompt_placement": "before_bos"} if "prompt" in peft else {}
    model = perturbed(family, peft, **given)
    alone = tokens[:1, :4]
    padding = torch.full((1, 3), family.dictionary.pad())
    row = torch.cat([alone, padding] if where == "right" else [padding, alone], 1)
    rows, text = torch.cat([row, tokens[1:]]), row[0].ne(family.dictionary.pad())
    state = {}
    with torch.no_grad():
        expected = model(alone)[0][0]
        whole = model(rows)[0]
        steps = [
            model(rows[:, :length], incremental_state=state)[0]
            for length in range(1, rows.shape[1] + 1)
        ]
    assert distance(whole[0][text], expected) < TOLERANCE["fp32"]
    assert distance(torch.cat(steps, 1)[0][text], expected) < TOLERANCE["fp32"]
    assert whole.isfinite().all()


def test_a_prompt_behind_the_first_token_needs_it_there(family, tokens):
    tokens[0, 0] = family.dictionary.pad()
    with pytest.raises(InputError, match="begins with padding"):
        family.build("prompt")(tokens)


@pytest.mark.parametrize("placement", ["after_bos", "before_bos"])
def test_the_first_word_is_predicted_with_the_prompt(family, tokens, placement):
    model = family.build("prompt", prompt_placement=placement)
    before = model(tokens)[0][:, 0]
    with torch.no_grad():
        model.decoder.soft_prompt.embeddings.normal_()
    assert distance(model(tokens)[0][:, 0], before) > 1e-3


def test_a_later_word_changes_nothing_before_it(family, tokens):
    model = perturbed(family, "prefix,prompt,lora,adapter")
    before = model(tokens)[0]
    tokens[:, 5] = 4 + (tokens[:, 5] - 3) % 10
    after = model(tokens)[0]
    assert distance(after[:, :5], before[:, :5]) < 1e-6 < distance(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize("target", ["q_proj", "v_proj", "k_proj", "out_proj"])
def test_negative_control_stock_attention_is_two_models(family, tokens, target):
    """Why the decoder has attention of its own: stock fairseq leaves a LoRA out in training, and
    computes with it when it generates."""
    ours = family.build("full")
    stock = family.stock(ours)
    base = stock(tokens)[0]
    setting = methods.setting("lora", {"peft_targets": target})
    setting.inject(stock, FAMILY, lambda name: torch.Generator().manual_seed(1))
    added = [p for name, p in stock.named_parameters() if "lora" in name]
    with torch.no_grad():
        for parameter in added:
            parameter.normal_()
    logits = stock(tokens)[0]
    assert torch.equal(logits, base)
    logits.sum().backward()
    assert all(parameter.grad is None for parameter in added)
    state = {}
    for length in range(1, tokens.shape[1] + 1):
        step = stock(tokens[:, :length], incremental_state=state)[0]
    assert distance(step[:, 0], base[:, -1]) > 1e-2


def test_beam_search_is_that_of_the_merged_model(family, tokens):
    """fairseq's own generator: the same hypotheses and scores from ours and from stock fairseq with
    the merged weights."""
    model = perturbed(family, "lora", scale=0.5, peft_targets="all-linear,embed_tokens")

    def generate(model):
        generator = SequenceGenerator([model], family.dictionary, beam_size=3, max_len_b=8)
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([7, 7, 7])}}
        hypotheses = generator.generate(
            [model], sample, prefix_tokens=tokens[:, 1:3], bos_token=family.dictionary.eos()
        )
        return [(h["tokens"].tolist(), h["score"].item()) for row in hypotheses for h in row]

    found = generate(model)
    model.merge()
    stock = family.stock(model)
    stock.load_state_dict(model.state_dict(), strict=True)
    expected = generate(stock)
    assert [words for words, _ in found] == [words for words, _ in expected]
    assert len({tuple(words) for words, _ in found}) > 3
    for (_, one), (_, other) in zip(found, expected):
        assert one == pytest.approx(other, abs=1e-4)


def test_architectures():
    named = {name for name in ARCH_MODEL_REGISTRY if name.startswith("transformer_lm_")}
    assert {"transformer_lm_gpt_peft", "transformer_lm_gpt2_small_peft"} < named
    assert {f"transformer_lm_{method}" for method in methods.available()} < named
    assert "transformer_lm_wiki103_peft" not in named  # adaptive input: always refused


@pytest.mark.parametrize(
    "peft, given, message",
    [
        ("head_only", {}, "a language model has none"),
        ("lora", {"adaptive_input": True}, "--adaptive-input is not for"),
        ("lora", {"scale_heads": True}, "--scale-heads is not for"),
        ("lora", {"checkpoint_activations": True}, "--checkpoint-activations is not for"),
        ("lora", {"precision": "fp8"}, "--precision 'fp8'"),
        ("lora", {"decoder_attention_heads": 3}, "--decoder-attention-heads 3"),
        ("lora", {"decoder_input_dim": 32}, "--decoder-input-dim 32 is not --decoder-embed-dim 16"),
        ("prompt", {"tokens_per_sample": 30}, "Give --tokens-per-sample 20"),
        ("lora", {"frozen_dropout": "no"}, "--frozen-dropout 'no'"),
    ],
)
def test_what_is_not_for_this_model_is_refused(dictionary, peft, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TransformerLM(dictionary).build(peft, **given)


def test_too_long_a_batch_is_one_sentence(family):
    with pytest.raises(InputError, match="39 tokens and 2 prompt or prefix tokens"):
        family.build("prompt", prompt_num_tokens=2)(torch.full((1, 39), 5))


SIZES = [
    *("--decoder-layers", 2, "--decoder-embed-dim", 16, "--decoder-ffn-embed-dim", 24),
    *("--decoder-attention-heads", 4, "--tokens-per-sample", 16),
    "--share-decoder-input-output-embed",
]


EVAL_LM = """
import sys
sys.argv = {words}
from fairseq_cli.eval_lm import cli_main
cli_main()
"""


def test_fairseq_trains_it_and_evaluates_it(fairseq, data_folder, tmp_path, capsys):
    """fairseq's own task, criterion and tools: a base of stock fairseq, a LoRA on it, its
    checkpoint and the merged weights, which give one loss."""
    data = data_folder / "input0"

    def train(arch, folder, max_update, *more, sizes=SIZES):
        done = fairseq(
            *("train", data, "--task", "language_modeling", "--cpu", "--arch", arch, *sizes),
            *("--sample-break-mode", "none"),
            *("--criterion", "cross_entropy", "--optimizer", "adam", "--lr", 1e-2),
            *(
                "--batch-size",
                8,
                "--max-update",
                max_update,
                "--num-workers",
                0,
                "--log-format",
                "simple",
            ),
            *("--save-dir", tmp_path / folder, "--no-epoch-checkpoints", "--seed", 1, *more),
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def evaluate(path, *more):
        words = [data, "--task", "language_modeling", "--cpu", "--path", path, "--batch-size", 4]
        words += ["--sample-break-mode", "none", "--tokens-per-sample", 16]
        words += ["--gen-subset", "valid", *more]
        done = fairseq("python", EVAL_LM.format(words=["eval-lm", *map(str, words)]))
        assert done.returncode == 0, done.stderr[-2000:]
        return float(re.findall(r"Loss \(base 2\): ([\d.]+)", done.stdout + done.stderr)[-1])

    train("transformer_lm_gpt", "base", 3)
    base = tmp_path / "base" / "checkpoint_last.pt"
    plugin = ("--user-dir", PACKAGE)
    flags = ("--peft", "lora,prefix", "--peft-targets", "all-linear", "--lora-rank", 4)
    train("transformer_lm_gpt_peft", "both", 30, *plugin, *flags, "--finetune-from-model", base)
    flags = ("--peft-targets", "all-linear,embed_tokens", "--lora-rank", 4)
    given = (*plugin, *flags, "--finetune-from-model", base)
    train("transformer_lm_lora", "lora", 30, *given, sizes=("--tokens-per-sample", 16))

    before = torch.load(base, weights_only=False)["model"]
    for name in ("both", "lora"):
        after = slim.read(str(tmp_path / name / "checkpoint_last.pt"))["model"]
        assert before.keys() < after.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items()), name
        moved = [key for key in after if key.endswith("lora_B") and after[key].abs().max() > 1e-3]
        assert len(moved) >= 12, name

    of_base = evaluate(base)
    both = evaluate(tmp_path / "both" / "checkpoint_last.pt", *plugin)
    found = evaluate(tmp_path / "lora" / "checkpoint_last.pt", *plugin)
    assert max(both, found) < of_base - 0.05

    verbs.run("verify", tmp_path / "lora" / "adapter", "--base", base)
    verbs.run("merge", tmp_path / "lora" / "checkpoint_last.pt", tmp_path / "merged.pt")
    merged = torch.load(tmp_path / "merged.pt", weights_only=False)
    assert merged["model"].keys() == before.keys()
    assert merged["cfg"]["model"]["_name"] == "transformer_lm"
    assert evaluate(tmp_path / "merged.pt") == pytest.approx(found, abs=2e-4)
    check_generated(base, tmp_path)
    capsys.readouterr()
    message = verbs.refused(
        capsys, "merge", tmp_path / "both" / "checkpoint_last.pt", tmp_path / "no.pt"
    )
    assert "--peft prefix cannot be merged" in message


def check_generated(base, folder):
    """Prompts of several lengths in one batch, by two adapters in turn, go on with the likeliest
    word after each word, as one pass over all of them has it; that of the LoRA by stock fairseq's
    model with merged weights."""
    generator = Generator.load(base, folder / "lora" / "adapter", name="lora")
    generator.add("both", folder / "both" / "adapter")
    (stock,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(folder / "merged.pt")])
    models = {"lora": stock.eval(), "both": generator._writers["both"].model}
    words, rows, names = task.source_dictionary, [], []
    for text in ("w1 w2 w3 w4", "w7", "w12 w5"):
        for name in models:
            rows.append(text)
            names.append(name)
    found = generator.generate(rows, names, beam=1, max_len_b=9)
    for text, name, one in zip(rows, names, found):
        tokens = [words.eos(), *words.encode_line(text, append_eos=False).tolist()]
        while len(tokens) < 10 and (len(tokens) < 3 or tokens[-1] != words.eos()):
            with torch.no_grad():
                logits = models[name](torch.tensor([tokens]))[0][0, -1]
            logits[words.pad()] = -torch.inf
            tokens.append(int(logits.argmax()))
        tokens += [words.eos()] * (tokens[-1] != words.eos())
        assert one.tokens == tokens[1:]
    assert all(abs(one.score - other.score) > 1e-4 for one, other in zip(found[::2], found[1::2]))


@pytest.mark.parametrize("peft", ["adalora", "fusion"])
def test_methods_that_follow_the_run_are_refused(fairseq, data_folder, tmp_path, peft):
    done = fairseq(
        *("train", data_folder / "input0", "--task", "language_modeling", "--cpu"),
        *("--arch", f"transformer_lm_{peft}", "--user-dir", PACKAGE, "--optimizer", "adam"),
        *("--save-dir", tmp_path, "--max-update", 1, "--batch-size", 2),
    )
    assert done.returncode == 1
    assert f"--peft {peft} follows the run update by update, which fairseq's tasks" in done.stderr


@every_variant
def test_sizes_come_from_the_base(family, batch, given, tmp_path):
    """Of stock fairseq's model, whatever it is, by its file alone."""
    stock = family.stock(perturbed(family, "full", **given))
    args = argparse.Namespace(**vars(family.build("full", **given).args), arch="transformer_lm")
    state = {"model": stock.state_dict(), "args": args, "best_loss": 1.0}
    torch.save(state, tmp_path / "base.pt")
    found = argparse.Namespace(_name="transformer_lm_lora", restore_file=str(tmp_path / "base.pt"))
    ARCH_CONFIG_REGISTRY["transformer_lm_lora"](found)
    config = TransformerLMPeftConfig.from_namespace(found)
    config.tokens_per_sample = 12
    task = types.SimpleNamespace(
        source_dictionary=family.dictionary,
        target_dictionary=family.dictionary,
        cfg=types.SimpleNamespace(seed=1),
    )
    model = TransformerLMPeftModel.build_model(config, task).eval()
    model.load_state_dict(dict(stock.state_dict()))
    text = batch.ne(family.dictionary.pad())
    assert distance(model(batch)[0][text], stock(batch)[0][text]) < TOLERANCE["fp32"]

    # What fairseq makes where --decoder-embed-dim is given alone.
    args.decoder_input_dim = args.decoder_output_dim = 24
    narrow = TransformerLanguageModel.build_model(args, task)
    assert "decoder.project_in_dim.weight" in narrow.state_dict()
    torch.save({**state, "model": narrow.state_dict()}, tmp_path / "narrow.pt")
    other = argparse.Namespace(restore_file=str(tmp_path / "narrow.pt"))
    ARCH_CONFIG_REGISTRY["transformer_lm_lora"](other)
    with pytest.raises(InputError, match="-dim 24 is not --decoder-embed-dim 16: .* a base that"):
        TransformerLMPeftModel.build_model(TransformerLMPeftConfig.from_namespace(other), task)

    other = argparse.Namespace(restore_file=str(tmp_path / "base.pt"))
    with pytest.raises(InputError, match="decoder_layers 12 .the base has 2.*transformer_lm_peft,"):
        ARCH_CONFIG_REGISTRY["transformer_lm_gpt_peft"](other)
    other = argparse.Namespace(restore_file=str(tmp_path / "base.pt"))
    ARCH_CONFIG_REGISTRY["transformer_lm_peft"](other)  # takes any size, as those of methods do
    assert (other.decoder_layers, other.decoder_embed_dim) == (2, 16)

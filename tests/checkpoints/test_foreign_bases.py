"""Bases as others have trained them: only their weights, and the sizes that they have, count.

Each goes the whole way: training, fairseq-validate, predict, inspect, merge, to-hf.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

from bench import Bench  # noqa: E402
from bench import refused as refused_training  # noqa: E402
from fairseq import checkpoint_utils  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from fairseq.models import ARCH_CONFIG_REGISTRY  # noqa: E402
from fairseq.models.bart import BARTModel  # noqa: E402
from fairseq.models.roberta import RobertaModel  # noqa: E402
from helpers import (  # noqa: E402
    PACKAGE,
    TINY,
    TOLERANCE,
    opens_without_plugin,
    random_rows,
    train_flags,
    write_data,
)
from hf_models import write_tokenizer  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.checkpoints import finetuned, slim  # noqa: E402
from fairseq_peft.models.roberta import RobertaPeftModel  # noqa: E402

SIZES = {
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 20,
    "encoder_attention_heads": 3,
    "max_positions": 44,
}
#: Names that nobody here knows.
FOREIGN = {
    **{"task": "foreign_task", "criterion": "smooth_masked_lm", "optimizer": "foreign_adam"},
    **{"lr_scheduler": "foreign_schedule", "bpe": "foreign_bpe", "tokenizer": "foreign"},
    **{"user_dir": "nowhere/plugins", "peft": "foreign", "pooler": "foreign", "lr": [0.1]},
}
HEADS = {"encoder_attention_heads": 3}


def older(args, model):
    """As fairseq 0.9 wrote it: older names, weights of a GPU, one pickle; and a flag has a value
    that fairseq has not."""
    names = [("encoder.", "decoder."), (".layernorm_embedding.", ".emb_layer_norm.")]
    weights = {}
    for name, tensor in model.items():
        for new, old in names:
            name = name.replace(new, old, 1)
        weights[name.replace("sentence_decoder", "sentence_encoder")] = tensor
    told = Namespace(arch="foreign_arch", ddp_backend="foreign", **FOREIGN, **args)
    return {"args": told, "model": weights}


def newer(args, model):
    """As fairseq 0.12 writes it: its flags in groups."""
    groups = {name: {"_name": FOREIGN[name]} for name in ("task", "criterion", "optimizer")}
    common = {"user_dir": FOREIGN["user_dir"]}
    told = {"_name": "foreign_arch", **FOREIGN, **args}
    return {"args": None, "cfg": {"model": told, "common": common, **groups}, "model": model}


def bare(args, model):
    """Nothing but weights."""
    return {"args": None, "cfg": None, "model": model}


def headless(args, model):
    """The encoder alone."""
    state = newer(args, {name: t for name, t in model.items() if ".lm_head." not in name})
    return {**state, "cfg": {"model": Namespace(arch="foreign_arch", **args)}}


def lying(args, model):
    """Its flags are those of another model, as somebody who prunes layers may leave them."""
    wrong = {"encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072}
    more = {"encoder_normalize_before": True, "max_positions": 512, **FOREIGN}
    return {"args": Namespace(arch="roberta_base", **{**args, **wrong, **more}), "model": model}


#: name -> (what fairseq builds, how it is written, flags that it needs).
BASES = {
    "older": ({}, older, {}),
    "newer": ({"encoder_normalize_before": True, "activation_fn": "relu"}, newer, {}),
    "untied": ({"untie_weights_roberta": True, "layernorm_embedding": False}, newer, {}),
    "bare": ({}, bare, HEADS),
    "headless": ({}, headless, {}),
    "lying": ({}, lying, {}),
}
#: What Hugging Face's library does not compute.
NO_COUNTERPART = {"newer": "norms come after", "untied": "embedding"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of word numbers, whose dictionary is that of a sentencepiece model."""
    folder = tmp_path_factory.mktemp("data") / "foreign"
    words = len(write_tokenizer(folder)) - 5
    write_data(folder, random_rows(), ["bad", "good"], words)
    (folder / "dict.txt").replace(folder / "input0" / "dict.txt")
    return folder


def build(dictionary, flags):
    """fairseq's own model, whose every tensor reaches its logits."""
    torch.manual_seed(3)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = RobertaModel.build_model(Namespace(**SIZES, **flags), task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture
def write(data, tmp_path, monkeypatch):
    """``write(name)``: fairseq's model, and its file as somebody else wrote it."""

    def make(name):
        flags, form, _ = BASES[name]
        dictionary = Dictionary.load(str(data / "input0" / "dict.txt"))
        dictionary.add_symbol("<mask>")
        model = build(dictionary, flags)
        state = form({**SIZES, **flags}, dict(model.state_dict()))
        history = {"criterion_name": "SmoothMaskedLmLoss", "optimizer_name": "Foreign"}
        rest = {"optimizer_history": [{**history, "num_updates": 9, "lr_scheduler_state": {}}]}
        rest["extra_state"] = {"train_iterator": {"epoch": 4}, "val_loss": 1.0}
        rest["last_optimizer_state"] = {"state": {}}
        path = tmp_path / "base.pt"
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
            zipped = name != "older"
            torch.save({**state, **rest}, path, _use_new_zipfile_serialization=zipped)
        return model, path

    return make


def heads_of(name):
    """What the file tells of them."""
    return None if "encoder_attention_heads" in BASES[name][2] else 3


def features(model, tokens):
    with torch.no_grad():
        return model(tokens, features_only=True)[0]


BART = {
    **{"decoder_layers": 1, "decoder_attention_heads": 3, "decoder_embed_dim": 24},
    **{"decoder_ffn_embed_dim": 20, "max_source_positions": 44, "max_target_positions": 44},
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"encoder_normalize_before": True, "decoder_normalize_before": True},  # BARThez
        {"no_scale_embedding": False, "activation_fn": "relu"},
    ],
    ids=["bart", "norms before", "scaled"],
)
def test_the_encoder_of_an_encoder_decoder(more, data, dictionary, tmp_path, capsys):
    torch.manual_seed(3)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    args = Namespace(**SIZES, **BART, **more)
    ARCH_CONFIG_REGISTRY["bart_base"](args)
    bart = BARTModel.build_model(args, task).eval()
    with torch.no_grad():
        for parameter in bart.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    args.max_positions = 1024  # as they all say
    state = {"args": args, "model": bart.state_dict(), "best_loss": 1.0}
    torch.save(state, tmp_path / "bart.pt")
    assert not opens_without_plugin(tmp_path / "bart.pt")
    run("export-checkpoint", tmp_path / "bart.pt", "--encoder", "--out", tmp_path / "base.pt")
    assert opens_without_plugin(tmp_path / "base.pt")

    given = Namespace(_name="roberta_full", restore_file=str(tmp_path / "base.pt"))
    ARCH_CONFIG_REGISTRY["roberta_full"](given)
    model = RobertaPeftModel.build_model(given, task)
    model.load_state_dict(slim.read(str(tmp_path / "base.pt"))["model"])
    tokens = next(finetuned.random_batches(dictionary, 40))
    with torch.no_grad():
        expected = bart.encoder(tokens)["encoder_out"][0].transpose(0, 1)
        found = features(model.eval(), tokens)
    text = tokens.ne(dictionary.pad())
    assert (found - expected)[text].abs().max() < TOLERANCE["fp32"]

    # With fewer positions it is the same on what fits into them.
    short = tmp_path / "short.pt"
    run("export-checkpoint", tmp_path / "base.pt", "--max-positions", 20, "--out", short)
    given = Namespace(_name="roberta_full", restore_file=str(short))
    ARCH_CONFIG_REGISTRY["roberta_full"](given)
    cut = RobertaPeftModel.build_model(given, task)
    cut.load_state_dict(slim.read(str(short))["model"])
    assert cut.max_positions() == 20
    assert torch.equal(features(cut.eval(), tokens[:, :20]), features(model, tokens[:, :20]))
    words = ("export-checkpoint", short, "--max-positions", 20, "--out", tmp_path / "no.pt")
    assert "has 20 positions of a RoBERTa. Expected at least 8, and fewer" in refused(
        capsys, *words
    )


def test_what_has_no_encoder_is_told_so(write, tmp_path, capsys):
    _, base = write("older")
    words = ("export-checkpoint", base, "--encoder", "--out", tmp_path / "out.pt")
    assert "base.pt is no encoder-decoder" in refused(capsys, *words)


@pytest.mark.parametrize("name", BASES)
def test_the_whole_way(name, write, data, fairseq, tmp_path, capsys):
    stock, base = write(name)
    given = {**dict.fromkeys(TINY), **BASES[name][2], "finetune_from_model": base}
    folder = tmp_path / "run"
    flags = train_flags(data, folder, "roberta_lora", from_scratch=None, **given)
    done = fairseq("train", *flags)
    assert done.returncode == 0, done.stderr
    checkpoint, adapter = folder / "checkpoint_best.pt", folder / "adapter"

    # What the adapter is added to is the base, as fairseq computes it.
    model = finetuned.rebuild(checkpoint, slim.read(str(checkpoint)))
    tokens = next(finetuned.random_batches(model.dictionary, 40))
    trained = features(model, tokens)
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            if "lora_B" in tensor_name:
                parameter.zero_()
    assert (features(model, tokens) - features(stock, tokens)).abs().max() < TOLERANCE["fp32"]
    assert (trained - features(stock, tokens)).abs().max() > 1e-2

    done = fairseq(
        *("validate", data, "--user-dir", PACKAGE, "--task", "sentence_classification"),
        *("--path", checkpoint, "--batch-size", 8, "--num-workers", 0, "--cpu"),
    )
    assert done.returncode == 0, done.stderr

    texts = ["mot", "deux mots, trois", "x" * 9]
    (tmp_path / "texts").write_text("\n".join(texts) + "\n")
    capsys.readouterr()
    run("predict", "--base", base, "--adapter", adapter, tmp_path / "texts")
    answers = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3 and set(answers) <= {"bad", "good"}

    run("inspect", base, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["sizes"].items() >= {**SIZES, "encoder_attention_heads": heads_of(name)}.items()
    run("inspect", checkpoint, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "lora" and told["sizes"].items() >= SIZES.items()

    run("merge", checkpoint, tmp_path / "merged.pt")  # compares the logits with fairseq's model
    call = capsys.readouterr().out.splitlines()[-1]
    hub = eval(call, {"RobertaModel": RobertaModel})
    labels = hub.task.label_dictionary
    for text, answer in zip(texts, answers):
        scores = hub.predict("sentence_classification_head", hub.encode(text))
        assert labels[int(scores.argmax()) + labels.nspecial] == answer

    words = ("to-hf", adapter, tmp_path / "hf", "--base", base, "--no-check")
    if name in NO_COUNTERPART:
        assert NO_COUNTERPART[name] in refused(capsys, *words)
    else:
        run(*words)


@pytest.mark.parametrize("group", ["task", "model", "generation"])
def test_a_group_may_be_empty(group, write):
    """As somebody leaves it who writes a checkpoint with a script of his own."""
    stock, base = write("newer")
    state = torch.load(base, weights_only=False, map_location="cpu")
    state["cfg"][group] = None
    torch.save(state, base)
    found = checkpoint_utils.load_checkpoint_to_cpu(str(base))
    assert found["model"].keys() == stock.state_dict().keys()


def test_fairseqs_own_tasks_take_the_sizes_too(write, data, fairseq, tmp_path):
    _, base = write("older")
    done = fairseq(
        *("train", data / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_lora", "--finetune-from-model", base),
        *("--tokens-per-sample", 40, "--batch-size", 8, "--optimizer", "peft_adamw"),
        *("--max-update", 1, "--num-workers", 0, "--cpu", "--save-dir", tmp_path / "lm"),
    )
    assert done.returncode == 0, done.stderr
    state = slim.read(str(tmp_path / "lm" / "checkpoint_last.pt"))
    assert SIZES.items() <= state["cfg"]["model"].items()


def test_fairseq_hydra_train_takes_the_sizes_too(write, data, fairseq, tmp_path):
    _, base = write("newer")
    words = [
        *(f"common.user_dir={PACKAGE}", "common.cpu=true", f"checkpoint.save_dir={tmp_path}/run"),
        *("+task._name=sentence_classification", f"+task.data={data}", "+model._name=roberta_lora"),
        *("~criterion", "+criterion._name=sentence_classification", "+optimizer._name=peft_adamw"),
        *("optimization.lr=[0.01]", "optimization.max_update=1"),
        *("dataset.batch_size=8", "dataset.num_workers=0", "optimization.max_epoch=1"),
        *("checkpoint.best_checkpoint_metric=accuracy", f"checkpoint.finetune_from_model={base}"),
        "checkpoint.maximize_best_checkpoint_metric=true",
    ]
    done = fairseq("hydra-train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    state = slim.read(str(tmp_path / "run" / "checkpoint_last.pt"))
    assert {**SIZES, "activation_fn": "relu"}.items() <= state["cfg"]["model"].items()
    assert state["cfg"]["model"]["encoder_normalize_before"] is True


@pytest.mark.parametrize(
    ("name", "arch", "given", "parts"),
    [
        ("bare", "roberta_lora", {}, ["Give --encoder-attention-heads, a divisor of its .* 24"]),
        (
            "older",
            "roberta_lora",
            {"encoder_attention_heads": 4},
            ["heads 4 .the base has 3.*without --enc\\S*-heads.*, or --encoder-attention-heads 3"],
        ),
        ("newer", "roberta_base_lora", {}, [r"embed_dim 768 .*Give --arch roberta_lora, which"]),
        ("newer", "roberta_base_lora", {}, [re.escape(", or --encoder-layers 3 --encoder-embed")]),
        ("untied", "roberta_lora", {"activation_fn": "relu"}, ["relu .the base has gelu"]),
        (
            "older",
            "roberta_lora",
            {"encoder_normalize_before": True},
            ["before True .the base has False.*without --encoder-normalize-before.* the base[.]$"],
        ),
    ],
)
def test_what_contradicts_the_base_is_told_what_fits(
    name, arch, given, parts, write, data, fairseq, base_checkpoint, tmp_path
):
    _, base = write(name)
    bench = Bench(fairseq, data, base, tmp_path)
    done = bench.train(arch=arch, **{**dict.fromkeys(TINY), **given})
    refused_training(bench, done, *parts)


def test_sizes_of_a_base_without_a_base(fairseq, data, tmp_path):
    bench = Bench(fairseq, data, None, tmp_path)
    done = bench.train(arch="roberta_lora", from_scratch=True, **dict.fromkeys(TINY))
    refused_training(bench, done, "roberta_lora takes its sizes from the base, and there is none")

"""``--pooler``: what a head reads, computed by hand; in files, verbs, and batches of several
adapters."""

from __future__ import annotations

import json
import types

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
import verbs  # noqa: E402
from helpers import TINY, TOLERANCE, train_flags  # noqa: E402
from settings import collect, parametrize  # noqa: E402

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.models import folder, heads  # noqa: E402
from fairseq_peft.models.roberta import FAMILY  # noqa: E402
from fairseq_peft.serving import served  # noqa: E402
from fairseq_peft.serving.shared_base import SharedBase  # noqa: E402

BEFORE = {"prompt_placement": "before_bos"}
#: The contract's, but for prompts that stand where the head reads.
every_setting = parametrize([s for s in collect() if not BEFORE.items() <= s[1].items()])
POOLERS = {"mean": lambda text: text.mean(0), "max": lambda text: text.amax(0)}
every_pooler = pytest.mark.parametrize("pooler", POOLERS)


def by_hand(model, tokens, states, pooler):
    """Logits (B, 2) from states (B, T, C): RoBERTa's head on what the pooler makes of each row's
    tokens."""
    head = model.classification_heads["head"]
    rows = [state[row.ne(1)] for row, state in zip(tokens, states)]
    pooled = torch.stack([POOLERS[pooler](row) for row in rows])
    hidden = torch.tanh(pooled @ head.dense.weight.t() + head.dense.bias)
    return hidden @ head.out_proj.weight.t() + head.out_proj.bias


@every_setting
def test_logits_are_those_of_a_hand_computation(build, batch, logits, peft, given):
    """For every method; padding takes no part, and the last layer is whole."""
    for pooler in POOLERS:
        model = build(peft, pooler=pooler, **given)
        with torch.no_grad():
            features = model(batch, features_only=True)[0]
            expected = by_hand(model, batch, features, pooler)
            found = logits(model, batch)
            assert (found - expected).abs().max() < TOLERANCE["fp32"]
            first = model.classification_heads["head"](features)
        assert (found - first).abs().max() > 1e-3  # so reading <s> would show


@every_pooler
def test_a_prompt_takes_no_part(build, batch, logits, pooler):
    """The states of the last layer, where the prompt's are the second to the sixth."""
    model = build("prompt", pooler=pooler, prompt_num_tokens=5)
    with torch.no_grad():
        model.encoder.sentence_encoder.soft_prompt.embeddings.mul_(100)
    found = []
    last = model.encoder.sentence_encoder.layers[-1]
    last.register_forward_hook(lambda module, given, out: found.append(out))
    scores = logits(model, batch)
    states = torch.cat([found[0][:, :1], found[0][:, 6:]], 1)
    assert found[0].shape == (4, 12 + 5, 16)
    assert (scores - by_hand(model, batch, states, pooler)).abs().max() < TOLERANCE["fp32"]
    wide = torch.cat([torch.full((4, 5), 5), batch], 1)
    assert (scores - by_hand(model, wide, found[0], pooler)).abs().max() > 1e-3


def test_a_prompt_where_the_head_reads_is_refused(build):
    for pooler in POOLERS:
        with pytest.raises(ValueError, match=f"--pooler {pooler} reads the text, and with --promp"):
            build("prompt", pooler=pooler, **BEFORE)
    build("prompt", pooler="first", **BEFORE)


@every_pooler
@pytest.mark.parametrize("peft", ["full", "lora", "adapter", "prompt", "prefix"])
def test_padding_does_not_matter(build, batch, logits, peft, pooler):
    model = build(peft, pooler=pooler)
    together = logits(model, batch)
    wider = logits(model, torch.nn.functional.pad(batch, (0, 6), value=1))
    assert (wider - together).abs().max() < TOLERANCE["fp32"]
    for row, expected in zip(batch, together):
        alone = logits(model, row[row.ne(1)].unsqueeze(0))[0]
        assert (alone - expected).abs().max() < TOLERANCE["fp32"]


def test_what_padding_holds_does_not_matter():
    """Not even if it is no number."""
    features, text = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    expected = {pooler: heads.pool(features, text, pooler) for pooler in heads.POOLERS}
    features[0, 2] = float("nan")
    for pooler, value in expected.items():
        assert torch.equal(heads.pool(features, text, pooler), value)
        assert value.shape == (2, 1, 4) and value.isfinite().all()


@every_pooler
def test_all_tokens_get_a_gradient(build, batch, pooler):
    model = build("full", pooler=pooler, dropout=0.0, attention_dropout=0.0).train()
    features = model(batch, features_only=True)[0].detach().requires_grad_()
    text = batch.ne(1)
    heads.scores(model.classification_heads["head"], features, text).sum().backward()
    reached = features.grad.abs().sum(2) > 0
    assert not reached[~text].any()
    assert reached[text].all() if pooler == "mean" else reached[:3].sum() > 3


def test_an_unknown_pooler(build):
    with pytest.raises(ValueError, match="--pooler 'median' is unknown: give first, mean or max"):
        build("lora", pooler="median")


def test_before_the_flag_it_was_the_first(build, batch, logits):
    assert heads.pooler_of(types.SimpleNamespace()) == "first"
    old = build("lora", pooler=None)
    old.args.pooler = None
    old.register_classification_head("other", num_classes=2)
    assert old.classification_heads["other"].pooler == "first"
    assert torch.equal(logits(build("lora"), batch), logits(build("lora", pooler="first"), batch))


# ---- Files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(dictionary):
    return adapter_folders.base_state(dictionary)


@pytest.fixture(scope="module")
def base_file(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "model.pt"
    return adapter_folders.save_base(path, base, cfg={"model": {"_name": "roberta_small", **TINY}})


def write(path, dictionary, base, peft="lora", base_path="base.pt", told=True, **given):
    """An adapter folder and its model; without ``told`` it says nothing of a pooler, as one from
    before the flag."""
    model = adapter_folders.perturbed(dictionary, base, peft, **given)
    if not told:
        model.args.pooler = None
    return adapter_folders.write(path / "adapter", model, base, base_path), model


@every_pooler
@pytest.mark.parametrize("peft", ["lora", "adapter", "prompt", "prefix", "full"])
def test_a_folder_keeps_the_pooler(dictionary, base, batch, logits, tmp_path, peft, pooler):
    path, model = write(tmp_path, dictionary, base, peft, pooler=pooler)
    found = adapter_folder.read(path)
    assert found.description["model"]["pooler"] == pooler
    again = folder.load(found, None if peft == "full" else base)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_rows_of_adapters_with_other_poolers(dictionary, base, batch, tmp_path):
    """One pass for all: each row is what its adapter alone says, whatever prompt stands beside it;
    a folder from before the flag reads ``<s>``, whoever came first."""
    given = {
        "max": {"peft": "lora", "pooler": "max"},
        "old": {"peft": "lora", "told": False},
        "prompt": {"peft": "prompt", "prompt_num_tokens": 5, "pooler": "mean"},
        "before": {"peft": "prompt", "prompt_num_tokens": 3, **BEFORE},
        "prefix": {"peft": "prefix", "prefix_num_tokens": 4, "pooler": "max"},
        "adapter": {"peft": "adapter", "pooler": "mean"},
    }
    models, shared = {}, None
    for seed, (name, flags) in enumerate(given.items(), start=3):
        path, models[name] = write(tmp_path / name, dictionary, base, seed=seed, **flags)
        found = adapter_folder.read(path)
        if shared is None:
            plain = served.plain_model(found.description["model"], dictionary)
            plain.load_state_dict(dict(base))
            shared = SharedBase(plain, FAMILY.root)
        shared.add(name, lambda own, found=found: served.build(own, found))
    for names in (list(given), ["old", "before"], ["before", "prompt", "prompt"], ["old", "max"]):
        for first in range(4):
            rows = torch.stack([batch[(first + number) % 4] for number in range(len(names))])
            with torch.no_grad():
                together = shared.logits(rows, names)
                for row, name, found in zip(rows, names, together):
                    expected = models[name](row.unsqueeze(0), classification_head_name="head")[0][0]
                    assert (found - expected).abs().max() < TOLERANCE["fp32"], name


def test_verbs_that_cannot_say_it_refuse(dictionary, base, base_file, tmp_path, capsys):
    path, _ = write(tmp_path, dictionary, base, base_path=base_file, pooler="mean")
    line = verbs.refused(capsys, "merge", path, tmp_path / "out.pt", "--base", base_file)
    assert "was trained with --pooler mean" in line and "fairseq-peft predict" in line
    assert not (tmp_path / "out.pt").exists()


def test_folders_of_other_poolers_do_not_add_up(dictionary, base, tmp_path, capsys):
    given = {
        "first": {"pooler": "first"},
        "old": {"told": False},
        "mean": {"pooler": "mean"},
        "more": {"pooler": "mean"},
    }
    paths = {
        name: write(tmp_path / name, dictionary, base, **flags)[0] for name, flags in given.items()
    }
    for one, other in (("first", "mean"), ("mean", "old")):
        words = (paths[one], paths[other], "--out", tmp_path / "out")
        line = verbs.refused(capsys, "combine", *words)
        assert "--pooler" in line and "different models" in line
    for one, other in (("first", "old"), ("mean", "more")):
        words = ["combine", paths[one], paths[other], "--out", tmp_path / f"{one}-{other}"]
        assert cli.main([str(word) for word in words]) == 0
    told = adapter_folder.read(tmp_path / "mean-more").description["model"]
    assert told["pooler"] == "mean"


def test_a_head_of_another_pooler_is_not_taken_over(build):
    """Its weights would fit; what they were trained to read would not be there."""

    def check(pooler, before, head="head", **given):
        told = {"model": {} if before is None else {"pooler": before}}
        weights = {f"classification_heads.{head}.out_proj.weight": torch.zeros(2, 16)}
        build("lora", pooler=pooler, **given).check_pooler({"cfg": told, "model": weights})

    for pooler, before in (("mean", "mean"), ("first", None), ("first", "first")):
        check(pooler, before)
    for pooler, before in (("mean", None), ("first", "max"), ("max", "mean")):
        message = f"trained with --pooler {before or 'first'}, not {pooler}"
        with pytest.raises(ValueError, match=message):
            check(pooler, before)
        check(pooler, before, reset_head=True)
        check(pooler, before, head="other")


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.mark.end_to_end
def test_a_run_is_resumed(fairseq, data_folder, base_checkpoint, tmp_path, capsys):
    """With what an uninterrupted one ends with; not with another pooler; and not merged."""

    def train(name, pooler="mean", **more):
        flags = train_flags(data_folder, tmp_path / name, pooler=pooler, **{
            "from_scratch": None, "finetune_from_model": base_checkpoint, **more,
        })  # fmt: skip
        return fairseq("train", *flags)

    for name, epochs in (("whole", 2), ("parts", 1), ("parts", 2)):
        done = train(name, max_epoch=epochs)
        assert done.returncode == 0, done.stderr
    weights = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)["model"]
        for name in ("whole", "parts")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    losses = [
        [
            json.loads(line)["subsets"]["test"]["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert len(losses[0]) == 2 and losses[0] == losses[1]
    told = adapter_folder.read(tmp_path / "parts" / "adapter").description["model"]
    assert told["pooler"] == "mean"

    done = train("parts", pooler="max", max_epoch=3)
    assert done.returncode == 1 and "was trained with --pooler mean, not max" in done.stderr
    words = ("merge", tmp_path / "parts" / "checkpoint_last.pt", tmp_path / "merged.pt")
    assert "--pooler mean" in verbs.refused(capsys, *words)

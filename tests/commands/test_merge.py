"""``fairseq-peft merge``: what fairseq-train wrote, in a process that has only stock fairseq."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers import PACKAGE, TINY_FLAGS, TOLERANCE, train_flags

from fairseq_peft import cli, methods
from fairseq_peft.checkpoints import slim
from fairseq_peft.commands.merge import hub_call

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

#: name -> (--peft, flags): every method that merges, and knobs that put tensors elsewhere.
SETTINGS = {name: (name, {}) for name in methods.available() if methods.get(name).mergeable}
SETTINGS["adalora"] = ("adalora", {"adalora_init_rank": 4, "adalora_rank": 2})
SETTINGS["bf16"] = ("lora", {"precision": "bf16", "peft_targets": "all-linear"})
SETTINGS["lora+bitfit"] = ("lora,bitfit", {})
SETTINGS["pissa"] = ("lora", {"lora_init": "pissa"})
SETTINGS["linear head"] = ("lora", {"classifier_head": "linear"})
HEAD = "sentence_classification_head"

#: Logits of merged files by stock fairseq alone: by the checkpoint's own words, and by the hub.
STOCK = """
import sys
import fairseq, torch
from fairseq import checkpoint_utils
from fairseq.models.roberta import RobertaModel

tokens = torch.load("tokens.pt", weights_only=True)
for path in sys.argv[1:]:
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([path])
    assert type(model) is RobertaModel and type(task).__module__.startswith("fairseq.")
    given = {}
    exec("hub = " + open(path + ".call").read(), {"RobertaModel": RobertaModel}, given)
    hub = given["hub"]
    with torch.no_grad():
        if cfg.task._name == "masked_lm":
            found = [model.eval()(tokens)[0], hub.eval().model(tokens)[0]]
        else:
            head = cfg.task.classification_head_name
            found = [model.eval()(tokens, classification_head_name=head)[0]]
            found.append(hub.eval().predict(head, tokens, return_logits=True))
    torch.save(found, path + ".logits")
assert not [name for name in sys.modules if name.startswith("fairseq_peft")]
"""


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def merge(capsys, *words):
    """The first line of a merge that succeeds; the call that it prints lies beside the file."""
    status = cli.main(["merge", *map(str, words)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    told, imported, call = printed.out.splitlines()
    assert imported == "from fairseq.models.roberta.model import RobertaModel"
    Path(f"{words[1]}.call").write_text(call)
    return told


def refused(capsys, *words):
    """The one line of a merge that fails."""
    assert cli.main(["merge", *map(str, words)]) == 1
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert printed.out == "" and line.startswith("fairseq-peft merge: error: ")
    return line


def own_logits(path, tokens):
    """What the plugin's own loader makes of the checkpoint, in fp32."""
    from fairseq import checkpoint_utils

    import fairseq_peft.plugin  # noqa: F401

    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"precision": "fp32"}
    )
    head = cfg.task.get("classification_head_name")
    with torch.no_grad():
        return model.eval()(tokens, classification_head_name=head)[0]


@pytest.fixture
def stock_logits(python, tmp_path):
    """``stock_logits(tokens, paths)``: path -> the two logits of ``STOCK``."""

    def run(tokens, paths):
        torch.save(tokens, tmp_path / "tokens.pt")
        words = [python, "-c", STOCK, *paths]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return {path: load(f"{path}.logits") for path in paths}

    return run


@pytest.fixture(scope="module")
def trained(fairseq, data_folder, base_checkpoint, tmp_path_factory):
    """``trained(name)``: the checkpoint of one epoch of a setting, made when first asked for."""
    folder = tmp_path_factory.mktemp("trained")

    def train(name, **given):
        peft, given = SETTINGS.get(name, (name, given))
        path = folder / "-".join([name, *map(str, given.values())]) / "checkpoint_last.pt"
        if not path.exists():
            given = {"peft": peft, "lr": 2e-2, "from_scratch": None, **given}
            given["finetune_from_model"] = base_checkpoint
            flags = train_flags(data_folder, path.parent, "roberta_small", **given)
            done = fairseq("train", *flags)
            assert done.returncode == 0, done.stderr
        return path

    return train


def test_stock_fairseq_computes_the_same(
    stock_logits, trained, data_folder, base_checkpoint, batch, tmp_path, capsys
):
    """Every method that merges; the printed difference is not what is relied on."""
    merged = {}
    for name in SETTINGS:
        out = tmp_path / f"{name}.pt"
        line = merge(capsys, trained(name), out)
        assert float(re.search(r"differ .* by (\S+) at most", line)[1]) < TOLERANCE["fp32"], name
        assert line.startswith(f"{out}: {len(load(out)['model'])} tensors, fp32; ")
        merged[name] = out
    found = stock_logits(batch, list(merged.values()))
    for name, out in merged.items():
        expected = own_logits(trained(name), batch)
        assert expected.shape == (4, 2)
        for logits in found[out]:
            assert (logits - expected).abs().max() < TOLERANCE["fp32"], name
    # They were trained: only the head is new where only the head trains.
    base = load(base_checkpoint)["model"]
    same = [
        name
        for name, out in merged.items()
        if all(torch.equal(value, load(out)["model"][key]) for key, value in base.items())
    ]
    assert same == ["head_only"]


def test_base_and_adapter_folder_merge_to_the_same_file(trained, base_checkpoint, tmp_path, capsys):
    """To the last bit of every tensor; a folder of full fine-tuning needs no base."""
    for number, name in enumerate(SETTINGS):
        merge(capsys, trained(name), tmp_path / f"{number}.pt")
        base = [] if name == "full" else ["--base", base_checkpoint]
        line = merge(capsys, trained(name).parent / "adapter", tmp_path / f"{number}f.pt", *base)
        assert float(re.search(r"differ .* by (\S+) at most", line)[1]) < TOLERANCE["fp32"], name
        one, other = load(tmp_path / f"{number}.pt"), load(tmp_path / f"{number}f.pt")
        assert one["model"].keys() == other["model"].keys(), name
        assert all(torch.equal(v, other["model"][k]) for k, v in one["model"].items()), name
        assert one["cfg"]["model"] == other["cfg"]["model"], name
        assert one["task_state"] == other["task_state"]


def test_a_merged_folder_is_one_for_stock_fairseq(
    stock_logits, trained, base_checkpoint, data_folder, batch, tmp_path, capsys
):
    out = tmp_path / "merged.pt"
    merge(capsys, trained("lora").parent / "adapter", out, "--base", base_checkpoint)
    expected = own_logits(trained("lora"), batch)
    for logits in stock_logits(batch, [out])[out]:
        assert (logits - expected).abs().max() < TOLERANCE["fp32"]


def test_folders_that_cannot_be_merged(trained, base_checkpoint, tmp_path, capsys):
    out, adapter = tmp_path / "out.pt", trained("lora").parent / "adapter"
    assert "Give it (--base)" in refused(capsys, adapter, out)
    assert "does not exist" in refused(capsys, adapter, out, "--base", tmp_path / "none.pt")
    assert "is not the base" in refused(capsys, adapter, out, "--base", trained("full"))
    assert "would be ignored" in refused(capsys, trained("full"), out, "--base", base_checkpoint)
    whole = trained("full").parent / "adapter"
    assert "would be ignored" in refused(capsys, whole, out, "--base", base_checkpoint)
    prompt = trained("prompt").parent / "adapter"
    assert "cannot be merged" in refused(capsys, prompt, out, "--base", base_checkpoint)
    assert not out.exists()


def test_the_file_holds_plain_values_and_fairseqs_own_names(trained, tmp_path, capsys):
    merge(capsys, trained("lora"), tmp_path / "new/folder/merged.pt")
    state, source = load(tmp_path / "new/folder/merged.pt"), slim.read(trained("lora"))
    assert set(state["model"]) == {key for key in source["model"] if "lora_" not in key}
    changed = [
        key for key, value in state["model"].items() if not torch.equal(value, source["model"][key])
    ]
    assert sorted(changed) == sorted(
        f"encoder.sentence_encoder.layers.{layer}.self_attn.{name}_proj.weight"
        for layer in (0, 1)
        for name in ("q", "v")
    )
    text = json.dumps(state["cfg"])
    assert "peft" not in text and "lora" not in text and str(PACKAGE) not in text
    assert state["last_optimizer_state"] is None
    assert state["task_state"]["labels"] == ["bad", "good"]


def test_stock_validate_gives_what_training_logged(trained, data_folder, fairseq, tmp_path, capsys):
    """fairseq-validate, its own task and criterion, without the plugin."""
    merge(capsys, trained("lora"), tmp_path / "merged.pt")
    done = fairseq(
        *("validate", data_folder, "--path", tmp_path / "merged.pt", "--valid-subset", "valid"),
        *(
            "--task",
            "sentence_prediction",
            "--criterion",
            "sentence_prediction",
            "--cpu",
            "--batch-size",
            8,
            "--num-workers",
            0,
        ),
        *("--required-batch-size-multiple", 1, "--log-format", "simple"),
    )
    assert done.returncode == 0, done.stderr
    lines = (trained("lora").parent / "metrics.jsonl").read_text().splitlines()
    logged = json.loads(lines[-1])["subsets"]["valid"]["accuracy"]
    shown = float(re.search(r"\| accuracy (\S+)", done.stdout + done.stderr)[1])
    assert shown == pytest.approx(100 * logged, abs=0.06)


def test_a_merged_file_is_a_base_for_the_next_run(trained, fairseq, data_folder, tmp_path, capsys):
    merge(capsys, trained("lora"), tmp_path / "merged.pt")
    more = {"finetune_from_model": tmp_path / "merged.pt", "from_scratch": None}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **more))
    assert done.returncode == 0, done.stderr
    base, run = (slim.read(tmp_path / name) for name in ("merged.pt", "run/checkpoint_last.pt"))
    key = "encoder.sentence_encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(base["model"][key], run["model"][key])


def test_a_language_model_with_a_method(
    stock_logits, fairseq, data_folder, base_checkpoint, tmp_path, capsys, batch
):
    """fairseq's masked_lm with --peft lora: no head, the words' scores are the logits."""
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", "--peft", "lora", *TINY_FLAGS),
        *("--tokens-per-sample", 40, "--batch-size", 8, "--finetune-from-model", base_checkpoint),
        *("--optimizer", "peft_adamw", "--lr", 1e-2, "--max-update", 5, "--num-workers", 0),
        *("--save-dir", tmp_path, "--no-epoch-checkpoints", "--log-format", "simple", "--cpu"),
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "merged.pt"
    merge(capsys, tmp_path / "checkpoint_last.pt", out)
    expected = own_logits(tmp_path / "checkpoint_last.pt", batch)
    assert expected.shape == (4, 12, 35)
    words = batch != 1
    for logits in stock_logits(batch, [out])[out]:
        assert (logits - expected)[words].abs().max() < TOLERANCE["fp32"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_the_fp32_merge_rounded_once(
    stock_logits, trained, tmp_path, capsys, dtype, batch, data_folder
):
    merge(capsys, trained("lora"), tmp_path / "full.pt")
    line = merge(capsys, trained("lora"), tmp_path / "half.pt", "--dtype", dtype)
    full, half = load(tmp_path / "full.pt")["model"], load(tmp_path / "half.pt")["model"]
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert all(torch.equal(half[key], value.to(kind)) for key, value in full.items())
    size = {name: (tmp_path / f"{name}.pt").stat().st_size for name in ("full", "half")}
    assert size["half"] < 0.8 * size["full"]
    printed = float(re.search(r"by (\S+) at most", line)[1])
    out = tmp_path / "half.pt"
    expected = own_logits(trained("lora"), batch)
    (found, _) = stock_logits(batch, [out])[out]
    moved = (found - expected).abs().max().item()
    assert 1e-6 < moved < 0.05 and printed / 10 < moved < printed * 10


def test_values_beyond_fp16_are_refused(trained, tmp_path, capsys):
    state = slim.read(trained("lora"))
    state["model"]["encoder.lm_head.bias"][3] = 1e6
    torch.save(state, tmp_path / "large.pt")
    line = refused(capsys, tmp_path / "large.pt", tmp_path / "out.pt", "--dtype", "fp16")
    assert "encoder.lm_head.bias has values beyond fp16" in line and "bf16" in line
    state["model"]["encoder.lm_head.bias"][3] = float("nan")
    torch.save(state, tmp_path / "large.pt")
    line = refused(capsys, tmp_path / "large.pt", tmp_path / "out.pt")
    assert "the run has diverged" in line
    assert [path.name for path in tmp_path.iterdir()] == ["large.pt"]


@pytest.mark.parametrize("name", ["prompt", "adapter", "prefix", "lora,prompt"])
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(trained, tmp_path, capsys, name):
    line = refused(capsys, trained(name), tmp_path / "new" / "out.pt")
    part = name.split(",")[-1]
    assert f"{trained(name)}: --peft {part} cannot be merged: it adds computation" in line
    assert "fold" not in line and not list(tmp_path.iterdir())


def test_a_data_folder_that_is_gone_is_told_in_the_call(build, tmp_path):
    cfg = {"task": {"data": str(tmp_path / "gone")}}
    lines = hub_call(tmp_path / "adapter", tmp_path / "m.pt", cfg, build("lora")).splitlines()
    assert lines[0].startswith(f"# {tmp_path}/gone is not here") and "bpe=None" in lines[-1]


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_what_can_be_folded_is_told_so(trained, tmp_path, capsys, name):
    path = trained(name, **{f"{name}_mlp": 8})
    line = refused(capsys, path, tmp_path / "out.pt")
    assert "cannot be merged" in line and "fairseq-peft fold" in line


def test_files_are_not_written_over(trained, tmp_path, capsys):
    out = tmp_path / "out.pt"
    out.write_text("precious")
    assert "exists. Give another name, or --force" in refused(capsys, trained("lora"), out)
    assert "cannot be merged" in refused(capsys, trained("prompt"), out, "--force")
    assert out.read_text() == "precious"
    merge(capsys, trained("lora"), out, "--force")
    assert "model" in load(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pt", "out.pt.call"]
    before = trained("lora").read_bytes()
    line = refused(capsys, trained("lora"), trained("lora"), "--force")
    assert "is the checkpoint itself" in line and trained("lora").read_bytes() == before
    assert "is a folder" in refused(capsys, trained("lora"), tmp_path)
    (tmp_path / "file").write_text("")
    line = refused(capsys, trained("lora"), tmp_path / "file" / "out.pt")
    assert "cannot be written" in line


def test_bad_checkpoints_are_refused(trained, tmp_path, capsys):
    out = tmp_path / "out.pt"
    assert "does not exist" in refused(capsys, tmp_path / "none.pt", out)
    (tmp_path / "text.pt").write_text("words")
    assert "text.pt" in refused(capsys, tmp_path / "text.pt", out)

    def changed(change):
        state = load(trained("lora"))
        change(state)
        torch.save(state, tmp_path / "changed.pt")
        return refused(capsys, tmp_path / "changed.pt", out)

    name = "encoder.sentence_encoder.layers.0.self_attn.q_proj"
    line = changed(lambda state: state["model"].pop(f"{name}.lora_A"))
    assert f"missing ({name}.lora_A)" in line
    line = changed(lambda state: state["model"].update(extra=torch.zeros(1)))
    assert "left over (extra)" in line
    line = changed(lambda state: state["model"].update({f"{name}.weight": torch.zeros(2, 2)}))
    assert "another shape" in line
    line = changed(
        lambda state: [state["model"].pop(key) for key in list(state["model"]) if HEAD in key]
    )
    assert f"has no classification head '{HEAD}'" in line
    for model in ({"_name": "transformer"}, None):
        line = changed(lambda state, model=model: state["cfg"].update(model=model))
        assert "is no model of this plugin" in line
    assert not out.exists()

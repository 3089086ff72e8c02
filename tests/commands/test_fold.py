"""``fairseq-peft fold``: an MLP gives way to what it computes, and fairseq loads the result."""

from __future__ import annotations

import pytest
from helpers import PACKAGE, TOLERANCE, train_flags

from fairseq_peft import cli

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def trained(fairseq, data_folder, tmp_path_factory):
    """``trained("prefix", prefix_mlp=6)``: the checkpoint of one epoch."""

    def train(peft, **flags):
        folder = tmp_path_factory.mktemp("run")
        flags = train_flags(data_folder, folder, arch="roberta_small", peft=peft, **flags)
        done = fairseq("train", *flags)
        assert done.returncode == 0, done.stderr
        return folder / "checkpoint_best.pt"

    return train


def load(path):
    from fairseq import checkpoint_utils

    import fairseq_peft.plugin  # noqa: F401

    (model,), cfg, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    return model.eval(), cfg


@pytest.mark.parametrize(
    "peft, flags",
    [
        ("prefix", {"prefix_mlp": 6, "prefix_num_tokens": 4}),
        ("lora,prompt", {"prompt_mlp": 6, "prompt_num_tokens": 4}),
    ],
)
def test_folded_checkpoints_load_and_give_the_same(
    trained, fairseq, data_folder, tmp_path, capsys, batch, peft, flags
):
    path, out = trained(peft, **flags), tmp_path / "folded.pt"
    assert cli.main(["fold", str(path), str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    (before, _), (after, cfg) = load(path), load(out)
    assert not [name for name, _ in after.named_parameters() if ".mlp." in name]
    assert cfg.model[next(flag for flag in flags if flag.endswith("_mlp"))] == 0
    head = "sentence_classification_head"
    with torch.no_grad():
        scores = [m(batch, classification_head_name=head)[0] for m in (before, after)]
    assert (scores[0] - scores[1]).abs().max() < TOLERANCE["fp32"]
    words = [data_folder, "--user-dir", PACKAGE, "--task", "sentence_classification", "--cpu"]
    words += ["--path", out, "--valid-subset", "valid", "--batch-size", 8, "--num-workers", 0]
    assert fairseq("validate", *words).returncode == 0


def test_what_cannot_be_folded_is_one_sentence(trained, tmp_path, capsys):
    path, out = trained("prefix", prefix_num_tokens=4), tmp_path / "folded.pt"
    assert cli.main(["fold", str(path), str(out)]) == 1
    error = capsys.readouterr().err
    assert "has nothing to fold" in error and "Traceback" not in error
    assert not out.exists()

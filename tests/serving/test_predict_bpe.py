"""From raw text to classes with another ``--bpe`` than sentencepiece: prepared, trained, served."""

from __future__ import annotations

import json
import random
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

import bpe_files  # noqa: E402
from helpers import TOLERANCE, task_config, train_flags  # noqa: E402
from many_scripts import lines  # noqa: E402
from prediction import lines_of, validation_logits  # noqa: E402
from verbs import refused, run  # noqa: E402

import fairseq_peft  # noqa: E402
from fairseq_peft.commands import prepare_data  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.tasks.sentence_classification import SentenceClassificationTask  # noqa: E402
from fairseq_peft.text import bpe  # noqa: E402

#: Residues of proteins, with spaces between them.
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def preprocess(text_dir, name, splits, dest, srcdict):
    """``fairseq-preprocess`` in this process, which has imported fairseq."""
    from fairseq import options
    from fairseq_cli import preprocess

    words = ["--only-source", "--workers", "1", "--srcdict", srcdict, "--destdir", dest]
    for split in splits:
        words += [f"--{split}pref", text_dir / f"{split}.{name}"]
    preprocess.main(options.get_preprocessing_parser().parse_args(list(map(str, words))))
    (dest / "preprocess.log").unlink()


def write_raw(folder, kind):
    """A class is told by one word: pairs of texts in many scripts, or proteins."""
    folder.mkdir()
    rng = random.Random(5)
    for split, count in (("train", 40), ("valid", 9), ("test", 25)):
        rows = lines(2 * count, seed=count)
        labels = [rng.choice(["bad", "good"]) for _ in range(count)]
        told = {"bad": "nul", "good": "beau"}
        if kind == "none":
            rows = [" ".join(rng.choices(RESIDUES, k=rng.randint(3, 60))) for _ in range(count)]
            told = {"bad": " A A A", "good": " W\u00a0W"}
        texts = [f"{told[label]}{row}" for label, row in zip(labels, rows)]
        files = {"review": texts, "label": labels}
        if kind != "none":
            files["review2"] = rows[count:]
        for name, content in files.items():
            text = "".join(f"{line}\n" for line in content)
            (folder / f"{split}.{name}").write_bytes(text.encode())


@pytest.fixture(scope="module", params=["gpt2", "none"])
def trained(request, fairseq, tmp_path_factory):
    """The kind, its data folder, and the save directory of a run on it."""
    place = tmp_path_factory.mktemp("bpe")
    write_raw(place / "raw", request.param)
    bpe_files.write(request.param, place / "files")
    flags = ["--bpe", request.param]
    if request.param == "gpt2":  # its dictionary is published; that of proteins is made here
        flags += ["--bpe-dir", place / "files"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_data, "preprocess", preprocess)
        words = (place / "raw", place / "data", *flags, "--max-positions", 40)
        run("prepare-data", *words)
        run("prepare-data", *words)  # finished already
    done = fairseq("train", *train_flags(place / "data", place / "run", lr=3e-2, max_epoch=2))
    assert done.returncode == 0, done.stderr
    return request.param, place / "data", place / "run"


def rows_of(data):
    texts = lines_of(data.parent / "raw" / "test.review")
    second = data.parent / "raw" / "test.review2"
    return list(zip(texts, lines_of(second))) if second.exists() else texts


def close(classifier, rows, expected):
    found = torch.stack([logits for _, logits in classifier.logits(rows)])
    return torch.allclose(found, expected, atol=TOLERANCE["fp32"], rtol=0)


def test_predictions_are_those_of_validation(trained):
    """By the adapter folder, and by a checkpoint whose data folder says how text is read."""
    kind, data, save_dir = trained
    labels, expected, dataset = validation_logits(save_dir / "checkpoint_best.pt", data)
    assert dataset.num_truncated > 1 and (expected - expected[0]).abs().max() > 1e-2
    for classifier in (
        fairseq_peft.Classifier.load(None, save_dir / "adapter"),
        fairseq_peft.Classifier.load(save_dir / "checkpoint_best.pt"),
    ):
        assert classifier.labels == labels
        assert close(classifier, rows_of(data), expected)


def test_the_folder_says_how_it_reads(trained):
    kind, data, save_dir = trained
    told = json.loads((save_dir / "adapter" / "adapter.json").read_text())
    names = {"gpt2": {"encoder.json", "vocab.bpe"}, "none": set()}[kind]
    assert {bpe.TOLD, "dict.txt", *names} == told["files"].keys() - {"adapter.safetensors"}
    stats = json.loads((data / "stats.json").read_text())
    assert stats["settings"]["bpe"]["kind"] == kind
    assert stats["splits"]["train"]["unknown_tokens"] == 0
    assert stats["settings"]["bpe"]["sha256"].keys() == names


def test_a_changed_file_is_one_sentence(trained, tmp_path, capsys):
    _, _, save_dir = trained
    folder = shutil.copytree(save_dir / "adapter", tmp_path / "adapter")
    run("verify", folder)
    capsys.readouterr()
    for name in sorted({path.name for path in folder.iterdir()} & set(bpe.FILES)):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert f"{name} is not the file" in refused(capsys, "verify", folder)
        (folder / name).unlink()
        assert f"{name} is missing" in refused(capsys, "verify", folder)
        (folder / name).write_bytes(content)
    (folder / "bpecodes").write_text("a b\n")
    assert "bpecodes is there; adapter.json does not name it" in refused(capsys, "verify", folder)


def test_a_prompts_text_is_read_as_the_data_was(trained):
    kind, data, _ = trained
    task = SentenceClassificationTask.setup_task(task_config(data))
    text = {"gpt2": "déjà vu 世界", "none": "A W\u00a0A"}[kind]
    (pieces,) = bpe.find(data).encode([text])
    assert [task.dictionary[i] for i in task.encode_text(text)] == pieces


def test_a_checkpoint_whose_folder_does_not_say_needs_the_flag(trained, tmp_path):
    kind, data, save_dir = trained
    _, expected, _ = validation_logits(save_dir / "checkpoint_best.pt", data)
    for name in ("input0", "input1", "encoder.json", "vocab.bpe"):
        if (data / name).is_dir():
            shutil.copytree(data / name, tmp_path / name)
        elif (data / name).is_file():
            shutil.copy(data / name, tmp_path)
    checkpoint = save_dir / "checkpoint_best.pt"
    if kind == "none":
        with pytest.raises(InputError, match="does not exist: .* or another --bpe"):
            fairseq_peft.Classifier.load(checkpoint, data=tmp_path)
    with pytest.raises(InputError, match="bpecodes does not exist, and --bpe fastbpe reads"):
        fairseq_peft.Classifier.load(checkpoint, data=tmp_path, bpe="fastbpe")
    with pytest.raises(InputError, match="--bpe none would be ignored"):
        fairseq_peft.Classifier.load(None, save_dir / "adapter", bpe="none")
    assert close(
        fairseq_peft.Classifier.load(checkpoint, data=tmp_path, bpe=kind), rows_of(data), expected
    )


def test_another_bpe_of_the_same_texts_is_refused(trained, capsys):
    kind, data, _ = trained
    words = ("prepare-data", data.parent / "raw", data, "--max-positions", 40)
    assert "with other data or settings (" in refused(capsys, *words)
    other = "none" if kind == "gpt2" else "subword_nmt"
    bpe_files.write(other, data.parent / other)
    capsys.readouterr()
    flags = ("--bpe", other, "--bpe-dir", data.parent / other)
    assert " bpe)" in refused(capsys, *words, *flags)


def test_the_baseline_reads_the_same_pieces(trained, tmp_path):
    kind, data, _ = trained
    words = (data.parent / "raw", "--runs", tmp_path, "--name", "mine", "--max-tokens", 38)
    run("tfidf", *words, "--bpe-dir", data)
    result = tmp_path / "mine/baseline/tfidf-pieces-38/seed1/result.json"
    assert json.loads(result.read_text())["rows"]["test"] == 25


@pytest.mark.parametrize("trained", ["gpt2"], indirect=True)
def test_stock_fairseq_reads_and_classifies_the_same(trained, tmp_path):
    """Its hub interface, on the merged model, with the files of the data folder."""
    from fairseq.models.roberta import RobertaModel

    _, data, save_dir = trained
    run("merge", save_dir / "checkpoint_best.pt", tmp_path / "merged.pt")
    flags = bpe.find(data).fairseq_flags()
    hub = RobertaModel.from_pretrained(str(tmp_path), "merged.pt", str(data), **flags).eval()
    rows = rows_of(data)
    classifier = fairseq_peft.Classifier.load(None, save_dir / "adapter")
    (head,) = hub.model.classification_heads
    for row, (_, own) in zip(rows, classifier.logits(rows)):
        tokens = hub.encode(*row)
        if len(tokens) <= 40:
            with torch.no_grad():
                found = hub.predict(head, tokens, return_logits=True)[0]
            assert torch.allclose(found, own, atol=TOLERANCE["fp32"], rtol=0)
    assert min(len(hub.encode(*row)) for row in rows) <= 40

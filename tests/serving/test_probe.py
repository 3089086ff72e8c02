"""``fairseq-peft probe``: frozen features, layer by layer, and a linear classifier on each."""

from __future__ import annotations

import json
import random
import re
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import numpy as np  # noqa: E402
from adapter_folders import base_state, perturbed, save_base  # noqa: E402
from families import Roberta  # noqa: E402
from helpers import TINY, TOLERANCE, random_rows, write_data  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.models.heads import POOLERS  # noqa: E402
from fairseq_peft.serving import probe  # noqa: E402

LEVELS = ["tokens", "embedding", "layer 1", "layer 2"]
CELLS = [(level, pooler) for level in LEVELS for pooler in POOLERS]
CELLS = [cell for cell in CELLS if cell not in (("tokens", "first"), ("embedding", "first"))]
CONFIG = {"model": {"_name": "roberta_small", **TINY}}


def moved(dictionary, seed=3, **given):
    """A tiny model none of whose tensors is where it starts."""
    model = Roberta(dictionary).build(seed=seed, **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def planted_rows(shuffled=False, sizes=(("train", 160), ("valid", 60), ("test", 60))):
    """Rows for ``write_data`` whose class is told by the word w0 alone, or by nothing."""
    rng = random.Random(5)
    rows = {}
    for split, count in sizes:
        labels = [("no", "yes")[i % 2] for i in range(count)]
        words = [
            [rng.randrange(1, 30) for _ in range(rng.randint(3, 12))] + [0] * (label == "yes")
            for label in labels
        ]
        if shuffled:
            rng.shuffle(labels)
        rows[split] = [(rng.sample(row, len(row)), label) for row, label in zip(words, labels)]
    return rows


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("planted"), planted_rows(), ["no", "yes"])


@pytest.fixture(scope="module")
def checkpoint(dictionary, tmp_path_factory):
    """A tiny language model with random weights."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return save_base(path, base_state(dictionary), cfg=CONFIG)


def rows_of(data, model, split="valid"):
    words = probe.read_dictionary(data)
    return probe.load_data(data, words, model.max_positions())[1][split]


def tokens_of(dataset, index):
    """A row on its own, without padding: (1, T)."""
    return torch.tensor([dataset[index]["tokens"]])


# ---- Features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("before", [False, True], ids=["post-norm", "pre-norm"])
def test_the_last_layer_is_what_the_head_reads(dictionary, tmp_path, pooler, before):
    """As ``--pooler`` hands it to the head, for each row alone; some rows are cut."""
    data = write_data(tmp_path, random_rows(longest=60), ["bad", "good"])
    model = moved(dictionary, pooler=pooler, encoder_normalize_before=before)
    dataset = rows_of(data, model)
    assert 0 < dataset.num_truncated < len(dataset) and len(set(dataset.sizes)) > 5
    found = probe.features(model, dataset)["layer 2", pooler]
    read = []
    head = model.classification_heads["head"]
    head.register_forward_pre_hook(lambda head, args: read.append(args[0][:, 0]))
    with torch.no_grad():
        for index in range(len(dataset)):
            model(tokens_of(dataset, index), classification_head_name="head")
    torch.testing.assert_close(
        torch.from_numpy(found), torch.cat(read), atol=TOLERANCE["fp32"], rtol=0
    )


def test_every_layer_is_that_of_stock_fairseq(dictionary, data_folder):
    model = moved(dictionary)
    stock = Roberta(dictionary).stock(model)
    stock.load_state_dict(model.state_dict())
    dataset = rows_of(data_folder, model)
    found = probe.features(model, dataset)
    assert list(found) == CELLS
    for index in (0, 7, 20):
        tokens = tokens_of(dataset, index)
        with torch.no_grad():
            out = stock.encoder.sentence_encoder(tokens, return_all_hiddens=True)
        states = [
            stock.encoder.sentence_encoder.embed_tokens(tokens)[0],
            *(state[:, 0] for state in out["encoder_states"]),
        ]
        for level, state in zip(LEVELS, states):
            wanted = {"first": state[0], "mean": state.mean(0), "max": state.max(0).values}
            for pooler in POOLERS:
                if (level, pooler) in found:
                    difference = found[level, pooler][index] - wanted[pooler].detach().numpy()
                    assert np.abs(difference).max() < TOLERANCE["fp32"], (level, pooler)


def test_rows_do_not_depend_on_their_batch(dictionary, data_folder, monkeypatch):
    model = moved(dictionary)
    dataset = rows_of(data_folder, model, "train")
    together = probe.features(model, dataset)
    monkeypatch.setattr(probe, "MAX_TOKENS", 1)
    alone = probe.features(model, dataset)
    for cell in CELLS:
        assert np.abs(together[cell] - alone[cell]).max() < TOLERANCE["fp32"]
        assert np.ptp(together[cell], axis=0).max() > 0.1  # the rows differ


# ---- Classifiers ---------------------------------------------------------------------------------


def test_a_planted_word_is_found_and_nothing_in_shuffled_labels(dictionary, planted, tmp_path):
    # A mean of 16 numbers cannot tell 30 words apart.
    model = Roberta(dictionary).build(encoder_embed_dim=64)
    shuffled = write_data(tmp_path, planted_rows(shuffled=True), ["no", "yes"])
    found = {}
    for name, data in (("planted", planted), ("shuffled", shuffled)):
        words = probe.read_dictionary(data)
        _, datasets = probe.load_data(data, words, model.max_positions())
        found[name] = {(cell.level, cell.pooler): cell for cell in probe.run(model, datasets)}
        assert list(found[name]) == CELLS
    assert found["planted"]["tokens", "mean"].accuracy["test"] >= 0.95
    accuracies = [cell.accuracy["test"] for cell in found["shuffled"].values()]
    assert 0.4 < sum(accuracies) / len(accuracies) < 0.6
    assert min(accuracies) > 0.25 and max(accuracies) < 0.75


def test_valid_chooses_and_test_has_no_say():
    """Of the strengths that are equally good on valid, the smallest, whatever test says."""
    generator = np.random.default_rng(0)
    features = {split: generator.normal(size=(40, 6)) for split in ("train", "valid", "test")}
    targets = {split: np.arange(40) % 2 for split in features}
    targets["valid"] = (features["valid"][:, 0] > 0).astype(int)
    strength, accuracy = probe.fit(features, targets)
    trials = []
    for one in probe.STRENGTHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe, "STRENGTHS", (one,))
            trials.append(probe.fit(features, targets)[1])
    best = max(trials, key=lambda trial: trial["valid"])
    assert accuracy["valid"] == best["valid"] > min(trial["valid"] for trial in trials)
    assert strength == probe.STRENGTHS[trials.index(best)]
    targets["test"] = 1 - targets["test"]
    again = probe.fit(features, targets)
    assert again[0] == strength and again[1]["test"] == pytest.approx(1 - accuracy["test"])


def test_three_classes():
    generator = np.random.default_rng(0)
    targets = {split: np.arange(90) % 3 for split in ("train", "valid")}
    features = {
        split: np.eye(3)[targets[split]] + 0.1 * generator.normal(size=(90, 3)) for split in targets
    }
    assert probe.fit(features, targets)[1] == {"valid": 1.0}


# ---- The verb ------------------------------------------------------------------------------------


def read_table(text):
    """(level, pooler) -> percent on each split, as the table shows them; the cells in bold."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    head, rule, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert all(re.fullmatch(r"-+:?", cell) for cell in rule)
    shown, bold = {}, []
    for level, *cells in body:
        for title, cell in zip(head[1:], cells):
            pooler, split = title.split()
            if cell.startswith("**"):
                bold.append((level, pooler, split))
            if cell != "-":
                shown.setdefault((level, pooler), {})[split] = float(cell.strip("*"))
    return shown, bold


@pytest.mark.parametrize("splits", [("valid", "test"), ("valid",)], ids=["test", "no test"])
def test_the_table_says_what_the_json_says(checkpoint, planted, tmp_path, capsys, splits):
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    if "test" not in splits:
        for part in ("input0", "label"):
            for ending in ("bin", "idx"):
                (data / part / f"test.{ending}").unlink()
    run("probe", checkpoint, data, "--json", tmp_path / "new" / "probe.json")
    shown, bold = read_table(capsys.readouterr().out)
    told = json.loads((tmp_path / "new" / "probe.json").read_text())
    assert [(cell["features"], cell["pooler"]) for cell in told["cells"]] == list(shown) == CELLS
    for cell in told["cells"]:
        accuracy = {split: cell[f"{split}_accuracy"] for split in splits}
        rounded = {split: round(100 * value, 1) for split, value in accuracy.items()}
        assert shown[cell["features"], cell["pooler"]] == rounded
    best = max(told["cells"], key=lambda cell: cell["valid_accuracy"])
    assert told["best"] == best
    assert bold == [(best["features"], best["pooler"], split) for split in splits]
    assert told["rows"] == {"train": 160, "valid": 60, **({"test": 60} if "test" in splits else {})}
    assert told["model"] == str(checkpoint) and told["labels"] == ["no", "yes"]
    assert told["majority"] == dict.fromkeys(splits, 0.5)


def test_half_precision_is_read(dictionary, planted, tmp_path):
    """As the same values in fp32; so is a fine-tuned model, whose head is passed over."""
    state = {name: tensor.half() for name, tensor in moved(dictionary).state_dict().items()}
    told = []
    for name, kind in (("half", torch.half), ("whole", torch.float)):
        path = tmp_path / f"{name}.pt"
        save_base(path, {key: value.to(kind) for key, value in state.items()}, cfg=CONFIG)
        run("probe", path, planted, "--json", tmp_path / f"{name}.json")
        told.append(json.loads((tmp_path / f"{name}.json").read_text())["cells"])
    assert told[0] == told[1]


def test_bf16(checkpoint, planted, capsys):
    words = probe.read_dictionary(planted)
    one, other = (
        probe.read(checkpoint, words, planted, precision=precision)
        for precision in ("fp32", "bf16")
    )
    dataset = rows_of(planted, one)
    exact, rounded = (probe.features(model, dataset)["layer 2", "mean"] for model in (one, other))
    assert 0 < np.abs(exact - rounded).max() < TOLERANCE["bf16"]
    run("probe", checkpoint, planted, "--precision", "bf16")
    assert "Best on valid: " in capsys.readouterr().out


def test_random_weights_are_those_of_the_seed(planted):
    words = probe.read_dictionary(planted)
    state = torch.get_rng_state()
    one, same, other = (probe.untrained("roberta_small", words, seed) for seed in (1, 1, 2))
    weights = [model.encoder.sentence_encoder.layers[0].fc1.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """As ``planted``, for models that are not tiny."""
    sizes = (("train", 40), ("valid", 10), ("test", 20))
    rows = planted_rows(sizes=sizes)
    return write_data(tmp_path_factory.mktemp("few"), rows, ["no", "yes"])


@pytest.mark.parametrize("value, accuracy", [(1.0, 1.0), (0.0, 0.5)], ids=["told", "untold"])
def test_embeddings_alone(few, tmp_path, value, accuracy):
    """What svd-embeddings writes: w0 is told from the rest, or no word from another."""
    num_rows = len(probe.read_dictionary(few))
    arrays = {"embeddings": np.zeros((num_rows, 512), np.float32), "lm_bias": np.zeros(num_rows)}
    arrays["embeddings"][4] = value
    np.savez(tmp_path / "e.npz", **arrays)
    words = ("--init-embeddings", tmp_path / "e.npz", "--arch", "roberta_small")
    run("probe", few, *words, "--json", tmp_path / "found.json")
    told = json.loads((tmp_path / "found.json").read_text())
    (mean,) = (c for c in told["cells"] if (c["features"], c["pooler"]) == ("tokens", "mean"))
    assert mean["test_accuracy"] == accuracy
    assert (told["model"], told["init_embeddings"]) == (None, str(tmp_path / "e.npz"))
    assert told["max_tokens"] == 256


def test_random_is_a_model_of_its_own(few, tmp_path, capsys):
    run("probe", few, "--random", "--json", tmp_path / "found.json")
    told = json.loads((tmp_path / "found.json").read_text())
    assert (told["model"], told["arch"], told["seed"]) == (None, "roberta_small", 1)
    assert told["cells"][-1]["features"] == "layer 4"


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["missing.pt", "DATA"], "missing.pt does not exist"),
        (["MODEL", "nowhere"], "dict.txt does not exist"),
        (["DATA"], "Nothing to probe"),
        (["MODEL", "DATA", "--random"], "--random"),
        (["DATA", "--random", "--init-embeddings", "x.npz"], "--init-embeddings x.npz"),
        (["MODEL", "DATA", "--arch", "roberta_small"], "--arch roberta_small would be ignored"),
        (["MODEL", "DATA", "--seed", "3"], "--seed 3 would be ignored"),
        (["DATA", "--random", "--arch", "roberta_tiny"], "--arch roberta_tiny"),
        (["DATA", "--random", "--trust-checkpoint"], "--trust-checkpoint would be ignored"),
        (["DATA", "--init-embeddings", "missing.npz"], "missing.npz cannot be read"),
        (["MODEL", "DATA", "--json", "DATA"], "is a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said, checkpoint, planted, capsys):
    places = {"MODEL": checkpoint, "DATA": planted}
    assert said in refused(capsys, "probe", *(places.get(word, word) for word in words))


def test_code_is_run_for_those_who_trust_it(dictionary, planted, tmp_path, capsys):
    path = save_base(tmp_path / "code.pt", base_state(dictionary), cfg=CONFIG, code=random.Random)
    assert "could run code" in refused(capsys, "probe", path, planted)
    run("probe", path, planted, "--trust-checkpoint")
    assert len(read_table(capsys.readouterr().out)[0]) == len(CELLS)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_folder_without_what_is_needed(split, checkpoint, planted, tmp_path, capsys):
    rows = planted_rows()
    del rows[split]
    data = write_data(tmp_path / "data", rows, ["no", "yes"])
    assert f"no split '{split}'" in refused(capsys, "probe", checkpoint, data)


def test_train_with_one_class(checkpoint, tmp_path, capsys):
    rows = planted_rows()
    rows["train"] = [row for row in rows["train"] if row[1] == "no"]
    data = write_data(tmp_path / "data", rows, ["no", "yes"])
    assert "only the class 'no'" in refused(capsys, "probe", checkpoint, data)


def test_another_dictionary(dictionary, checkpoint, planted, tmp_path, capsys):
    fewer = write_data(tmp_path / "fewer", {}, ["no", "yes"], words=29)
    line = refused(capsys, "probe", checkpoint, fewer)
    assert "34 rows" in line and "35" in line
    swapped = save_base(tmp_path / "model.pt", base_state(dictionary), cfg=CONFIG)
    lines = (planted / "input0" / "dict.txt").read_text().splitlines()
    (tmp_path / "dict.txt").write_text("\n".join(lines[::-1]) + "\n")
    assert "another dictionary" in refused(capsys, "probe", swapped, planted)
    named = tmp_path / "named" / "model.pt"
    named.parent.mkdir()
    save_base(named, base_state(dictionary), cfg=CONFIG, task_state={"dictionary": "another"})
    assert "is not the dictionary" in refused(capsys, "probe", named, planted)


def test_a_checkpoint_with_a_method_is_sent_to_merge(dictionary, planted, tmp_path, capsys):
    model = perturbed(dictionary, base_state(dictionary), "lora")
    path = save_base(tmp_path / "lora.pt", model.state_dict(), cfg=CONFIG)
    assert "fairseq-peft merge" in refused(capsys, "probe", path, planted)

"""``fairseq-peft combine``: adapter folders of LoRA in, one out."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.checkpoints import finetuned  # noqa: E402
from fairseq_peft.combining.combine import combine  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.models import folder  # noqa: E402


@pytest.fixture(scope="module")
def base(dictionary):
    return adapter_folders.base_state(dictionary)


@pytest.fixture(scope="module")
def write(dictionary, base, tmp_path_factory):
    """``write("name", seed=2, lora_rank=4)``: an adapter folder on the base."""
    place = tmp_path_factory.mktemp("folders")

    def make(name, peft="lora", seed=2, on=None, **given):
        path = place / name / "adapter"
        if not path.exists():
            told = {key: given.pop(key) for key in ("labels", "input", "kind") if key in given}
            weights = base if on is None else on
            model = adapter_folders.perturbed(dictionary, weights, peft, seed, **given)
            adapter_folders.write(path, model, weights, **told)
        return path

    return make


@pytest.fixture(scope="module")
def one(write):
    return write("one", seed=2, lora_rank=3, lora_alpha=5.0)


@pytest.fixture(scope="module")
def two(write):
    return write("two", seed=3, lora_rank=3, lora_rslora=True)


@pytest.fixture(scope="module")
def wide(write):
    """Other ranks and other targets."""
    given = {"peft_targets": "q_proj,fc1", "lora_rank": 5, "lora_rank_pattern": "layers.1.fc1=2"}
    return write("wide", seed=4, **given)


def deltas(path, base):
    """Name of a weight -> what the folder's model, merged, has beyond the base."""
    model = folder.load(adapter_folder.read(path), base)
    model.merge()
    merged = model.state_dict()
    return {
        name: merged[name] - base[name]
        for name in base
        if name in merged and not torch.equal(merged[name], base[name])
    }


def close(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def weighted(base, *terms):
    total = {}
    for path, weight in terms:
        for name, delta in deltas(path, base).items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def refused(capsys, *words):
    assert cli.main(["combine", *map(str, words)]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == "" and line.startswith("fairseq-peft combine: error: ")
    return line


# ---- What comes out --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_the_weighted_sum_is_exact(one, two, wide, base, tmp_path, how):
    """Of other ranks, scales and targets. The result is put on the base as any other folder."""
    terms = [(one, 0.5), (two, -2.0), (wide, 1.5)]
    more = {"rank": 11} if how == "svd" else {}
    made = combine(terms, tmp_path / "out", how, **more)
    close(deltas(tmp_path / "out", base), weighted(base, *terms))
    assert made.error < 1e-6
    assert made.ranks["layers.0.self_attn.q_proj"] == 3 + 3 + 5
    assert made.ranks["layers.0.self_attn.v_proj"] == 3 + 3
    assert made.ranks["layers.1.fc1"] == 2


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
def test_a_negated_adapter_undoes_it(one, base, tmp_path, how):
    combine([(one, -1.0)], tmp_path / "minus", how)
    close(deltas(tmp_path / "minus", base), weighted(base, (one, -1.0)))
    combine([(one, 1.0), (tmp_path / "minus", 1.0)], tmp_path / "nothing")
    model = folder.load(adapter_folder.read(tmp_path / "nothing"), base)
    model.merge()
    merged = model.state_dict()
    assert all(torch.allclose(merged[n], base[n], atol=1e-5) for n in base if n in merged)


def test_embeddings_add_up(write, base, tmp_path):
    given = {"peft_targets": "embed_tokens,q_proj", "lora_rank": 2}
    terms = [(write("words", seed=5, **given), 1.0), (write("words2", seed=6, **given), -0.5)]
    for how in ("cat", "svd"):
        combine(terms, tmp_path / how, how, **({"rank": 4} if how == "svd" else {}))
        found = deltas(tmp_path / how, base)
        assert any("embed_tokens" in name for name in found)
        close(found, weighted(base, *terms))


def test_svd_is_of_the_rank_and_says_how_far_off(one, two, base, tmp_path):
    terms = [(one, 1.0), (two, 1.0)]
    made = combine(terms, tmp_path / "out", "svd", rank=2)
    assert set(made.ranks.values()) == {2}
    found, exact = deltas(tmp_path / "out", base), weighted(base, *terms)
    off = sum((found[n] - exact[n]).norm() ** 2 for n in exact) ** 0.5
    whole = sum(exact[n].norm() ** 2 for n in exact) ** 0.5
    assert made.error == pytest.approx((off / whole).item(), rel=1e-3) and made.error > 0.05


@pytest.mark.parametrize(
    "how", ["linear", "ties", "dare_linear", "dare_ties", "ties_svd", "dare_ties_svd"]
)
def test_each_way_makes_a_folder_that_loads(one, two, base, tmp_path, how):
    more = {} if how == "linear" else {"density": 0.5}
    made = combine([(one, 1.0), (two, 0.5)], tmp_path / "out", how, **more)
    assert set(made.ranks.values()) == {3} and made.error > 1e-3
    assert set(deltas(tmp_path / "out", base)) == set(deltas(one, base))


def test_the_seed_decides_what_dare_keeps(one, two, tmp_path):
    def draw(name, seed):
        given = {"density": 0.5, "seed": seed}
        combine([(one, 1.0), (two, 1.0)], tmp_path / name, "dare_linear", **given)
        return adapter_folder.read(tmp_path / name).tensors

    first, again, other = draw("a", 1), draw("b", 1), draw("c", 2)
    name = next(n for n in first if n.endswith("lora_A"))
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


# ---- The head and the description ------------------------------------------------------------


def heads(path):
    return {n: t for n, t in adapter_folder.read(path).tensors.items() if n.startswith("class")}


def test_the_head_is_the_first_ones(one, two, tmp_path):
    combine([(two, 1.0), (one, 1.0)], tmp_path / "out")
    found, wanted = heads(tmp_path / "out"), heads(two)
    assert found and all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_the_head_can_be_the_mean(one, two, tmp_path):
    combine([(one, 3.0), (two, 1.0)], tmp_path / "out", head="mean")
    found, a, b = heads(tmp_path / "out"), heads(one), heads(two)
    assert found and all(torch.allclose(found[n], 0.75 * a[n] + 0.25 * b[n]) for n in a)


def test_the_folder_tells_where_it_comes_from(one, two, tmp_path, capsys):
    words = ["combine", f"{one}=0.5", str(two), "--how", "ties", "--density", "0.5"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"+0.5 {one} +1 {two}" in shown and f"head: of {one}" in shown
    assert "ties, rank 3 in 4 matrices" in shown and "% off the weighted sum" in shown
    told = adapter_folder.read(tmp_path / "out").description
    origin = told["origin"]
    assert origin["verb"] == "combine" and origin["how"] == "ties" and origin["density"] == 0.5
    assert [part["weight"] for part in origin["folders"]] == [0.5, 1.0]
    assert [part["path"] for part in origin["folders"]] == [str(one), str(two)]
    assert (
        origin["folders"][1]["json_sha256"] == adapter_folder.read(two).description["json_sha256"]
    )
    # What it can do has not been measured.
    assert "metrics" not in told and "seed" not in told
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "out")]) == 0
    assert f"+0.5 {one}, +1 {two}" in capsys.readouterr().out


def test_counts_and_targets(one, wide, tmp_path):
    combine([(one, 1.0), (wide, 1.0)], tmp_path / "out")
    found = adapter_folder.read(tmp_path / "out")
    number = sum(t.numel() for n, t in found.tensors.items() if "lora_" in n)
    first = adapter_folder.read(one).description["parameters"]
    told = found.description["parameters"]
    assert told["method"] == number and told["head"] == first["head"]
    assert told["total"] - number == first["total"] - first["method"]
    assert len(found.description["method"]["targets"]) == 6


# ---- What makes no sense ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--how", "sum"], "--how 'sum' is unknown: give one of cat, linear"),
        (["--how", "ties"], "--how ties needs --density"),
        (["--how", "ties", "--density", "0"], "--density 0 is not in (0, 1]"),
        (["--how", "linear", "--density", "0.5"], "--density 0.5 would be ignored: --how linear"),
        (["--rank", "4"], "--rank 4 would be ignored: --how cat"),
        (["--how", "svd", "--rank", "0"], "--rank 0 is not a rank"),
        (
            ["--how", "svd", "--rank", "7"],
            "--rank 7 is more than the result has anywhere: 6 hold it",
        ),
        (["--how", "ties_svd", "--rank", "17", "--density", "1"], "anywhere: 16 hold it"),
        (["--seed", "4"], "--seed 4 would be ignored: --how cat"),
        (["--head", "none"], "--head 'none' is unknown: give first or mean"),
    ],
)
def test_bad_choices_are_refused(one, two, tmp_path, capsys, words, message):
    assert message in refused(capsys, one, two, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight", ["0", "nan", "inf"])
def test_bad_weights_are_refused(one, tmp_path, capsys, weight):
    assert "Give a number other" in refused(capsys, f"{one}={weight}", "--out", tmp_path / "out")
    line = refused(capsys, f"{one}=much", "--out", tmp_path / "out")
    assert "'much' is no weight" in line


def test_a_folder_whose_name_looks_like_a_weight(one, tmp_path):
    copy = shutil.copytree(one, tmp_path / "lr=0.1")
    assert cli.main(["combine", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["combine", f"{copy}=-1", "--out", str(tmp_path / "minus")]) == 0


def test_it_does_not_write_over_what_is_there(one, two, tmp_path, capsys):
    copy = shutil.copytree(one, tmp_path / "out")
    assert "exists" in refused(capsys, one, two, "--out", copy)
    assert cli.main(["combine", str(copy), str(two), "--out", str(copy), "--force"]) == 0
    assert len(adapter_folder.read(copy).description["origin"]["folders"]) == 2


def test_what_cannot_be_combined(write, one, wide, dictionary, tmp_path, capsys):
    def line(*words):
        return refused(capsys, *words, "--out", tmp_path / "out")

    assert "have the ranks 3, 5. Give --how cat or svd" in line(one, wide, "--how", "linear")
    assert "is of --peft ia3" in line(one, write("ia3", "ia3"))
    assert "is of --peft lora+bitfit" in line(one, write("both", "lora,bitfit"))
    pissa = write("pissa", lora_init="pissa")
    assert "--lora-init pissa, so what it holds does not add up" in line(one, pissa)
    biases = write("biases", lora_bias="all")
    assert "--lora-bias all, so what it holds does not add up" in line(biases)
    other = write("other", on=adapter_folders.base_state(dictionary, seed=5))
    assert "belongs to another base" in line(one, other)
    heads = write("heads", encoder_attention_heads=2)
    assert "--encoder-attention-heads 2" in line(one, heads)
    assert "no adapter folder" in line(one, tmp_path)
    later = shutil.copytree(one, tmp_path / "later")
    described = adapter_folder.read(later).description
    described["method"]["knobs"]["phase"] = 2
    rest = {k: v for k, v in described.items() if k not in ("json_sha256", "schema")}
    (later / adapter_folder.DESCRIPTION).write_bytes(adapter_folder.seal(rest))
    assert "other knobs than this version" in line(one, later)
    assert not (tmp_path / "out").exists()


def test_heads_that_have_no_mean(write, one, two, tmp_path, capsys):
    def line(*words):
        return refused(capsys, *words, "--head", "mean", "--out", tmp_path / "out")

    assert "a mean takes positive ones" in line(one, f"{two}=-1")
    assert "good, bad" in line(one, write("turned", labels=["good", "bad"]))
    linear = write("linear", classifier_head="linear")
    assert "has a linear head" in line(one, linear)
    # Their updates add up all the same.
    assert cli.main(["combine", str(one), str(linear), "--out", str(tmp_path / "sum")]) == 0


def test_what_a_row_has_is_that_of_the_first(write, one, tmp_path, capsys):
    """Labels that are more likely than not are no class: a sum answers as its folders do."""
    labels = write("labels", kind="labels")
    combine([(labels, 0.5), (one, 0.5)], tmp_path / "both")
    assert adapter_folder.read(tmp_path / "both").description["kind"] == "labels"
    combine([(one, 0.5), (labels, 0.5)], tmp_path / "other")
    assert "kind" not in adapter_folder.read(tmp_path / "other").description
    words = (labels, one, "--out", tmp_path / "x", "--head", "mean")
    assert "answers with classes, " in refused(capsys, *words)


@pytest.mark.parametrize("name", ["t5", "gpt2", "bart"])
def test_folders_of_models_that_write_text_add_up(name, tmp_path):
    """Merged into the base, the combination is the sum of what the folders are."""
    if name == "bart":
        import hf_models

        hf_models.write_encoder_decoder(tmp_path / "base", name)
        base = tmp_path / "base" / "model.pt"
        for number in ("1", "2"):
            hf_models.write_encoder_decoder_adapter(
                tmp_path / number, tmp_path / "base", name, "lora", lora_rank=int(number)
            )
    else:
        from hf_families import Kind

        kind, base = Kind(name, tmp_path), tmp_path / "base"
        kind.write(base)
        for number in ("1", "2"):
            kind.write_adapter(tmp_path / number, base, "lora", int(number), lora_rank=int(number))

    def merged(path):
        _, model = finetuned.from_folder(path, base, of_any_task=True)
        names = model.state_dict().keys() - model.added
        before = {key: model.state_dict()[key].clone() for key in names}
        model.merge()
        after = model.state_dict()
        return {key: after[key] - before[key] for key in names}

    made = combine([(tmp_path / "1", 0.5), (tmp_path / "2", -2.0)], tmp_path / "sum")
    assert made.head_bytes == 0 and set(made.ranks.values()) == {3}
    one, two, found = (merged(tmp_path / path) for path in ("1", "2", "sum"))
    assert one.keys() == found.keys()
    for key in found:
        torch.testing.assert_close(found[key], 0.5 * one[key] - 2 * two[key])
    assert sum(bool(delta.any()) for delta in found.values()) == len(made.ranks)
    with pytest.raises(InputError, match="writes text, and has no head"):
        combine([(tmp_path / "1", 1.0)], tmp_path / "mean", head="mean")

"""Embeddings from counts, against brute force and against words whose meaning is known."""

import struct
from math import log

import numpy as np
import pytest

from fairseq_peft.cli import main
from fairseq_peft.errors import InputError
from fairseq_peft.text import svd
from fairseq_peft.text.binarised import MAGIC, read_dictionary, read_tokens

V = 30


def flat(sentences):
    offsets = np.cumsum([0] + [len(s) for s in sentences])
    return np.concatenate([np.array(s, dtype=np.int32) for s in sentences]), offsets


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    return [list(rng.integers(4, 20, size=rng.integers(1, 12))) for _ in range(60)]


def brute_force_counts(sentences, window):
    counts = np.zeros((V, V))
    for sentence in sentences:
        for i, word in enumerate(sentence):
            for j, context in enumerate(sentence):
                if 0 < abs(i - j) <= window:
                    counts[word, context] += 1 / abs(i - j)
    return counts


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("chunk", [7, 10**6])  # chunks end inside sentences
def test_counts_equal_brute_force(toy, window, chunk, monkeypatch):
    monkeypatch.setattr(svd, "CHUNK_TOKENS", chunk)
    counts = svd.count_cooccurrences(*flat(toy), V, window)
    np.testing.assert_allclose(counts.toarray(), brute_force_counts(toy, window), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [1.0, 0.75])
def test_ppmi_equals_brute_force(toy, smoothing):
    counts = brute_force_counts(toy, 5)
    context = counts.sum(axis=0) ** smoothing
    expected = np.zeros((V, V))
    for word, other in zip(*np.nonzero(counts)):
        p_given_word = counts[word, other] / counts[word].sum()
        expected[word, other] = max(0, log(p_given_word / (context[other] / context.sum())))
    found = svd.ppmi(svd.count_cooccurrences(*flat(toy), V, 5), smoothing)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-5)
    assert found.nnz == np.count_nonzero(found.toarray()) < np.count_nonzero(counts)


def test_truncated_svd_equals_lapack():
    matrix = np.random.default_rng(0).random((80, 80)) ** 4
    matrix[matrix < 0.3] = 0
    vectors, values = svd.truncated_svd(svd.sparse.csr_matrix(matrix, dtype=np.float32), 10)
    expected_vectors, expected_values, _ = np.linalg.svd(matrix)
    np.testing.assert_allclose(values, expected_values[:10], rtol=1e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-4)
    assert abs(vectors[:, 0] @ expected_vectors[:, 0]) > 0.9999


def test_embeddings_have_the_std_and_pad_is_zero(toy):
    embeddings = svd.svd_embeddings(*flat(toy), V, dim=8, std=0.03)
    assert embeddings.shape == (V, 8) and embeddings.dtype == np.float32
    seen = np.unique(flat(toy)[0])
    assert embeddings[seen].std() == pytest.approx(0.03, rel=1e-4)
    assert not embeddings[1].any()


def test_rows_never_seen_are_random_with_the_same_std():
    embeddings = svd.svd_embeddings(*flat([[4, 5, 6, 4, 5]] * 3), 2000, dim=16)
    unseen = embeddings[7:]
    assert unseen.std() == pytest.approx(0.03, rel=0.05)
    assert len(np.unique(unseen[:, 0])) == len(unseen)


def test_more_dimensions_than_words_leave_zeros_not_nan():
    embeddings = svd.svd_embeddings(*flat([[4, 5, 6, 4, 5]] * 3), 10, dim=64)
    assert embeddings.shape == (10, 64) and np.isfinite(embeddings).all()


def test_same_seed_same_bits_other_seed_other_rows(toy):
    first, again, other = (svd.svd_embeddings(*flat(toy), V, dim=8, seed=s) for s in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert (first[25] != other[25]).any()


def test_planted_synonyms_are_nearest_neighbours():
    """10 and 11 never stand together but share their company; so do 12 and 13, in other company."""
    rng = np.random.default_rng(0)
    sentences = []
    for _ in range(400):
        topic = int(rng.integers(2))
        company = [20 + 5 * topic + int(rng.integers(5)) for _ in range(4)]
        company.insert(2, 10 + 2 * topic + int(rng.integers(2)))
        sentences.append(company)
    embeddings = svd.svd_embeddings(*flat(sentences), V, dim=8)
    for word, synonym in ((10, 11), (11, 10), (12, 13), (13, 12)):
        neighbours = [n for n, _ in svd.nearest(embeddings, word) if 10 <= n <= 13]
        assert neighbours[0] == synonym
    row, cosine = svd.nearest(embeddings, 10, 1)[0]
    a, b = embeddings[10], embeddings[row]
    assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_bias_follows_the_counts():
    tokens = np.array([7] * 50 + [5] * 10 + [9] * 2 + [4], dtype=np.int32)
    bias = svd.unigram_bias(tokens, V)
    assert bias.shape == (V,) and bias.dtype == np.float32
    ordered = [bias[i] for i in (7, 5, 9, 4, 20)]
    assert all(a > b for a, b in zip(ordered, ordered[1:]))
    assert bias[7] - bias[5] == pytest.approx(log(5), abs=1e-5)
    assert bias[[7, 5, 9, 4]].mean() == pytest.approx(0, abs=1e-5)
    assert np.ptp(bias[10:]) == 0  # unseen tokens share one finite value


def test_ids_outside_the_dictionary_are_refused():
    with pytest.raises(InputError, match="from 4 to 40, but the dictionary has 30 rows"):
        svd.svd_embeddings(*flat([[4, 40]]), V, dim=2)


def test_text_without_pairs_is_refused():
    with pytest.raises(InputError, match="hold no pair"):
        svd.svd_embeddings(*flat([[4], [5]]), V, dim=2)


@pytest.fixture
def data_bin(tmp_path):
    """cat and dog in one company, car and van in another; pieces as sentencepiece writes them."""
    words = ["cat", "dog", "car", "van", "eats", "sleeps", "purrs", "wheel", "motor", "road"]
    lines = [f"\u2581{word} 1" for word in words]
    (tmp_path / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    sentences = []
    for _ in range(300):
        topic = int(rng.integers(2))
        company = [4 + 4 + 3 * topic + int(rng.integers(3)) for _ in range(3)]
        company.insert(1, 4 + 2 * topic + int(rng.integers(2)))
        sentences.append([*company, 2])
    tokens, offsets = flat(sentences)
    tokens.astype("<u2").tofile(tmp_path / "train.bin")
    sizes = np.diff(offsets).astype("<i4")
    pointers = (offsets[:-1] * 2).astype("<i8")
    header = MAGIC + struct.pack("<QBQ", 1, 8, len(sizes))
    (tmp_path / "train.idx").write_bytes(header + sizes.tobytes() + pointers.tobytes())
    return tmp_path


def test_verb_writes_arrays_of_the_dictionary(data_bin, tmp_path, capsys):
    out = tmp_path / "out" / "init.npz"
    flags = ["--dim", "6", "--out", str(out), "--neighbours", "cat", "van"]
    assert main(["svd-embeddings", str(data_bin), *flags]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["embeddings", "lm_bias"]
        assert arrays["embeddings"].shape == (4 + 10 + 1, 6)
        assert arrays["lm_bias"].shape == (15,)
        assert {arrays[name].dtype for name in arrays} == {np.dtype("float32")}
    cat, van = capsys.readouterr().out.splitlines()
    assert cat.startswith("cat: dog ") and van.startswith("van: car ")
    assert [path.name for path in out.parent.iterdir()] == ["init.npz"]


def test_verb_knows_the_dimension_of_an_architecture(data_bin, tmp_path):
    out = tmp_path / "init.npz"
    assert main(["svd-embeddings", str(data_bin), "--arch", "roberta_base", "--out", str(out)]) == 0
    with np.load(out) as arrays:
        assert arrays["embeddings"].shape == (15, 768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "dict.txt").unlink(), "dict.txt does not exist"),
        (lambda d: (d / "dict.txt").write_bytes(b"\xe9t\xe9 1\n"), "is not UTF-8"),
        (lambda d: (d / "train.idx").unlink(), "train.idx does not exist"),
        (lambda d: (d / "train.idx").write_bytes(b"TNTIDX"), "not fairseq's `mmap` format"),
        (lambda d: (d / "train.bin").write_bytes(b"1234"), "cut short"),
    ],
)
def test_verb_says_in_a_line_what_is_wrong(data_bin, capsys, change, message):
    change(data_bin)
    out = data_bin / "init.npz"
    assert main(["svd-embeddings", str(data_bin), "--dim", "4", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dim", "0", "--out", "a.npz"], "--dim is 0"),
        (["--dim", "4", "--out", "a.pt"], "ends in .npz"),
        (["--arch", "bart_base", "--out", "a.npz"], "none of roberta_small"),
        (["--dim", "4", "--out", "a.npz", "--neighbours", "zebra"], "'zebra' is a piece"),
    ],
)
def test_verb_refuses(data_bin, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(data_bin)
    assert main(["svd-embeddings", str(data_bin), *flags]) == 1
    assert message in capsys.readouterr().err


def test_reads_what_fairseq_writes(tmp_path):
    indexed_dataset = pytest.importorskip("fairseq.data.indexed_dataset")
    torch = pytest.importorskip("torch")
    sentences = [[4, 5, 2], [2], [6, 600, 7, 2]]
    builder = indexed_dataset.MMapIndexedDatasetBuilder(str(tmp_path / "train.bin"), np.uint16)
    for sentence in sentences:
        builder.add_item(torch.tensor(sentence))
    builder.finalize(str(tmp_path / "train.idx"))
    tokens, offsets = read_tokens(tmp_path / "train")
    assert tokens.tolist() == sum(sentences, []) and offsets.tolist() == [0, 3, 4, 8]


def test_dictionary_rows(tmp_path):
    lines = "a 1\nb 1\nc 7 #fairseq:overwrite\n\u2028 1\n"
    (tmp_path / "dict.txt").write_bytes(lines.encode("utf-8"))
    rows = read_dictionary(tmp_path / "dict.txt")
    assert rows == ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "\u2028", "<mask>"]

"""Token embeddings from counts: a truncated SVD of the corpus's PPMI matrix, before any training.

Shape letters: V tokens of the vocabulary, C model dim, N tokens of the corpus.

``count[w, c]`` sums ``1 / distance`` over the places where c stands within `window` tokens of w in
the same sentence. ``ppmi[w, c] = max(0, log(count[w, c] / (count[w, .] * p(c))))``, where ``p(c)``
is proportional to ``count[., c] ** smoothing``. With ``ppmi ~ U S V^T`` the embeddings are
``U S^(1/2)``, scaled to one standard deviation.
Source: Levy, Goldberg and Dagan 2015, TACL 3, sections 2 and 3; the SVD is algorithm 4.4 of Halko,
Martinsson and Tropp 2011, arXiv:0909.4061.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

from fairseq_peft.errors import InputError

NUM_OVERSAMPLES = 32
CHUNK_TOKENS = 8_000_000


def count_cooccurrences(
    tokens: np.ndarray, offsets: np.ndarray, num_rows: int, window: int = 5
) -> sparse.csr_matrix:
    """Symmetric co-occurrence counts, each pair weighted by one over its distance.

    Shapes: tokens (N,), offsets (sentences + 1,) -> sparse (V, V).

    Raises:
        InputError: a token id outside ``0 <= id < num_rows``.
    """
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < num_rows:
        raise InputError(
            f"Token ids run from {tokens.min()} to {tokens.max()}, but the dictionary has "
            f"{num_rows} rows. Use the dict.txt that the corpus was binarised with."
        )
    sentence = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    counts = sparse.csr_matrix((num_rows, num_rows), dtype=np.float32)
    for start in range(0, len(tokens), CHUNK_TOKENS):
        for distance in range(1, window + 1):
            stop = max(min(start + CHUNK_TOKENS, len(tokens) - distance), start)
            left, right = slice(start, stop), slice(start + distance, stop + distance)
            same = sentence[left] == sentence[right]
            pairs = tokens[left][same].astype(np.int64) * num_rows + tokens[right][same]
            counts = counts + _count_pairs(pairs, num_rows) * np.float32(1 / distance)
    return (counts + counts.T).tocsr()


def _count_pairs(pairs: np.ndarray, num_rows: int) -> sparse.csr_matrix:
    """``pairs`` holds ``row * num_rows + column`` and is sorted in place."""
    pairs.sort()
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]])[: len(pairs)])
    keys = pairs[first]
    data = np.diff(first, append=len(pairs)).astype(np.float32)
    rows, columns = np.divmod(keys, num_rows)
    starts = np.searchsorted(rows, np.arange(num_rows + 1))
    return sparse.csr_matrix((data, columns.astype(np.int32), starts), shape=(num_rows, num_rows))


def ppmi(counts: sparse.csr_matrix, smoothing: float = 0.75) -> sparse.csr_matrix:
    """Positive pointwise mutual information, contexts smoothed by a power (rare ones count more).

    Shapes: (V, V) -> (V, V); entries at or below zero are not stored.
    """
    word = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    context = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() ** smoothing
    with np.errstate(divide="ignore"):
        log_word = np.log(word).astype(np.float32)
        log_context = np.log(context / max(context.sum(), 1e-30)).astype(np.float32)
    result = counts.tocsr().copy()
    np.log(result.data, out=result.data)
    result.data -= np.repeat(log_word, np.diff(result.indptr))
    result.data -= log_context[result.indices]
    np.maximum(result.data, 0, out=result.data)
    result.eliminate_zeros()
    return result


def truncated_svd(
    matrix: sparse.csr_matrix,
    dim: int,
    seed: int = 1,
    num_iterations: int = 2,
    num_threads: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and singular values by a randomised subspace iteration.

    Shapes: sparse (V, V) -> U (V, k), S (k,), largest first; ``k = min(dim, rank)``.
    """
    rng = np.random.default_rng(seed)
    transposed = matrix.T.tocsr()
    with ThreadPoolExecutor(num_threads) as pool:
        width = min(dim + NUM_OVERSAMPLES, matrix.shape[1])
        basis = rng.standard_normal((matrix.shape[1], width), dtype=np.float32)
        basis = _orthonormal(_multiply(pool, matrix, basis))
        for _ in range(num_iterations):
            basis = _orthonormal(_multiply(pool, transposed, basis))
            basis = _orthonormal(_multiply(pool, matrix, basis))
        rotation, values = _rotation(_multiply(pool, transposed, basis))
    return (basis @ rotation)[:, :dim], values[:dim]


def _multiply(pool: ThreadPoolExecutor, matrix: sparse.csr_matrix, dense: np.ndarray) -> np.ndarray:
    """Sparse times dense in strips of columns that fit the cache; scipy lets go of the GIL."""
    strips = (np.ascontiguousarray(dense[:, i : i + 64]) for i in range(0, dense.shape[1], 64))
    return np.hstack(list(pool.map(matrix.__matmul__, strips)))


def _rotation(tall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(W, S)`` such that the columns of ``tall @ W`` are orthogonal and S long, longest first."""
    squares, vectors = np.linalg.eigh((tall.T @ tall).astype(np.float64))
    keep = np.flatnonzero(squares > 1e-7 * max(squares[-1:].sum(), 1e-30))[::-1]
    return vectors[:, keep].astype(np.float32), np.sqrt(squares[keep]).astype(np.float32)


def _orthonormal(tall: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns; the Gram matrix is 30 times faster than QR here."""
    rotation, values = _rotation(tall)
    return tall @ (rotation / values)


def svd_embeddings(
    tokens: np.ndarray,
    offsets: np.ndarray,
    num_rows: int,
    dim: int,
    seed: int = 1,
    window: int = 5,
    smoothing: float = 0.75,
    std: float = 0.03,
    pad: int | None = 1,
    num_threads: int = 2,
) -> np.ndarray:
    """Embeddings for a model to start from; rows never seen are random, row ``pad`` is zero.

    Shapes: tokens (N,), offsets (sentences + 1,) -> (V, C) float32.

    Raises:
        InputError: the corpus holds no two tokens side by side, or an id is outside the vocabulary.
    """
    matrix = ppmi(count_cooccurrences(tokens, offsets, num_rows, window), smoothing)
    if not matrix.nnz:
        raise InputError(
            f"{len(tokens)} tokens in {len(offsets) - 1} sentences hold no pair that occurs more "
            f"often than chance. Expected running text, one sentence or paragraph a line."
        )
    vectors, values = truncated_svd(matrix, dim, seed, num_threads=num_threads)
    result = np.zeros((num_rows, dim), dtype=np.float32)
    result[:, : len(values)] = vectors * np.sqrt(values)
    seen = np.diff(matrix.indptr) > 0
    result[seen] *= std / result[seen].std()
    noise = np.random.default_rng(seed + 1).standard_normal((num_rows, dim), dtype=np.float32)
    result[~seen] = std * noise[~seen]
    if pad is not None:
        result[pad] = 0
    return result


def unigram_bias(tokens: np.ndarray, num_rows: int) -> np.ndarray:
    """Log frequencies, mean 0 over the tokens seen; a token never seen counts as half a time.

    Shapes: tokens (N,) -> (V,) float32.
    """
    counts = np.bincount(tokens, minlength=num_rows)
    bias = np.log(np.maximum(counts, 0.5))
    if len(tokens):
        bias -= bias[counts > 0].mean()
    return bias.astype(np.float32)


def nearest(embeddings: np.ndarray, row: int, num_neighbours: int = 8) -> list[tuple[int, float]]:
    """The rows with the highest cosine to ``row``, itself left out: (row, cosine), closest first.

    Shapes: embeddings (V, C).
    """
    lengths = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)
    cosines = embeddings @ (embeddings[row] / lengths[row]) / lengths
    cosines[row] = -np.inf
    return [(int(i), float(cosines[i])) for i in np.argsort(-cosines)[:num_neighbours]]

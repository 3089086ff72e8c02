"""Rows as the model sees them: begin and end tokens, cuts, pairs, batches."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
from fairseq_peft.data.sentence_dataset import SentenceDataset, truncate  # noqa: E402

BOS, PAD, EOS = 0, 1, 2


class Indexed(list):
    """Rows of token ids as fairseq stores them: with </s> at the end."""

    def __init__(self, lengths, first):
        super().__init__(torch.tensor([*range(first, first + length), EOS]) for length in lengths)
        self.sizes = np.array([length + 1 for length in lengths])


@pytest.fixture
def make(dictionary):
    def build(lengths, second=None, max_tokens=12, **more):
        texts = [Indexed(lengths, 100)]
        if second is not None:
            texts.append(Indexed(second, 200))
        return SentenceDataset(texts, [0] * len(lengths), dictionary, max_tokens, **more)

    return build


def test_one_sentence(make):
    data = make([3, 0, 10, 11, 40])
    assert data[0]["tokens"] == [BOS, 100, 101, 102, EOS]
    assert data[1]["tokens"] == [BOS, EOS]
    assert data[2]["tokens"] == [BOS, *range(100, 110), EOS]
    # Cut to 12: the end token stays, words at the end go.
    assert data[3]["tokens"] == data[4]["tokens"] == data[2]["tokens"]
    assert data.num_truncated == 2


def test_without_a_begin_token(make):
    data = make([3, 40], begin=False)
    assert data[0]["tokens"] == [100, 101, 102, EOS]
    assert data[1]["tokens"] == [*range(100, 111), EOS]


def test_pair(make):
    data = make([2, 2, 9, 9], [3, 20, 1, 9])
    assert data[0]["tokens"] == [BOS, 100, 101, EOS, EOS, 200, 201, 202, EOS]
    # 12 tokens hold 8 words; the longer text gives first, both of equal length give in turn.
    words = [[t for t in data[i]["tokens"] if t >= 100] for i in range(4)]
    assert words[1] == [100, 101, *range(200, 206)]
    assert words[2] == [*range(100, 107), 200]
    assert words[3] == [*range(100, 104), *range(200, 204)]
    for i in range(4):
        assert data[i]["tokens"].count(EOS) == 3 and data[i]["tokens"][-1] == EOS
    assert data.num_truncated == 3


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_sizes_are_the_real_lengths(make, begin, pairs):
    rng = np.random.default_rng(0)
    lengths, second = rng.integers(0, 30, 50), rng.integers(0, 30, 50)
    data = make(lengths, second if pairs else None, begin=begin)
    assert [len(data[i]["tokens"]) for i in range(50)] == list(data.sizes)
    assert data.sizes.max() == 12
    assert [data.num_tokens(i) for i in range(50)] == [data.size(i) for i in range(50)]


def test_prompt_takes_room_but_not_the_order(make):
    data = make([3, 20, 9], max_tokens=10, num_reserved=2)
    assert list(data.sizes) == [5, 10, 10] and list(data.order_sizes) == [5, 12, 11]


def test_truncate_takes_from_the_longer_text():
    for first in range(12):
        for second in range(12):
            a, b = truncate([list(range(first)), list(range(second))], 8)
            assert len(a) + len(b) == min(8, first + second)
            if len(a) < first and len(b) < second:
                assert abs(len(a) - len(b)) <= 1
            elif len(a) < first:
                assert len(a) >= len(b) == second
            elif len(b) < second:
                assert len(b) >= len(a) == first


def test_batch(make):
    data = make([3, 5])
    batch = data.collater([data[1], data[0]])
    assert batch["net_input"]["src_tokens"].tolist() == [
        [BOS, 100, 101, 102, 103, 104, EOS, PAD],
        [BOS, 100, 101, 102, EOS, PAD, PAD, PAD],
    ]
    assert batch["net_input"]["src_lengths"].tolist() == [7, 5]
    assert batch["id"].tolist() == [1, 0] and batch["target"].tolist() == [0, 0]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 12)
    assert data.collater([]) == {}


@pytest.mark.parametrize("length, width", [(5, 8), (6, 8), (7, 16), (14, 16), (15, 17), (30, 17)])
def test_width_is_a_multiple_where_the_model_has_room(make, length, width):
    data = make([length], max_tokens=17)
    assert data.collater([data[0]])["net_input"]["src_tokens"].shape == (1, width)

"""--mask-whole-words of fairseq's masked_lm: words are masked whole, where fairseq alone fails."""

import argparse

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.errors import InputError
from fairseq_peft.fairseq_fixes import whole_words


def dictionary(words):
    found = Dictionary()
    for word in words:
        found.add_symbol(word, n=10)
    return found


PIECES = ["▁un", "▁livre", "s", "▁in", "croy", "able", "madeupword0"]


def test_word_starts():
    words = dictionary(PIECES)
    words.add_symbol("<mask>")
    starts = whole_words.word_starts(None, words)
    begins = [symbol for symbol, start in zip(words.symbols, starts.tolist()) if start]
    assert begins == [*words.symbols[:4], "▁un", "▁livre", "▁in", "madeupword0", "<mask>"]


def test_words_of_bytes_are_refused():
    with pytest.raises(InputError, match="none of the 6 entries of the dictionary begins with"):
        whole_words.word_starts(None, dictionary(["262", "1532"]))


@pytest.fixture
def task(tmp_path):
    """masked_lm on 200 words of three pieces each, all in one split."""
    from fairseq.data import indexed_dataset

    words = dictionary(PIECES)
    words.save(str(tmp_path / "dict.txt"))
    builder = indexed_dataset.make_builder(
        str(tmp_path / "train.bin"), "mmap", vocab_size=len(words)
    )
    row = " ".join(["▁in croy able"] * 10)
    for _ in range(20):
        builder.add_item(words.encode_line(row, add_if_not_exist=False).long())
    builder.finalize(str(tmp_path / "train.idx"))
    cfg = MaskedLMConfig(data=str(tmp_path), mask_whole_words=True, mask_prob=0.3, seed=1)
    cfg.random_token_prob = cfg.leave_unmasked_prob = 0.0
    cfg.tokens_per_sample, cfg.sample_break_mode = 32, "eos"
    return MaskedLMTask.setup_task(argparse.Namespace(**vars(cfg)))


def test_words_are_masked_whole(task):
    task.load_dataset("train")
    dataset, mask = task.dataset("train"), task.mask_idx
    start = task.source_dictionary.index("▁in")
    num_masked = 0
    for i in range(len(dataset)):
        item = dataset[i]
        tokens, target = item["net_input.src_tokens"], item["target"]
        masked = tokens.eq(mask)
        original = torch.where(masked, target, tokens)
        begins = original.eq(start).nonzero().flatten()
        assert len(begins) == 10
        for at in begins.tolist():
            word = masked[at : at + 3]
            assert word.all() or not word.any(), (i, at, word)
            num_masked += int(word.all())
    assert 30 < num_masked < 90  # 0.3 of 200 words


def test_the_share_is_exact_and_another_one_in_a_later_phase(task):
    """Of 12 words (``<s>``, ten of three pieces, ``</s>``) a share of 0.3 is 3.6: 3 or 4, and 3.6
    on average; a phase that goes on with another share has that from its first block on."""
    for share in (0.3, 0.15):
        task.cfg.mask_prob = share
        task.load_dataset("train")
        pad = task.source_dictionary.pad()
        counts = []
        for epoch in range(1, 11):
            task.dataset("train").set_epoch(epoch)
            for i in range(20):
                target = task.dataset("train")[i]["target"]
                hidden = target.ne(pad)
                counts.append(int(hidden[[0, -1]].sum() + hidden[1:-1].sum() // 3))
        assert set(counts) == {int(12 * share), int(12 * share) + 1}
        assert abs(sum(counts) / len(counts) - 12 * share) < 0.1  # 3 standard errors


def test_taken_up_in_the_middle_the_masks_are_the_same(task):
    """They are drawn by seed, pass and block: not by what was drawn before."""
    task.load_dataset("train")

    def batches(state=None):
        found = task.get_batch_iterator(
            task.dataset("train"), max_sentences=3, seed=1, disable_iterator_cache=True
        )
        if state:
            found.load_state_dict(state)
        return found

    first = batches()
    for _ in range(2):  # two passes, and 3 batches of the third
        passed = [b["net_input"]["src_tokens"] for b in first.next_epoch_itr()]
    third = first.next_epoch_itr()
    begun = [next(third)["net_input"]["src_tokens"] for _ in range(3)]
    state = first.state_dict()
    rest = list(third)
    again = list(batches(state).next_epoch_itr())
    assert len(again) == len(rest) == 4
    for one, other in zip(rest, again):
        assert torch.equal(one["net_input"]["src_tokens"], other["net_input"]["src_tokens"])
        assert torch.equal(one["target"], other["target"])
    whole = torch.cat([*begun, *(b["net_input"]["src_tokens"] for b in rest)])
    assert not torch.equal(torch.cat(passed).sort(0)[0], whole.sort(0)[0])

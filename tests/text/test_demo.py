"""The demo data: the same everywhere, balanced, nothing of test elsewhere, words kept back."""

import hashlib
import re

import pytest

from fairseq_peft import cli
from fairseq_peft.errors import InputError
from fairseq_peft.text import demo

SMALL = {"unlabelled": 500, "train": 40, "valid": 20, "test": 60}


def test_two_runs_write_the_same_bytes_on_every_python(tmp_path):
    flags = [str(word) for name, size in SMALL.items() for word in (f"--{name}", size)]
    assert cli.main(["make-demo-data", str(tmp_path), *flags]) == 0
    names = [f"{split}.{kind}" for split in SMALL for kind in ("review", "label")][2:]
    names.append("unlabelled.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    content = b"".join((tmp_path / name).read_bytes() for name in names)
    assert hashlib.sha256(content).hexdigest() == (
        "24993906c94c42cf4ec051814a05567d3ac45e6b5105cfde24c844cbe95da66f"
    )
    assert content.decode("ascii").count("\n") == 500 + 2 * (40 + 20 + 60)


def test_seeds_differ():
    one, other = demo.make_demo_data(1, **SMALL), demo.make_demo_data(2, **SMALL)
    assert one.labelled["test"] != other.labelled["test"] and one.unlabelled != other.unlabelled


def test_no_text_twice_and_none_of_them_unlabelled():
    data = demo.make_demo_data()
    labelled = [text for rows in data.labelled.values() for text, _ in rows]
    assert len(set(labelled)) == len(labelled) == 400 + 200 + 1000
    assert set(labelled).isdisjoint(data.unlabelled) and len(data.unlabelled) == 30000


def test_classes_are_balanced_and_not_in_turn():
    for rows in demo.make_demo_data(**SMALL).labelled.values():
        labels = [label for _, label in rows]
        assert labels.count("0") == labels.count("1") == len(rows) / 2
        assert labels != ["0", "1"] * (len(rows) // 2)


def vocabulary(texts):
    return {word for text in texts for word in re.findall("[a-z]+", text)}


def test_train_keeps_to_the_seen_words_and_the_others_are_learnable():
    data = demo.make_demo_data()
    train = vocabulary(text for text, _ in data.labelled["train"])
    test = vocabulary(text for text, _ in data.labelled["test"])
    unlabelled = vocabulary(data.unlabelled)
    kept_back = set()
    for classes, num_seen in (
        (demo.ADJECTIVES, demo.SEEN_ADJECTIVES),
        (demo.VERBS, demo.SEEN_VERBS),
        (demo.NOUNS, demo.SEEN_NOUNS),
    ):
        assert len(classes[0]) == len(classes[1]) > 2 * num_seen
        kept_back |= {word for words in classes for word in words[num_seen:]}
    assert not kept_back & train
    assert kept_back <= test and kept_back <= unlabelled
    leaning = {word for words in demo.LEANING_ADVERBS for word in words}
    assert leaning <= unlabelled and not leaning & (train | test)


def test_the_last_clause_of_a_contrast_decides():
    data = demo.make_demo_data(test=3000)
    polarity = {w: s for s in (0, 1) for w in demo.ADJECTIVES[s]}
    pattern = re.compile(r"the \w+ was (\w+), (?:but )?the \w+ was (\w+)[.!]")
    found = 0
    for text, label in data.labelled["test"]:
        for match in pattern.finditer(text):
            if set(match.groups()) <= polarity.keys():
                found += 1
                assert polarity[match[2]] == int(label) != polarity[match[1]]
    assert found >= 5


def test_sentiment_words_in_a_plot_say_nothing():
    data = demo.make_demo_data(test=3000)
    polarity = {w: s for s in (0, 1) for w in demo.ADJECTIVES[s]}
    agree = [
        polarity[match[1]] == int(label)
        for text, label in data.labelled["test"]
        if (match := re.search(rf"\ban? (\w+) (?:{'|'.join(demo.PEOPLE)})\b", text))
        and match[1] in polarity
    ]
    assert len(agree) > 100 and 0.4 < sum(agree) / len(agree) < 0.6


def test_numbers_that_make_no_sense():
    with pytest.raises(InputError, match=r"--train 1: expected at least 2"):
        demo.make_demo_data(train=1)
    with pytest.raises(InputError, match=r"--seed -1"):
        demo.make_demo_data(seed=-1)
    with pytest.raises(InputError, match=r"--unlabelled -1"):
        demo.make_demo_data(unlabelled=-1)

"""The made-up pair of languages: the same everywhere, nothing twice, and what it says it has."""

import hashlib
import re

import pytest
import verbs

from fairseq_peft.text import demo_translation as demo

SMALL = {"general": 300, "train": 60, "valid": 20, "test": 40}


def test_two_runs_write_the_same_bytes_on_every_python(tmp_path, capsys):
    flags = [word for name, size in SMALL.items() for word in (f"--{name}", size)]
    verbs.run("make-demo-data", tmp_path, "--task", "translation", *flags)
    paths = [
        tmp_path / domain / f"{split}.{language}"
        for domain in demo.DOMAINS
        for split in demo.SPLITS
        for language in (demo.SOURCE, demo.TARGET)
    ]
    assert sorted(path for path in tmp_path.rglob("*.*")) == sorted(paths)
    content = b"".join(path.read_bytes() for path in paths)
    assert hashlib.sha256(content).hexdigest() == (
        "137d074ea093b33b4b4e15c099655f7ff793a7f6c12131296af48c531002e112"
    )
    assert content.decode("ascii").count("\n") == 2 * (300 + 60 + 2 * (20 + 40))
    message = verbs.refused(
        capsys, "make-demo-data", tmp_path, "--task", "translation", "--unlabelled", 3
    )
    assert "--unlabelled 3 would be ignored" in message


def test_no_sentence_twice_and_seeds_differ():
    one, other = (demo.make_demo_translation(seed, **SMALL) for seed in (1, 2))
    rows = [row for splits in one.pairs.values() for part in splits.values() for row in part]
    assert len({source for source, _ in rows}) == len(rows) == 480
    assert one.pairs["court"]["test"] != other.pairs["court"]["test"]


def test_order_and_agreement():
    """Adjectives stand behind their noun and have its gender and number; verbs come last."""
    checked = 0
    for source, target in demo.make_demo_translation(**SMALL).pairs["general"]["train"]:
        match = re.match(rf"the ({'|'.join(demo.ADJECTIVES)}) (\w+) ", source)
        if match is None or " because " in source or match[2] not in demo.LANGUAGE.genders:
            continue
        adjective, noun = (demo.LANGUAGE.stems[word] for word in match.groups())
        gender = demo.LANGUAGE.genders[match[2]]
        assert f"t{gender} {noun} {adjective}{gender} " in target
        stems = {demo.LANGUAGE.stems[verb] for verb in demo.VERBS}
        assert any(target.split()[-2].startswith(stem) for stem in stems)
        checked += 1
    assert checked > 20


def test_the_court_has_words_meanings_and_forms_of_its_own():
    data = demo.make_demo_translation(**SMALL)
    texts = {
        domain: [" ".join(side) + " " for side in zip(*data.pairs[domain]["train"])]
        for domain in demo.DOMAINS
    }
    for word in demo.COURT_PEOPLE:
        assert f" {word}" in texts["court"][0] and f" {word}" not in texts["general"][0]
    for word in ("case", "party", "seal"):
        stems = {
            "general": f" {demo.LANGUAGE.stems[word]}",
            "court": f" {demo.LANGUAGE.court_stems[word]}",
        }
        for domain, other in (("general", "court"), ("court", "general")):
            assert stems[domain] in texts[domain][1] and stems[other] not in texts[domain][1]
    assert all(target.endswith("esh .") for _, target in data.pairs["court"]["train"])
    assert "esh " not in texts["general"][1]


def test_numbers_that_make_no_sense(capsys, tmp_path):
    for flag in ("--seed", "--general"):
        message = verbs.refused(
            capsys, "make-demo-data", tmp_path / "no", "--task", "translation", flag, -1
        )
        assert f"{flag} -1: expected" in message and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("carry", ("carries", "carried")),
        ("praise", ("praises", "praised")),
        ("watch", ("watches", "watched")),
        ("find", ("finds", "found")),
    ],
)
def test_english_forms(word, forms):
    assert (demo.third_person(word), demo.past(word)) == forms

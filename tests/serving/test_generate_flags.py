"""What ``fairseq-peft generate`` and ``Generator`` refuse before a model is read."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
import verbs
from payload import Payload

from fairseq_peft.commands import generate
from fairseq_peft.commands.generate import folders_of
from fairseq_peft.errors import InputError
from fairseq_peft.serving import writers
from fairseq_peft.serving.generate import Generator, Written
from fairseq_peft.text import generation


@pytest.mark.parametrize(
    "given, message",
    [
        ({"beams": 3}, "'beams' is no flag of generation"),
        ({"beam": 0}, "beam 0: give 1 or more"),
        ({"temperature": 0.0}, "temperature 0.0: give a number from 0.01 to 1000"),
        ({"temperature": 1e-300}, "temperature 1e-300: give a number from 0.01 to 1000"),
        ({"lenpen": float("inf")}, "lenpen inf: give a number from -10 to 10"),
        ({"max_len_a": -1.0}, "max_len_a -1.0: give a number from 0"),
        ({"beam": "5"}, "beam is '5', expected int"),
        ({"beam": True}, "beam is True, expected int"),
        ({"sampling": 1}, "sampling is 1, expected bool"),
        ({"sampling_topk": 3}, "would be ignored without sampling"),
        ({"sampling": True, "sampling_topp": 1.5}, "give 1 or less"),
        ({"min_len": 9, "max_len_b": 8}, "min_len 9 is more than max_len_b 8"),
    ],
)
def test_flags_of_generation(given, message):
    with pytest.raises(InputError, match=message):
        generation.check(given)


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "Neither --base nor --adapter was given"),
        (("--base", "b.pt", "--window", 0), "--window 0: give 1 or more"),
        (("--base", "b.pt", "--adapter", "a=x", "--adapter", "y"), "expected NAME=DIR"),
        (("--base", "b.pt", "--beam", 0), "beam 0: give 1 or more"),
        (("--base", "b.pt", "--adapter", "none"), "is no adapter folder"),
        (("--base", "none.pt"), "none.pt does not exist"),
        (("--base", "b.pt", "--adapter", "none", "--data", "d"), "would be ignored"),
    ],
)
def test_the_command_says_it_in_one_sentence(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("a\n")
    assert message in verbs.refused(capsys, "generate", "lines.txt", *words)


@pytest.mark.parametrize(
    "line, message",
    [
        ("One text.", "lines.txt:2: 'One text.' has no tab."),
        ("", "lines.txt:2: '' has no tab."),
        ("x" * 99, f"lines.txt:2: '{'x' * 40}' has no tab."),
        ("film\tOne text.", "lines.txt:2: there is no adapter 'film'."),
    ],
)
def test_a_line_for_one_of_several_adapters_begins_with_its_name(
    capsys, tmp_path, monkeypatch, line, message
):
    class OfBoth:
        num_cut = 0

        def beams(self, rows, names, **how):
            for pair in zip(rows, names):
                yield [Written("=".join(pair), 0.0, [])]

    monkeypatch.setattr(generate, "load", lambda *_: OfBoth())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text(f"books\tOne\ttext.\n{line}\n")
    words = ["generate", "lines.txt", "--base", "b.pt", "--adapter", "books=x", "--adapter"]
    words += ["films=y", "--out", "out.txt"]
    told = verbs.refused(capsys, *words)
    assert told.endswith(
        f"{message} With several adapters a line is the name of one (books, films), a tab, and the "
        "text, such as books<tab>One text. Write that, or give one --adapter alone."
    )
    (tmp_path / "lines.txt").write_text("books\tOne\ttext.\nfilms\t\n")
    verbs.run(*words)
    assert (tmp_path / "out.txt").read_text() == "One\ttext.=books\n=films\n"


def test_a_model_of_stock_fairseq_may_have_no_flags():
    """Such as its language models, which keep their configuration to themselves."""
    assert writers.kept_by(torch.nn.Linear(1, 1)) == {}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
def test_a_checkpoint_with_a_payload_is_not_run(capsys, tmp_path, legacy):
    """Also where there is no adapter folder, so that fairseq's own loader reads it."""
    path, trace = tmp_path / "model.pt", tmp_path / "the-payload-ran"
    state = {"model": {}, "x": Payload(trace)}
    path.write_bytes(pickle.dumps(state)) if legacy else torch.save(state, path)
    (tmp_path / "lines.txt").write_text("a\n")
    words = ("generate", tmp_path / "lines.txt", "--base", path, "--data", tmp_path)
    assert "is not opened, because that could run code" in verbs.refused(capsys, *words)
    assert not trace.exists()


@pytest.mark.parametrize(
    "kept, given, found",
    [
        ({"beam": 4, "lenpen": 0.6}, {"beam": 2}, {"beam": 2, "lenpen": 0.6}),
        ({"beam": 4, "lenpen": 0.6}, {"sampling": True}, {"beam": 1, "lenpen": 0.6}),
        ({"sampling": True, "sampling_topk": 3}, {}, {"beam": 1, "sampling_topk": 3}),
        ({"sampling": True, "beam": 3, "sampling_topk": 3}, {"sampling": False}, {}),
    ],
)
def test_what_a_run_kept_holds_where_nothing_else_is_said(kept, given, found):
    combined = generation.combined(kept, given)
    drawn = {**kept, **given}.get("sampling")
    assert combined == {**found, **({} if drawn is None else {"sampling": drawn})}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no JSON"),
        ("4", "is no JSON object"),
        ('{"beam": "4"}', "beam is '4', expected int"),
        ('{"beams": 4}', "'beams' is no flag of generation"),
        ('{"beam": 0, "target_lang": "fr"}', "beam 0: give 1 or more"),
    ],
)
def test_what_a_run_is_told_to_keep(text, message):
    with pytest.raises(InputError, match=message):
        generation.parse(text)
    assert generation.parse('{"lenpen": 1, "target_lang": "fr"}')["target_lang"] == "fr"


def test_a_folder_alone_needs_no_name(tmp_path):
    folder = tmp_path / "lr=1e-3"
    folder.mkdir()
    assert list(folders_of([str(folder)]).values()) == [folder]
    assert list(folders_of([f"books={folder}"])) == ["books"]


def test_texts_and_adapters():
    generator = Generator(None, "cpu", False)
    with pytest.raises(InputError, match="is one text. Give a list"):
        generator.generate("a text")
    with pytest.raises(InputError, match="Which adapter"):
        generator.generate(["a text"])
    with pytest.raises(InputError, match="There is no adapter 'x'. Loaded: none"):
        generator.generate(["a text"], "x")


class StubWriter:
    """In place of a ``Writer``: it answers every text with its ids, in as many beams as asked."""

    num_cut = 0

    def __init__(self, labels=(), **kept):
        self.kept, self.labels = kept, list(labels)

    def check(self, search):
        pass

    def ids(self, text):
        return [4] * len(text.split())

    def search(self, **search):
        return SimpleNamespace(**search)

    def longest_answer(self, length, flags):
        return length

    def hypotheses(self, rows, flags):
        tokens = torch.tensor([4, 2])
        return [[{"tokens": tokens, "score": 0.0}] * getattr(flags, "beam", 5) for _ in rows]

    def text(self, tokens):
        return "told"

    def label_scores(self, rows):
        return torch.zeros(len(rows), len(self.labels))


def generator_of(**adapters):
    found = Generator(None, "cpu", False)
    found._writers.update(adapters)
    return found


@pytest.mark.parametrize("ways", [list, tuple, iter, str], ids=lambda way: way.__name__)
def test_an_adapter_is_not_refused_for_what_another_has_kept(ways):
    """Whether it is named once, or row by row, or by an iterator."""
    generator = generator_of(
        short=StubWriter(max_len_b=20), long=StubWriter(min_len=50, max_len_b=300)
    )

    def named(name):
        return name if ways is str else ways([name] * 2)

    found = generator.generate(["a", "b c"], named("short"), max_len_b=30)
    assert [row.text for row in found] == ["told"] * 2
    with pytest.raises(InputError, match="min_len 50 is more than max_len_b 30"):
        generator.generate(["a", "b"], named("long"), max_len_b=30)
    generator = generator_of(many=StubWriter(beam=5), drawn=StubWriter(sampling=True))
    assert [len(row) for row in generator.beams(["a", "b"], named("many"), nbest=3)] == [3, 3]
    with pytest.raises(InputError, match="nbest 3: give at most the number of beams, 1"):
        list(generator.beams(["a", "b"], named("drawn"), nbest=3))


@pytest.mark.parametrize("ways", [list, iter, str], ids=lambda way: way.__name__)
def test_labels_are_chosen_beside_an_adapter_without(ways):
    generator = generator_of(labels=StubWriter(labels=["no", "yes"]), free=StubWriter())

    def named(name):
        return name if ways is str else ways([name])

    (found,) = generator.predictions(["a"], named("labels"))
    assert found.label == "no"
    with pytest.raises(InputError, match="'free' was trained without --labels"):
        list(generator.predictions(["a"], named("free")))


def test_what_is_named_is_refused_before_the_first_text_is_read():
    generator = generator_of(short=StubWriter(), long=StubWriter(min_len=50))
    for adapter in ("long", ["short", "long"], None):
        with pytest.raises(InputError):
            generator.beams(iter(()), adapter, max_len_b=30)
    with pytest.raises(InputError, match="There is no adapter 'other'"):
        generator.beams(iter(()), "other")

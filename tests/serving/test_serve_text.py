"""``fairseq-peft serve`` for models that write: what ``generate`` writes, whatever the batch."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fairseq")
testclient = pytest.importorskip("starlette.testclient")

import adapter_folders  # noqa: E402
import hf_models  # noqa: E402
from stub_classifier import until  # noqa: E402
from stub_generator import KEPT, StubGenerator  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.serving.generate import Generator  # noqa: E402
from fairseq_peft.serving.service import generate as services  # noqa: E402
from fairseq_peft.serving.service import server  # noqa: E402
from fairseq_peft.serving.service.app import create_app  # noqa: E402

NAMES = ("legal", "news")
TEXTS = ["", "un mot", "x", "a b c d e f g h i"]


def asks(service):
    """A client of a service."""
    return testclient.TestClient(create_app(service))


def post(client, **question):
    return client.post("/generate", json=question)


def together(client, questions):
    """The responses to questions that are asked at the same time, in their order."""
    with ThreadPoolExecutor(len(questions)) as threads:
        return list(threads.map(lambda one: post(client, **one), questions))


@pytest.fixture
def stub():
    return StubGenerator()


@pytest.fixture
def client(stub):
    service = services.GenerateService(stub, services.Limits(max_texts=5, max_wait_ms=0))
    with asks(service) as client:
        yield client


def test_rows_that_are_searched_alike_share_a_batch_and_none_waits_for_ever(stub):
    """While the model is busy with one row, requests of three lanes come, some of them in turn."""
    limits = services.Limits(max_batch=3, max_wait_ms=0)
    service = services.GenerateService(stub, limits)
    questions = [
        {"adapter": "legal", "texts": ["a", "b"]},
        {"adapter": "news", "texts": ["c"]},
        {"adapter": "legal", "texts": ["d", "e"], "beam": KEPT["legal"]["beam"]},
        {"adapter": "legal", "texts": ["f"], "beam": 2},
        {"adapter": "news", "texts": ["g"]},
    ]
    with asks(service) as client, ThreadPoolExecutor() as threads:
        stub.open.clear()
        first = threads.submit(post, client, texts=["busy"], adapter="news", beam=7)
        until(lambda: stub.num_begun == 1)
        asked = []
        for question in questions:
            waiting = service.batcher.num_waiting
            asked.append(threads.submit(post, client, **question))
            rows = waiting + len(question["texts"])
            until(lambda rows=rows: service.batcher.num_waiting == rows)
        stub.open.set()
        found = [one.result(30).json()["answers"] for one in asked]
        assert first.result(30).status_code == 200
    assert stub.batches == [["busy"], ["a", "b", "d"], ["c", "g"], ["e"], ["f"]]
    for question, answers in zip(questions, found):
        beam = question.get("beam", KEPT[question["adapter"]].get("beam", 5))
        texts = [f"{question['adapter']} {beam} {text}" for text in question["texts"]]
        assert [one["text"] for one in answers] == texts
    assert service.batcher.num_rows == {"legal": 5, "news": 3}


BAD = {
    "beams": ({"beams": 3}, "beams: unexpected keyword argument"),
    "word": ({"beam": "4"}, "beam: input should be a valid integer"),
    "no-beam": ({"beam": 0}, "beam 0: give 1 or more"),
    "many-beams": ({"beam": 17}, "beam 17: this service takes 16 at most"),
    "long": ({"max_len_b": 5000}, "max_len_b 5000: this service takes 1024 at most"),
    "longer": ({"max_len_a": 3}, "max_len_a 3.0: this service takes 2 at most"),
    "shorter": ({"max_len_a": -1}, "max_len_a -1.0: give a number from 0"),
    "cold": ({"temperature": 1e-300}, "temperature 1e-300: give a number from 0.01 to 1000"),
    "hot": ({"temperature": float("nan")}, "temperature nan: give a number from 0.01 to 1000"),
    "topk": ({"sampling_topk": 3}, "would be ignored without sampling"),
    "min": ({"min_len": 9, "max_len_b": 8}, "min_len 9 is more than max_len_b 8"),
    "pairs": ({"pairs": [["a", "b"]]}, "pairs: unexpected keyword argument"),
    "texts": ({"texts": "a"}, "texts: input should be a valid list"),
    "numbers": ({"texts": [1] * 100_000}, "texts[0]: input should be a valid string"),
    "refused": ({"texts": ["refused"]}, "This text is refused."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_one_sentence(client, stub, name):
    given, told = BAD[name]
    body = json.dumps({"adapter": "legal", "texts": ["a"], **given})
    response = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    text = response.json()["error"]
    assert told in text and "\n" not in text and text.endswith(".")
    assert not stub.batches
    assert post(client, adapter="legal", texts=["a"]).status_code == 200


def test_what_it_says_of_itself(client):
    assert post(client, texts=["a"]).status_code == 422  # there are two adapters
    assert post(client, adapter="cars", texts=["a"]).status_code == 404
    assert post(client, adapter="news", texts=["a"] * 6).status_code == 413
    found = client.get("/adapters").json()
    expected = [{"name": n, "generation": KEPT[n], "labels": []} for n in NAMES]
    assert found["adapters"] == expected
    assert found["limits"]["max_beam"] == 16
    assert "POST /generate" in client.get("/predict").json()["error"]
    post(client, adapter="news", texts=["a", "b"])
    assert 'fairseq_peft_rows_total{adapter="news"} 2' in client.get("/metrics").text
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Question"]
    assert {"texts", "adapter", "beam", "sampling_topp"} <= set(schema["properties"])
    assert schema["properties"]["lenpen"]["description"].startswith("length penalty")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base of mBART's kind and two adapters that translate."""
    folder = tmp_path_factory.mktemp("text")
    hf_models.write_encoder_decoder(folder / "base", "mbart")
    kept = {"legal": {"beam": 2, "max_len_b": 6}, "news": {"max_len_a": 0.5, "max_len_b": 3}}
    for name, peft in zip(NAMES, ("lora", "prefix")):
        how = {"generation": kept[name]}
        hf_models.write_encoder_decoder_adapter(
            folder / name, folder / "base", "mbart", peft, **how
        )
    return folder


def words_of(folder):
    adapters = [word for n in NAMES for word in ("--adapter", f"{n}={folder / n}")]
    return ["serve", "--port", 0, "--base", folder / "base" / "model.pt", *adapters]


def test_it_is_what_generate_writes_of_each_text_alone(folders, monkeypatch):
    """Also where an answer may be as long as its text: not as the longest text beside it."""
    made = []
    monkeypatch.setattr(server, "serve", lambda service, own: made.append(service))
    run(*words_of(folders), "--max-wait-ms", 10_000, "--max-batch", 2 * len(TEXTS))
    (service,) = made
    alone = Generator.of(folders / "base" / "model.pt", {n: folders / n for n in NAMES})
    settings = ({}, {"beam": 2, "max_len_a": 0.7, "max_len_b": 2, "min_len": 4})
    questions = [
        {"adapter": name, "texts": texts, **flags}
        for name in NAMES
        for flags in settings
        for texts in (TEXTS, TEXTS[::-1])
    ]
    with asks(service) as client:
        responses = together(client, questions)
    assert {response.status_code for response in responses} == {200}
    assert service.batcher.num_batches == 4
    for flags, told in (
        ({"min_len": 90, "max_len_b": 90}, "this model writes .* at most"),
        ({"sampling": True, "sampling_topk": 10**6}, "sampling_topk 1000000: there are"),
    ):
        with pytest.raises(InputError, match=told):
            alone.search_of("legal", flags)
    expected = {}
    for question, response in zip(questions, responses):
        asked = dict(question)
        name, texts = asked.pop("adapter"), asked.pop("texts")
        for text, row in zip(texts, response.json()["answers"]):
            key = name, text, *asked.items()
            if key not in expected:
                expected[key] = alone.generate([text], name, **asked)[0]
            assert row["text"] == expected[key].text
            assert row["score"] == pytest.approx(expected[key].score, abs=1e-4)
    assert len({one.text for one in expected.values()}) > 8


def test_what_it_refuses_at_the_start(folders, dictionary, tmp_path, capsys):
    words = words_of(folders)
    assert "--precision bf16 would be ignored" in refused(capsys, *words, "--precision", "bf16")
    told = refused(capsys, *words, "--target-lang", "xx")
    assert "has no dict.xx.txt, so it knows no such language" in told
    model = adapter_folders.perturbed(dictionary, adapter_folders.base_state(dictionary))
    classifier = adapter_folders.write(tmp_path / "books", model, None)
    told = refused(capsys, *words, "--adapter", f"books={classifier}")
    assert "writes text and books classifies" in told

"""The HTTP service in this process, in front of a classifier that is none: what is asked, refused,
joined, counted, and answered while it stops. ``test_serve.py`` has real adapters."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fairseq")
testclient = pytest.importorskip("starlette.testclient")

from stub_classifier import KINDS, Stub, expected, until  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.serving.service import predict as services  # noqa: E402
from fairseq_peft.serving.service.app import create_app  # noqa: E402

BOOKS = {"adapter": "books", "texts": ["a"]}


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
def start(stub):
    """``start(queue=8)``: a client of a service with these limits, and the service."""
    clients = []

    def begin(classifier=stub, **limits):
        service = services.PredictService(classifier, services.Limits(**limits))
        app = create_app(service)
        client = testclient.TestClient(app, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client, service

    yield begin
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start):
    return start()[0]


def together(client, questions):
    """The responses to questions that are asked at the same time, in their order."""
    with ThreadPoolExecutor(len(questions)) as threads:
        return list(threads.map(lambda one: client.post("/predict", json=one), questions))


def test_every_kind_of_answer(client):
    rows = {"books": ["long", "", "é\u2028\x00"], "tags": ["x"], "stars": ["xyz"]}
    for name, texts in rows.items():
        response = client.post("/predict", json={"adapter": name, "texts": texts})
        assert response.status_code == 200
        found = [expected(name, text).as_dict() for text in texts]
        assert response.json() == {"adapter": name, "predictions": found}
    assert found == [{"value": 3.0}]
    pair = client.post("/predict", json={"adapter": "both", "pairs": [["a", "bc"]]})
    assert pair.json()["predictions"][0]["label"] == "good"
    none = client.post("/predict", json={"adapter": "books", "texts": []})
    assert none.json() == {"adapter": "books", "predictions": []}


def test_the_only_adapter_needs_no_name(start):
    client, _ = start(Stub(["films"]))
    assert client.post("/predict", json={"texts": ["x"]}).json()["adapter"] == "films"


def test_requests_of_several_adapters_join_one_batch(start, stub):
    client, service = start(max_wait_ms=10_000, max_batch=6)
    questions = [{"adapter": name, "texts": ["a", "bcd"]} for name in ("books", "films", "tags")]
    responses = together(client, questions)
    assert [sorted(names) for names in stub.batches] == [
        ["books", "books", "films", "films", "tags", "tags"]
    ]
    for question, response in zip(questions, responses):
        name = question["adapter"]
        found = [expected(name, text).as_dict() for text in question["texts"]]
        assert response.json() == {"adapter": name, "predictions": found}
    assert service.batcher.num_batches == 1


def test_a_long_request_is_cut_into_batches(start, stub):
    client, _ = start(max_wait_ms=0, max_batch=4)
    texts = ["x" * i for i in range(11)]
    response = client.post("/predict", json={"adapter": "stars", "texts": texts})
    assert [row["value"] for row in response.json()["predictions"]] == list(range(11))
    assert sorted(map(len, stub.batches)) == [3, 4, 4]


def test_at_overload_each_request_gets_one_answer(start, stub):
    client, service = start(queue=8, max_texts=2, max_batch=4, max_wait_ms=0)
    stub.open.clear()
    questions = [{"adapter": "stars", "texts": ["x" * i, "x" * (i + 1)]} for i in range(40)]
    with ThreadPoolExecutor(40) as threads:
        asked = [threads.submit(client.post, "/predict", json=one) for one in questions]
        until(lambda: service.num_requests[429] >= 30)
        assert service.batcher.num_waiting <= 8
        stub.open.set()
        responses = [one.result(30) for one in asked]
    assert {response.status_code for response in responses} == {200, 429}
    for i, response in enumerate(responses):
        if response.status_code == 200:
            values = [row["value"] for row in response.json()["predictions"]]
            assert values == [i, i + 1]
        else:
            assert int(response.headers["retry-after"]) >= 1
            assert "Ask again in" in response.json()["error"]
    num_answered = sum(response.status_code == 200 for response in responses)
    assert sum(map(len, stub.batches)) == 2 * num_answered == service.batcher.num_rows["stars"]
    assert service.num_requests == {200: num_answered, 429: 40 - num_answered}


def test_what_is_taken_is_answered_while_it_stops(start, stub):
    client, service = start(max_batch=2, max_wait_ms=60_000)
    stub.open.clear()
    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(client.post, "/predict", json={"adapter": "stars", "texts": ["x" * i]})
            for i in range(3)  # a batch that is computed, and a row that waits for others
        ]
        until(lambda: service.batcher.num_open == 3 and service.batcher.num_waiting == 1)
        stopped = client.portal.start_task_soon(service.batcher.stop)
        until(lambda: service.batcher.stopping)
        refused = client.post("/predict", json=BOOKS)
        assert refused.status_code == 503 and "stopping" in refused.json()["error"]
        assert client.get("/health").status_code == 503
        assert not stopped.done()
        stub.open.set()
        responses = [one.result(30) for one in asked]
        stopped.result(30)
    assert [one.json()["predictions"][0]["value"] for one in responses] == [0, 1, 2]


def test_a_row_that_fails_takes_no_other_with_it(start, caplog):
    client, _ = start(max_wait_ms=10_000, max_batch=3)
    texts = (["fine"], ["broken"], ["good"])
    responses = together(client, [{"adapter": "books", "texts": one} for one in texts])
    assert [one.status_code for one in responses] == [200, 500, 200]
    assert "log of the service" in responses[1].json()["error"]
    assert responses[2].json()["predictions"] == [expected("books", "good").as_dict()]


BAD = {
    "no-json": (400, b"{", "The body is no JSON"),
    "no-utf8": (400, b'{"texts": ["\xff"]}', "The body is no JSON"),
    "deep": (400, b'{"texts": ' + b"[" * 100_000, "The body is no JSON"),
    "digits": (400, b'{"texts": ' + b"9" * 5000 + b"}", "The body is no JSON"),
    "nothing": (400, b"", "The body is empty"),
    "blanks": (400, b" \n", "The body is empty"),
    "list": (422, b"[]", "The body is no JSON object but a list. Expected {"),
    "null": (422, b"null", "The body is no JSON object but null"),
    "true": (422, b"true", "The body is no JSON object but a boolean"),
    "key-twice": (
        400,
        b'{"adapter": "books", "texts": ["a"], "texts": ["b"]}',
        "it has the key 'texts' twice",
    ),
    "number": (422, {"adapter": "books", "texts": ["a", 1]}, "texts[1]"),
    "string": (422, {"adapter": "books", "texts": "a"}, "texts:"),
    "surrogate": (422, b'{"adapter": "books", "texts": ["\\ud800"]}', "Row 1 has half a character"),
    "unknown-field": (422, {**BOOKS, "batch": 3}, "batch:"),
    "no-adapter": (422, {"texts": ["a"]}, 'Name the "adapter"'),
    "no-such-adapter": (404, {"adapter": "cars", "texts": ["a"]}, "no adapter 'cars'"),
    "no-texts": (422, {"adapter": "books"}, 'give "texts" alone'),
    "both": (422, {**BOOKS, "pairs": [["a", "b"]]}, 'give "texts" alone'),
    "pairs": (422, {"adapter": "books", "pairs": [["a", "b"]]}, 'give "texts" alone'),
    "texts-for-pairs": (422, {"adapter": "both", "texts": ["a"]}, 'give "pairs" alone'),
    "triple": (422, {"adapter": "both", "pairs": [["a", "b", "c"]]}, "pairs[0]"),
    "too-many": (413, {"adapter": "books", "texts": ["a"] * 6}, "6 rows in one request"),
    "too-large": (413, {"adapter": "books", "texts": ["a" * 200_000]}, "more than 150,000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_one_sentence(start, stub, name):
    client, _ = start(max_texts=5, max_bytes=150_000)
    status, body, told = BAD[name]
    given = {"json": body} if isinstance(body, dict) else {"content": body}
    headers = {"Content-Type": "application/json"}
    response = client.post("/predict", headers=headers, **given)
    assert response.status_code == status, response.text
    text = response.json()["error"]
    assert list(response.json()) == ["error"]
    assert told in text and "\n" not in text and text.endswith(".")
    assert not stub.batches
    assert client.post("/predict", json=BOOKS).status_code == 200


@pytest.mark.parametrize("name", ["texts", "pairs", "keys"])
def test_what_is_wrong_many_times_is_said_once(start, name, monkeypatch):
    """A request of 1 MiB with a fault an item took hundreds of MB, and all others waited."""
    app = pytest.importorskip("fastapi.exceptions")
    seen, begin = [], app.RequestValidationError.__init__

    def init(self, errors, **more):
        seen.append(len(errors))
        begin(self, errors, **more)

    monkeypatch.setattr(app.RequestValidationError, "__init__", init)
    client, _ = start()
    bad = {"texts": [1] * 100_000, "pairs": [["a", "b"], *[[]] * 100_000]}
    body = {name: bad[name]} if name in bad else {f"k{i}": 1 for i in range(50_000)}
    response = client.post("/predict", json={"adapter": "books", **body})
    assert response.status_code == 422
    told = {"texts": "texts[0]: ", "pairs": "pairs[1][0]: ", "keys": "k0: unexpected keyword"}
    assert response.json()["error"].startswith(told[name])
    assert max(seen) < 5


def test_a_body_without_its_length_is_counted(start):
    client, _ = start(max_bytes=100)
    parts = (b"x" * 60 for _ in range(3))
    assert client.post("/predict", content=parts).status_code == 413


def test_other_paths_methods_and_content_types(client):
    form = client.post("/predict", data={"texts": "a"})
    assert form.status_code == 415 and "Give application/json" in form.json()["error"]
    none = client.post("/predict", content=b"{}")
    assert none.status_code == 415 and "The Content-Type is None" in none.json()["error"]
    for method, path in (("post", "/predict/"), ("get", "/adapters/"), ("get", "/health/")):
        slash = getattr(client, method)(path, follow_redirects=False)
        assert slash.status_code == 404 and f"nothing at {path}" in slash.json()["error"]
    utf8 = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/predict", json=BOOKS, headers=utf8).status_code == 200
    nowhere = client.get("/predictions")
    assert nowhere.status_code == 404 and "nothing at /predictions" in nowhere.json()["error"]
    get = client.get("/predict")
    assert get.status_code == 405 and "POST /predict" in get.json()["error"]
    assert get.headers["allow"] == "POST"


def test_what_it_says_of_itself(start):
    client, service = start(queue=77, max_texts=7)
    assert client.get("/health").json()["status"] == "ok"
    found = client.get("/adapters").json()
    assert found["limits"]["queue"] == 77
    assert found["adapters"][-1] == {
        "name": "both", "kind": "classes", "labels": ["bad", "good"], "num_texts": 2,
    }  # fmt: skip
    assert [one["name"] for one in found["adapters"]] == list(KINDS)
    client.post("/predict", json={"adapter": "films", "texts": ["a", "b"]})
    client.post("/predict", json={"adapter": "cars", "texts": ["a"]})
    told = client.get("/metrics").text
    for line in (
        'fairseq_peft_requests_total{status="200"} 3',
        'fairseq_peft_requests_total{status="404"} 1',
        'fairseq_peft_rows_total{adapter="films"} 2',
        'fairseq_peft_rows_total{adapter="books"} 0',
        "fairseq_peft_rows_waiting 0",
    ):
        assert line in told.splitlines()


def test_its_page_asks_no_other_server(client):
    page = client.get("/docs").text
    addresses = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page)
    addresses = [a or b for a, b in addresses]
    assert "/openapi.json" in addresses and len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200, address
    schema = client.get("/openapi.json").json()
    predict = schema["paths"]["/predict"]["post"]
    assert predict["summary"] == "The class of each text, or pair of texts, by one adapter"
    assert schema["paths"]["/health"]["get"]["summary"] == "Whether questions are taken"
    responses = predict["responses"]
    assert {"200", "400", "404", "413", "422", "429", "503"} <= set(responses)
    assert responses["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Refusal")
    assert set(schema["components"]["schemas"]["Question"]["properties"]) == {
        "adapter", "texts", "pairs",
    }  # fmt: skip


def test_an_answer_is_as_its_schema_says(client):
    """The responses are not checked by FastAPI when they go out: here they are."""
    pydantic = pytest.importorskip("pydantic")
    for name, row in (("books", "a"), ("tags", "bc"), ("stars", "d")):
        body = client.post("/predict", json={"adapter": name, "texts": [row]}).content
        found = pydantic.TypeAdapter(services.Answer).validate_json(body)
        kind = services.Number if name == "stars" else services.Class
        assert type(found.predictions[0]) is kind


def test_limits_that_cannot_be():
    for limits, told in (
        ({"max_batch": 0}, "--max-batch 0: give 1 or more"),
        ({"max_wait_ms": -1}, "--max-wait-ms -1"),
        ({"max_wait_ms": float("nan")}, "--max-wait-ms nan"),
        ({"queue": 5, "max_texts": 6}, "would never fit into --queue 5"),
    ):
        with pytest.raises(InputError, match=told):
            services.Limits(**limits).check()


def test_a_request_that_nobody_waits_for_is_not_computed(stub):
    async def run():
        service = services.PredictService(stub, services.Limits(max_batch=1, max_wait_ms=0))
        await service.batcher.start()
        stub.open.clear()
        asked = [
            asyncio.ensure_future(service.batcher.answer(name, ["x"]))
            for name in ("books", "films", "tags")
        ]
        while service.batcher.num_waiting != 2:
            await asyncio.sleep(0.001)
        asked[1].cancel()
        await asyncio.sleep(0)
        stub.open.set()
        await service.batcher.close()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, cancelled, last = asyncio.run(run())
    assert stub.batches == [["books"], ["tags"]]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert json.dumps(first[0].as_dict()) == json.dumps(expected("books", "x").as_dict())
    assert last == [expected("tags", "x")]

"""``fairseq-peft serve`` with real adapters: what ``predict`` says, joined in one forward pass; and
as a process with a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import ROOT, TOLERANCE, WORD_START, word_tokenizer
from verbs import refused, run

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
testclient = pytest.importorskip("starlette.testclient")

import adapter_folders  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from stub_classifier import Stub, until  # noqa: E402

from fairseq_peft import Classifier  # noqa: E402
from fairseq_peft.serving.service import server  # noqa: E402
from fairseq_peft.serving.service.app import create_app  # noqa: E402
from fairseq_peft.serving.service.base import Limits  # noqa: E402
from fairseq_peft.serving.service.predict import PredictService  # noqa: E402

#: How often a service is killed, where it is said: scripts/test.sh kill.
KILLS = int(os.getenv("KILLS", "0"))

NAMES = ("lora", "adapter", "prompt")
TEXTS = ["", "w1 w7 w7", *(" ".join(f"w{i * j % 31}" for j in range(i)) for i in range(2, 60, 7))]


@pytest.fixture(scope="module")
def dictionary():
    """The words of ``word_tokenizer``."""
    words = Dictionary()
    for i in range(30):
        words.add_symbol(f"{WORD_START}w{i}")
    words.add_symbol("<mask>")
    return words


@pytest.fixture(scope="module")
def base(dictionary, tmp_path_factory):
    state = adapter_folders.base_state(dictionary)
    return adapter_folders.save_base(tmp_path_factory.mktemp("served") / "base.pt", state)


@pytest.fixture(scope="module")
def folder_of(dictionary, base):
    """``folder_of("lora", rank=2)``: the folder of an adapter, without training."""
    state, tokenizer = torch.load(base, weights_only=True)["model"], word_tokenizer()

    def make(method, **given):
        model = adapter_folders.perturbed(dictionary, state, method, **given)
        max_tokens = model.max_positions() - model.num_reserved
        reads = {"max_tokens": max_tokens, "num_texts": 1, "begin": True}
        path = base.parent / "-".join(map(str, [method, *given.values()]))
        return adapter_folders.write(path, model, state, base, tokenizer, input=reads)

    return make


@pytest.fixture(scope="module")
def folders(folder_of):
    return {name: folder_of(name, seed=number) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def predicted(folders, base):
    """Adapter -> the rows of ``fairseq-peft predict --format jsonl``, it alone on the base."""
    texts, found = base.parent / "texts", {}
    texts.write_text("".join(f"{text}\n" for text in TEXTS))
    for name, adapter in folders.items():
        out = base.parent / f"{name}.jsonl"
        words = ["--format", "jsonl", "--base", base, "--adapter", adapter, "--out", out]
        run("predict", *words, texts)
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["probability"] for rows in found.values() for row in rows}) > 2 * len(TEXTS)
    return found


def check(rows, expected):
    """Rows of an answer are those of ``predict``, whatever the batch was."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected):
        assert row["label"] == other["label"]
        # A probability moves less than the logits do.
        assert row["probability"] == pytest.approx(other["probability"], abs=TOLERANCE["fp32"])
        for label, probability in other["probabilities"].items():
            assert row["probabilities"][label] == pytest.approx(probability, abs=TOLERANCE["fp32"])


def test_it_is_what_predict_says_and_adapters_share_a_pass(folders, base, predicted, monkeypatch):
    classifier = Classifier.load(base, folders["lora"], name="lora")
    for name in NAMES[1:]:
        classifier.add(name, folders[name])
    passes, forward = [], classifier._shared._forward
    monkeypatch.setattr(
        classifier._shared, "_forward", lambda *args: passes.append(args[1]) or forward(*args)
    )
    limits = Limits(max_batch=3 * len(TEXTS), max_wait_ms=10_000)
    service = PredictService(classifier, limits)
    ask = [{"adapter": name, "texts": TEXTS} for name in NAMES]
    with testclient.TestClient(create_app(service)) as client, ThreadPoolExecutor() as all:
        responses = list(all.map(lambda one: client.post("/predict", json=one), ask))
    for name, response in zip(NAMES, responses):
        check(response.json()["predictions"], predicted[name])
    assert service.batcher.num_batches == 1
    # The rows of one batch; those with the positions of a prompt are no pass of their own.
    assert len(passes) == 1
    assert sorted(passes[0]) == sorted(NAMES * len(TEXTS))


@contextlib.contextmanager
def serving(python, *words):
    """A process of ``fairseq-peft serve``: its address, its id, and itself."""
    command = [python, "-m", "fairseq_peft.cli", "serve", "--port", 0, *words]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        address, pid = re.search(r"at (http://\S+); .* kill (\d+)", line).groups()
        yield address, int(pid), process
    finally:
        process.kill()
        process.stderr.close()
        process.wait(timeout=60)


def post(address, question):
    """(status, answer); (None, None) where nobody listens any more, or does not answer as JSON."""
    request = urllib.request.Request(
        f"{address}/predict", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        try:
            response = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return response.status, json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None, None


def open_requests(address):
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as response:
        return int(re.search(r"requests_open (\d+)", response.read().decode())[1])


def test_a_process_answers_and_ends_well(python, folders, base, predicted):
    """On SIGTERM what waits is answered at once, and the process ends with 0."""
    words = ["--base", base, "--max-wait-ms", 30_000]
    words += [word for name in NAMES[:2] for word in ("--adapter", f"{name}={folders[name]}")]
    with serving(python, *words) as (address, pid, process), ThreadPoolExecutor(2) as threads:
        assert address.startswith("http://127.0.0.1:")
        asked = [
            threads.submit(post, address, {"adapter": name, "texts": TEXTS}) for name in NAMES[:2]
        ]
        while open_requests(address) < 2:  # they wait for others to join them
            assert process.poll() is None
        os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        for name, one in zip(NAMES, asked):
            status, found = one.result(20)
            assert status == 200
            check(found["predictions"], predicted[name])
        assert "stopping" in process.stderr.read()
        assert post(address, {}) == (None, None)


@pytest.mark.skipif(not KILLS, reason="scripts/test.sh kill")
def test_a_killed_service_answers_again_at_the_same_place(python, folders, base, predicted):
    """Who has asked gets a whole answer or none, and the next service takes the port at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--base", base, "--port", port, "--adapter", f"lora={folders['lora']}"]
    question, rng = {"adapter": "lora", "texts": TEXTS}, random.Random(1)

    def asked(address):
        status, found = post(address, question)
        if status is not None:
            check(found["predictions"], predicted["lora"])
        return status

    for _ in range(KILLS):
        with serving(python, *words) as (address, pid, _), ThreadPoolExecutor(4) as threads:
            assert asked(address) == 200
            answers = [threads.submit(asked, address) for _ in range(20)]
            for answer in answers[: rng.randint(0, 20)]:
                answer.result(60)
            os.kill(pid, signal.SIGKILL)
            assert {answer.result(60) for answer in answers} <= {200, None}


def test_what_it_refuses_at_the_start(folders, folder_of, base, capsys, monkeypatch):
    def no(*words):
        return refused(capsys, "serve", "--base", base, *words)

    adapter = f"books={folders['lora']}"
    assert "expected NAME=DIR" in no("--adapter", folders["lora"])
    assert "expected NAME=DIR" in no("--adapter", f'bo"oks={folders["lora"]}')
    told = no("--port", 0)
    assert "cannot answer by itself" in told and "--adapter NAME=DIR" in told
    assert "given twice" in no("--adapter", adapter, "--adapter", adapter)
    assert "--threads 0" in no("--adapter", adapter, "--threads", 0)
    assert "--queue 0" in no("--adapter", adapter, "--queue", 0)
    assert "--max-beam 2 would be ignored" in no("--adapter", adapter, "--max-beam", 2)
    told = no("--port", 0, "--adapter", adapter, "--target-lang", "fr")
    assert "--target-lang fr would be ignored" in told
    assert "no address here" in no("--adapter", adapter, "--host", "::::")
    assert "--port 70000: give one from 1" in no("--adapter", adapter, "--port", 70_000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "Give another port" in no("--adapter", adapter, "--port", port)
    with server.bind("127.0.0.1", 0) as taken:  # by a service that still reads its base
        port = taken.getsockname()[1]
        assert "Give another port" in no("--adapter", adapter, "--port", port)
    half = f"half={folder_of('lora', precision='bf16')}"
    told = no("--port", 0, "--adapter", adapter, "--adapter", half)
    assert "different precisions (books in fp32, half in bf16)" in told
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'fairseq-peft[serve]'" in no("--adapter", adapter)


def test_ctrl_c_ends_it_and_a_second_one_does_not_wait():
    """In this process, with a classifier that never answers."""
    stub = Stub()
    stub.open.clear()
    service, told = PredictService(stub, Limits()), []
    question = {"adapter": "books", "texts": ["a"]}

    def interrupt(address):
        try:
            asked = threading.Thread(target=post, args=(address, question), daemon=True)
            asked.start()
            until(lambda: service.batcher.num_open == 1)
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: service.batcher.stopping)
            told.append(post(address, question)[0])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with server.bind("127.0.0.1", 0) as own:
        address = f"http://127.0.0.1:{own.getsockname()[1]}"
        helper = threading.Thread(target=interrupt, args=(address,))
        helper.start()
        server.serve(service, own)
    helper.join()
    assert told == [503]
    assert stub.batches == []  # it has not waited for the answer
    stub.open.set()

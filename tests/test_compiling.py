"""``--compile``: layers as graphs compute what layers compute, for every method, and where nothing
can be compiled a run goes on without.

torch's backend ``eager`` runs a graph step by step, and ``aot_eager`` its gradient, too: they show
that a graph is right, in seconds. One test has the real compiler.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from helpers import TOLERANCE, fairseq_command, train_flags
from verbs import run as verb

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from bench import left_behind  # noqa: E402
from families import FAMILIES, Roberta  # noqa: E402
from runs import same  # noqa: E402
from settings import parametrize  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch._inductor.runtime import cache_dir_utils  # noqa: E402

from fairseq_peft import compiling, methods  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.layers import dropout  # noqa: E402
from fairseq_peft.methods.oft import OFTLinear  # noqa: E402

DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
#: Rows and tokens of batches.
SHAPES = ((4, 12), (6, 19))
SETTINGS = [(name, {}) for name in methods.available()] + [
    ("lora", {"peft_targets": "all-linear", "lora_dropout": 0.2}),
    ("dora", {"peft_targets": "q_proj,fc2", "lora_dropout": 0.2}),
    ("adapter", {"adapter_style": "pfeiffer", "adapter_dropout": 0.2}),
    ("prefix", {"prefix_mlp": 6, "prefix_num_tokens": 3}),
    ("adapter,prefix", {"prefix_num_tokens": 4}),
    ("lora,ia3", {"peft_targets": "k_proj,fc2"}),
]


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """``backend("eager")``: torch's backend of that name; graphs of other tests are gone."""
    torch._dynamo.reset()
    counters.clear()
    # Thousands of lines, where a test fails.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)

    def choose(name):
        monkeypatch.setattr(compiling, "BACKEND", name)

    choose("eager")
    yield choose
    torch._dynamo.reset()


def build(family, peft="lora", **given):
    model = family.build(peft, **{**DROPOUT, **given})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(family, rows, tokens):
    """Token ids (B, T) with padding at the right."""
    words = family.dictionary
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(4, len(words) - 1, (rows, tokens), generator=generator)
    ids[:, 0], ids[:, -1] = words.bos(), words.eos()
    ids[1, tokens // 2] = words.eos()
    ids[1, tokens // 2 + 1 :] = words.pad()
    return ids


def outputs(family, model, modes=("train", "eval"), seed=5, shapes=SHAPES):
    """Scores of each batch, and in training the gradients."""
    found = []
    for mode in modes:
        model.train(mode == "train")
        torch.manual_seed(seed)
        for shape in shapes:
            model.zero_grad()
            with torch.set_grad_enabled(model.training):
                scores = family.scores(model, batch(family, *shape))
            found.append(scores.detach())
            if model.training:
                scores.float().square().sum().backward()
                found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return found


def difference(found, expected):
    """The largest, as a share of the largest number of a tensor where that is above 1."""
    assert len(found) == len(expected) > 0
    scales = [max(1, e.abs().max().item()) for e in expected]
    return max((f - e).abs().max().item() / s for f, e, s in zip(found, expected, scales))


def caller_of(model):
    return model.encoder.sentence_encoder.call


@pytest.fixture(scope="module")
def roberta(dictionary):
    return Roberta(dictionary)


@parametrize(SETTINGS)
def test_a_graph_computes_what_the_layer_does(roberta, peft, given):
    """With the same dropout; no step is outside of the graph, and other widths need no other."""
    given = {"encoder_layers": 1, **given}
    expected = outputs(roberta, build(roberta, peft, **given))
    model = build(roberta, peft, compile="on", **given)
    found = outputs(roberta, model)
    assert difference(found, expected) < TOLERANCE["fp32"]
    assert caller_of(model).compiles and counters["stats"]["unique_graphs"] == 2  # train and eval
    assert not counters["graph_break"]
    # The check sees dropout: other numbers make another result.
    assert difference(outputs(roberta, model, seed=6), expected) > 1e-3


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"roberta"}))
def test_the_other_families(dictionary, name):
    """Generation, step by step, calls layers as they are."""
    family = FAMILIES[name](dictionary)
    expected = outputs(family, build(family))
    assert difference(outputs(family, build(family, compile="on")), expected) < TOLERANCE["fp32"]
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]
    if name != "transformer_lm":
        return
    model = build(family, compile="on")
    counters.clear()
    tokens = batch(family, 3, 6)[:, :3]
    with torch.no_grad():
        steps, state = [], {}
        for length in (1, 2, 3):
            steps.append(model.decoder(tokens[:, :length], incremental_state=state)[0][:, -1])
        assert not counters["stats"]
        whole = model.decoder(tokens)[0]
    assert (torch.stack(steps, 1) - whole).abs().max() < TOLERANCE["fp32"]


def test_layers_and_widths_share_graphs(roberta):
    """Of five layers, the first, whose input needs no gradient, the last, which computes one
    position, and the three between."""
    model = build(roberta, compile="on", encoder_layers=5)
    outputs(roberta, model, ["train"])
    assert counters["stats"]["unique_graphs"] == 3
    outputs(roberta, model, ["train"], shapes=[(5, 9), (7, 24), (2, 31)])
    assert counters["stats"]["unique_graphs"] == 3


def test_layers_that_are_computed_again(roberta):
    given = {"checkpoint_activations": True}
    expected = outputs(roberta, build(roberta, **given), ["train"])
    found = outputs(roberta, build(roberta, compile="on", **given), ["train"])
    assert difference(found, expected) < TOLERANCE["fp32"]


def test_the_gradient_of_what_is_fp32_in_bf16_is_so_in_a_graph(backend, monkeypatch):
    """OFT's rotations compute in fp32 within autocast, and so does their gradient."""
    backend("aot_eager")
    generator = torch.Generator().manual_seed(1)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = OFTLinear(torch.nn.Linear(16, 16), 2, 8)

        def forward(self, x, keep):
            return self.map(x)

    layer = Layer()
    with torch.no_grad():
        layer.map.oft_q.normal_(generator=generator)
    x = torch.randn(3, 5, 16, generator=generator)

    def gradient(name):
        torch._dynamo.reset()
        with torch.autocast("cpu", torch.bfloat16):
            y = compiling.Caller(name)(layer, x, None)
        return torch.autograd.grad(y.float().square().sum(), layer.map.oft_q)[0]

    expected = gradient("off")
    assert difference([gradient("on")], [expected]) < TOLERANCE["fp32"]
    if not hasattr(torch._functorch.config, "backward_pass_autocast"):
        pytest.skip("this torch has no backward_pass_autocast")
    monkeypatch.setattr(compiling, "SETTINGS", {})
    assert difference([gradient("on")], [expected]) > 100 * TOLERANCE["fp32"]


@pytest.mark.end_to_end
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_the_real_compiler(roberta, backend, monkeypatch, tmp_path):
    """torch's own dropout, LoRA's, draws as without a graph, too; graphs are where they belong."""
    backend("inductor")
    # As torch leaves it in a process that has imported torch._dynamo.
    monkeypatch.setenv(compiling.VARIABLE, cache_dir_utils.default_cache_dir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # No processes that would import torch to hand a few files to g++.
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    given = {"encoder_layers": 1, "lora_dropout": 0.2}
    expected = outputs(roberta, build(roberta, **given), ["train"])
    model = build(roberta, compile="on", **given)
    found = outputs(roberta, model, ["train"])
    assert caller_of(model).compiles
    assert 0 < difference(found, expected) < TOLERANCE["fp32"]
    assert list((tmp_path / "fairseq_peft" / "compiled").rglob("*.so"))


# Where nothing is compiled


def failing_backward(graph, inputs):
    """A backend whose compiler of gradients fails, after that of the forward pass has not."""
    from torch._dynamo.backends.common import aot_autograd

    def fails(graph, inputs):
        raise OSError("no room\nfor it")

    return aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fails)(graph, inputs)


def failing(graph, inputs):
    raise RuntimeError("first line\nx.cpp:1: fatal error: Python.h: No such file\nlast line")


@pytest.mark.parametrize(
    "fails, reason",
    [
        (failing, "RuntimeError: x.cpp:1: fatal error: Python.h: No such file"),
        (failing_backward, "OSError: no room"),
    ],
)
def test_one_warning_and_the_same_numbers(roberta, backend, caplog, fails, reason):
    expected = outputs(roberta, build(roberta))
    torch._dynamo.register_backend(fails, name=fails.__name__)
    backend(fails.__name__)
    model = build(roberta, compile="on")
    with caplog.at_level(logging.WARNING, compiling.logger.name):
        found = outputs(roberta, model)
    (line,) = [record.message for record in caplog.records if "--compile" in record.message]
    assert line.startswith("--compile on: nothing is compiled, and layers run as they are")
    assert reason in line and not caller_of(model).compiles
    assert difference(found, expected) < TOLERANCE["fp32"]


def test_an_error_of_a_layer_is_its_own(roberta):
    """It is no reason to go on without graphs."""
    model = build(roberta, compile="on")

    def broken(module, inputs):
        raise InputError("A batch is too long.")

    model.encoder.sentence_encoder.layers[0].register_forward_pre_hook(broken)
    with pytest.raises(InputError, match="too long"):
        outputs(roberta, model)


def test_a_machine_for_which_there_is_no_compiling(roberta, caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Dynamo is not supported on Python 3.99+")

    expected = outputs(roberta, build(roberta))
    monkeypatch.setattr(torch, "compile", refuse)
    found = outputs(roberta, build(roberta, compile="on"))
    assert "Dynamo is not supported on Python 3.99+" in caplog.text
    assert difference(found, expected) < TOLERANCE["fp32"]


@pytest.mark.end_to_end
def test_a_run_without_a_compiler(fairseq, data_folder, tmp_path):
    """The real command: a warning in its log, and the checkpoint of a run without the flag."""
    flags = {"encoder_layers": 1, "dropout": 0.1}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "off", **flags))
    assert done.returncode == 0, done.stderr
    words = train_flags(data_folder, tmp_path / "on", compile="on", **flags)
    env = {"CXX": "/nothing/g++", "FAIRSEQ_PEFT_PRECISION": "fp32"}
    done = fairseq_command(
        "train", *words, env={**env, compiling.VARIABLE: str(tmp_path / "graphs")}
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("--compile on: nothing is compiled") == 1
    assert "No working C++ compiler" in done.stdout + done.stderr
    assert same(tmp_path / "on" / "checkpoint_last.pt", tmp_path / "off" / "checkpoint_last.pt")


PROCESS = """
import logging, sys, torch
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
from fairseq_peft import compiling
caller = compiling.Caller("on")
layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
layer.forward = lambda x, keep: torch.nn.Sequential.forward(layer, x)
with torch.no_grad():
    found = caller(layer, torch.ones(2, 3, 8), None)
    assert torch.allclose(found, layer(torch.ones(2, 3, 8), None), atol=1e-6)
assert caller.compiles
"""


@pytest.mark.parametrize("zeros", [False, True])
def test_half_a_file_of_a_process_that_was_killed_is_compiled_anew(tmp_path, zeros):
    """What killed ones have left: nothing, or room for what was to come."""
    env = {**os.environ, compiling.VARIABLE: str(tmp_path)}
    words = [sys.executable, "-c", PROCESS]
    first = subprocess.run(words, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    libraries = sorted(tmp_path.rglob("*.main.so"))
    whole = [path.read_bytes() for path in libraries]
    assert libraries
    for path, content in zip(libraries, whole):
        path.write_bytes(bytes(len(content) if zeros else 0))
    second = subprocess.run(words, env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert all(f"{path} is half a file" in second.stdout for path in libraries), second.stdout
    assert [path.stat().st_size for path in libraries] == [len(content) for content in whole]


def test_only_files_of_the_cache_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv(compiling.VARIABLE, str(tmp_path / "graphs"))
    (tmp_path / "graphs").mkdir()
    for name in ("other.so", "graphs/a.main.so", "graphs/b.py"):
        path = tmp_path / name
        path.write_text("")
        removed = compiling.remove_broken(f"ImportError: {path}: file too short")
        assert removed == (name == "graphs/a.main.so") == (not path.exists())
    assert not compiling.remove_broken(f"ImportError: {tmp_path}/graphs/gone.so: none")
    monkeypatch.delenv(compiling.VARIABLE)
    assert not compiling.remove_broken("ImportError: /lib/x.so: file too short")


# What stays as it is


def test_names_copies_and_pickles(roberta):
    model, plain = build(roberta, compile="on"), build(roberta)
    expected = outputs(roberta, plain, ["eval"])
    assert difference(outputs(roberta, model, ["eval"]), expected) < TOLERANCE["fp32"]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    memo = {id(roberta.dictionary): roberta.dictionary}
    other = copy.deepcopy(model, memo)
    assert caller_of(other) is caller_of(model)
    assert difference(outputs(roberta, other, ["eval"]), expected) < TOLERANCE["fp32"]
    caller = pickle.loads(pickle.dumps(caller_of(model)))
    assert caller.name == "on" and caller._compiled is None


def test_hooks_are_called(roberta):
    model, seen = build(roberta, compile="on"), []
    layer = model.encoder.sentence_encoder.layers[0]
    hook = layer.fc1.register_forward_hook(lambda module, inputs, output: output * 0)
    found = outputs(roberta, model, ["eval"])
    hook.remove()
    plain = build(roberta)
    plain.encoder.sentence_encoder.layers[0].fc1.register_forward_hook(
        lambda module, inputs, output: seen.append(1) or output * 0
    )
    expected = outputs(roberta, plain, ["eval"])
    assert seen and difference(found, expected) < TOLERANCE["fp32"]
    assert difference(outputs(roberta, model, ["eval"]), expected) > 1e-3  # the hook is gone


def train(data, folder, **more):
    """A run in this process, whose graphs are those of the test."""
    from fairseq import checkpoint_utils, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import train

    words = train_flags(data, folder, "roberta_small_lora", **{**DROPOUT, **more})
    parsed = options.parse_args_and_arch(options.get_training_parser(), words)
    vars(checkpoint_utils.save_checkpoint).pop("best", None)  # of the run before
    train.main(convert_namespace_to_omegaconf(parsed))


@pytest.mark.end_to_end
def test_a_run_goes_on_with_and_without(data_folder, tmp_path):
    """Its files are those of a run without the flag, bit for bit."""
    for name, choices in {"plain": ("off", "off"), "on off": ("on", "off")}.items():
        for epochs, choice in enumerate(choices, start=1):
            train(data_folder, tmp_path / name, compile=choice, max_epoch=epochs)
            assert bool(counters["stats"]) == (choice == "on")
            counters.clear()
    last = [tmp_path / name / "checkpoint_last.pt" for name in ("plain", "on off")]
    assert same(*last)
    plain, other = (path.parent / "adapter" for path in last)
    name = "adapter.safetensors"
    assert (plain / name).read_bytes() == (other / name).read_bytes()
    assert "compile" not in json.loads((other / "adapter.json").read_text())["model"]


@pytest.mark.end_to_end
def test_a_checkpoint_of_graphs_is_merged_without_them(data_folder, tmp_path):
    train(data_folder, tmp_path / "run", compile="on", max_epoch=1)
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    counters.clear()
    verb("merge", checkpoint, tmp_path / "merged.pt")
    assert not counters["stats"]
    merged = torch.load(tmp_path / "merged.pt", weights_only=False)
    assert "lora" not in " ".join(merged["model"])
    assert "compile" not in merged["cfg"]["model"]


# What is refused


def test_what_there_is_not(roberta):
    with pytest.raises(InputError, match="--compile 'yes' is unknown: give off, on or graphs."):
        roberta.build("lora", compile="yes")
    with pytest.raises(InputError, match="--compile graphs and --checkpoint-activations"):
        roberta.build("lora", compile="graphs", checkpoint_activations=True)
    model = roberta.build("lora", compile="graphs")  # another machine may have a GPU
    with pytest.raises(InputError, match="--compile graphs records CUDA graphs"):
        outputs(roberta, model)


@pytest.mark.end_to_end
def test_graphs_need_a_gpu(fairseq, data_folder, tmp_path):
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", compile="graphs"))
    assert done.returncode == 1 and left_behind(tmp_path / "run") == []
    (line,) = done.stderr.splitlines()
    assert line.startswith("fairseq_peft: error: --compile graphs records CUDA graphs, and the mod")


def test_members_are_refused(data_folder, tmp_path):
    from fairseq_peft.sweeps.members import runs

    words = train_flags(data_folder, tmp_path / "run", compile="on")
    with pytest.raises(InputError, match="no graph of --compile on would serve twice"):
        runs.check([runs.parse(words)])
    runs.check([runs.parse(train_flags(data_folder, tmp_path / "run"))])


# The step that draws


def test_the_opaque_step_is_a_sound_one():
    x = torch.randn(3, 8, requires_grad=True)
    step = torch.ops.fairseq_peft.keep_mask.default
    torch.library.opcheck(step, (x.detach(), 0.5), test_utils=("test_schema", "test_faketensor"))
    torch.manual_seed(1)
    expected = dropout.keep_mask(x.shape, 0.5, x.dtype)
    torch.manual_seed(1)
    assert torch.equal(step(x.detach(), 0.5), expected)
    assert torch.Tag.nondeterministic_seeded in step.tags  # drawn once, never again in backward


def test_where_graphs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiling.VARIABLE, "elsewhere")
    compiling.keep_cache()
    assert os.environ[compiling.VARIABLE] == "elsewhere" and not list(tmp_path.iterdir())
    monkeypatch.setenv(compiling.VARIABLE, cache_dir_utils.default_cache_dir())
    compiling.keep_cache()
    assert os.environ[compiling.VARIABLE] == str(tmp_path / "fairseq_peft" / "compiled")
    monkeypatch.delenv(compiling.VARIABLE)
    compiling.keep_cache()
    assert os.environ[compiling.VARIABLE] == str(tmp_path / "fairseq_peft" / "compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("here first")
    monkeypatch.delenv(compiling.VARIABLE)
    compiling.keep_cache()
    assert compiling.VARIABLE not in os.environ

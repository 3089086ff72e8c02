"""Several adapters on one base: each row is what its adapter alone says, and the base stays."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from helpers import TOLERANCE
from prediction import FORMS

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.end_to_end

import fairseq_peft  # noqa: E402
from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.methods.lora import LoRALinear  # noqa: E402
from fairseq_peft.sharing.switches import Switch  # noqa: E402

#: Beside those of FORMS: the same kind once more, other lengths, other places.
MORE = {
    "lora-fc1": {"arch": "roberta_small_lora", "peft_targets": "fc1,embed_tokens", "lora_rank": 2},
    "prompt-before": {
        "arch": "roberta_small_prompt",
        "prompt_num_tokens": 9,
        "prompt_placement": "before_bos",
    },
    "prefix-shared": {"arch": "roberta_small_prefix", "prefix_num_tokens": 7},
    "ia3": {"arch": "roberta_small_ia3"},
    "layer-norm": {"arch": "roberta_small_layer_norm"},
    "compacter": {"arch": "roberta_small_compacter"},
    "pissa": {"arch": "roberta_small_lora", "lora_init": "pissa"},
    "union": {"peft": "lora,prefix", "arch": "roberta_small"},
}
NAMES = [*(name for name in FORMS if name != "full"), *MORE]


@pytest.fixture(scope="module")
def alone(train, base, texts):
    """Name -> logits (N, classes) of a classifier that has only this adapter."""
    found = {}
    for name in NAMES:
        folder = train(name, **MORE.get(name, {})) / "adapter"
        rows = fairseq_peft.Classifier.load(base, folder).logits(texts)
        found[name] = torch.stack([logits for _, logits in rows])
    return found


@pytest.fixture
def classifier(train, base, alone):
    own = fairseq_peft.Classifier.load(base, train(NAMES[0]) / "adapter")
    own.remove("default")
    for name in NAMES:
        own.add(name, train(name) / "adapter")
    return own


def tensors(classifier):
    """The model's own tensors: name -> (the tensor, its bytes then)."""
    model = classifier._shared.model
    return {name: (t, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}


def test_rows_of_one_pass_are_those_of_each_adapter_alone(classifier, alone, texts):
    """Every adapter meets rows of all lengths, and in one batch all of them are there."""
    assert classifier.adapters == NAMES
    rng = random.Random(5)
    for _ in range(3):
        names = [rng.choice(NAMES) for _ in texts]
        found = list(classifier.logits(texts, names))
        assert [name for name, _ in found] == names
        for row, (name, logits) in enumerate(found):
            assert torch.allclose(logits, alone[name][row], atol=TOLERANCE["fp32"], rtol=0), name
    # The adapters differ, so a row that met another's would show.
    for a in NAMES:
        assert all((alone[a] - alone[b]).abs().max() > 1e-3 for b in NAMES if a != b), a


def test_rows_of_many_adapters_of_one_rank(train, base, texts, monkeypatch):
    """Their updates are two products for all rows, and each row's is still its own."""
    found = adapter_folder.read(train("lora") / "adapter")
    classifier = fairseq_peft.Classifier.load(base, found.folder)
    for seed in range(1, 8):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in found.tensors.items()
        }
        classifier.add(f"moved{seed}", replace(found, tensors=moved))
    names = [classifier.adapters[i % 8] for i in range(len(texts))]
    alone = {name: [logits for _, logits in classifier.logits(texts, name)] for name in set(names)}
    together, beside_each = [], LoRALinear.beside_each
    monkeypatch.setattr(
        LoRALinear,
        "beside_each",
        staticmethod(lambda *args: together.append(args) or beside_each(*args)),
    )
    for batch_size in (64, 5):
        rows = list(classifier.logits(texts, names, batch_size=batch_size))
        for row, (name, logits) in enumerate(rows):
            assert torch.allclose(logits, alone[name][row], atol=TOLERANCE["fp32"], rtol=0), name
    assert together
    assert all(len({id(part) for part in args[0]}) > 1 for args in together)
    assert (alone["moved1"][0] - alone["moved2"][0]).abs().max() > 1e-2


def test_one_forward_pass_for_all(classifier, texts, monkeypatch):
    """Only prefixes that move the text by other numbers of positions take a pass of their own."""
    passes = []
    forward = classifier._shared._forward
    monkeypatch.setattr(
        classifier._shared, "_forward", lambda *args: passes.append(args) or forward(*args)
    )
    names = [NAMES[i % len(NAMES)] for i in range(len(texts))]
    classifier.predict(texts, names)
    assert [sorted(set(args[1])) for args in passes] == [
        sorted(set(NAMES) - {"prefix"}),
        ["prefix"],
    ]


def test_adding_and_removing_leave_the_base_untouched(classifier, alone, texts):
    model = classifier._shared.model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert any(isinstance(module, Switch) for module in model.modules())
    for name in reversed(NAMES):
        classifier.remove(name)
        with pytest.raises(InputError, match=f"no adapter '{name}'"):
            classifier.predict(texts[:1], name)
    assert not any(isinstance(module, Switch) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    after = model.state_dict()
    plain = {name.replace(".base.", "."): tensor for name, tensor in before.items()}
    assert after.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in after.items())


def test_an_adapter_after_others_came_and_went(classifier, alone, texts, train):
    for name in NAMES:
        if name != "ia3":
            classifier.remove(name)
    classifier.add("again", train("prompt") / "adapter")
    for own, name in (("ia3", "ia3"), ("again", "prompt")):
        found = torch.stack([logits for _, logits in classifier.logits(texts, own)])
        assert torch.allclose(found, alone[name], atol=TOLERANCE["fp32"], rtol=0)


def test_adding_opens_no_base_and_copies_nothing_of_it(classifier, train, monkeypatch):
    """So it takes milliseconds, however large the base is."""
    before = {name: tensor.data_ptr() for name, (tensor, _) in tensors(classifier).items()}

    def load(path, *args, **more):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(torch, "load", load)
    classifier.add("more", train("lora") / "adapter")
    classifier.remove("more")
    after = {name: tensor.data_ptr() for name, (tensor, _) in tensors(classifier).items()}
    assert after == before


def test_which_adapter_is_never_guessed(classifier, texts, train, base):
    with pytest.raises(InputError, match="Which adapter\\? There are 15.*Name one"):
        classifier.predict(texts)
    with pytest.raises(InputError, match="no adapter 'lorra'. Loaded: lora, linear"):
        classifier.predict(texts, "lorra")
    with pytest.raises(InputError, match="no adapter None"):
        classifier.predict(["beau", "nul"], ["lora", None])
    with pytest.raises(InputError, match="There are 1 adapters and more texts"):
        classifier.predict(["beau", "nul"], ["lora"])
    with pytest.raises(InputError, match="more adapters than texts"):
        classifier.predict(["beau"], ["lora", "ia3"])
    with pytest.raises(InputError, match="an adapter 'lora' already"):
        classifier.add("lora", train("lora") / "adapter")
    with pytest.raises(InputError, match="holds a whole model"):
        classifier.add("full", train("full") / "adapter")
    assert "full" not in classifier.adapters
    whole = fairseq_peft.Classifier.load(None, train("full") / "adapter")
    with pytest.raises(InputError, match="no base for adapters"):
        whole.add("lora", train("lora") / "adapter")

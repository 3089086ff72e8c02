"""AdapterFusion: the equation, adapters that are read once and then stay, what is refused."""

from __future__ import annotations

import shutil

import adapter_folders
import pytest
import torch
import torch.nn.functional as F
from helpers import TOLERANCE, train_flags
from settings.fusion import WIDE

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.architectures import SIZES
from fairseq_peft.methods.fusion import AdapterFusion, FusionConfig, fusions
from fairseq_peft.models import folder

PFEIFFER = {"style": "pfeiffer", "bottleneck": 5}


def flags(method, **knobs):
    return {f"{method}_{name}": value for name, value in knobs.items()}


@pytest.fixture(scope="module")
def base(dictionary):
    return adapter_folders.base_state(dictionary)


@pytest.fixture(scope="module")
def write(dictionary, base, tmp_path_factory):
    """``write("name", seed=3)``: the folder of an adapter on the base."""
    place = tmp_path_factory.mktemp("adapters")

    def make(name, peft="adapter", seed=3, on=None, **given):
        path = place / name
        if not path.exists():
            weights = on or base
            given = given or flags("adapter", **PFEIFFER)
            model = adapter_folders.perturbed(dictionary, weights, peft, seed, **given)
            adapter_folders.write(path, model, weights)
        return path

    return make


@pytest.fixture(scope="module")
def two(write):
    return f"{write('one', seed=3)},{write('two', seed=4)}"


@pytest.fixture
def fuse(build, base):
    """``fuse("one,two")``: a model that has started from the base."""

    def make(adapters, **knobs):
        model = build("fusion", **flags("fusion", adapters=adapters, **{**PFEIFFER, **knobs}))
        model.check_base(base)
        model.load_state_dict(dict(base))
        return model

    return make


def perturb(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


# ---- What is computed ------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["sequential", "pfeiffer", "parallel"])
def test_the_equation(build, style):
    """As in the paper: keys and values of each adapter, one after the other."""
    model = build("fusion", fusion_style=style, **WIDE)
    perturb(model)
    (_, slot), *_ = fusions(model).items()
    norm = model.encoder.sentence_encoder.layers[0].final_layer_norm
    h, x = torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    z = {"sequential": h, "pfeiffer": norm(x + h), "parallel": x}[style]
    act = F.gelu if style == "sequential" else F.relu
    scale = 4 if style == "parallel" else 1
    updates = [scale * adapter.up(act(adapter.down(z))) for adapter in slot.adapters]
    scores = [(slot.query(z) * slot.key(update)).sum(-1) for update in updates]
    shares = torch.stack(scores).softmax(0)
    assert shares.std(0).max() > 0.1  # the adapters are not alike
    wanted = h + sum(a[..., None] * slot.value(u) for a, u in zip(shares, updates))
    assert torch.allclose(slot(h, x, norm), wanted, atol=1e-4, rtol=1e-4)


def test_starts(build):
    (slot, *_) = fusions(build("fusion")).values()
    assert torch.equal(slot.value.weight, torch.eye(16)) and not slot.query.bias.any()
    assert slot.query.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_the_adapters_are_in_the_state_and_do_not_train(build):
    model = build("fusion")
    names = {n for n in model.state_dict() if ".adapters." in n}
    assert len(names) == 2 * 2 * 4 and names <= model.added
    assert not names & {n for n, _ in model.named_parameters()}


def test_dropout_is_for_training_and_for_the_sum(build):
    slot = next(iter(fusions(build("fusion", fusion_dropout=0.5)).values()))
    assert all(adapter.dropout == 0 for adapter in slot.adapters)
    for adapter in slot.adapters:
        adapter.up.bias.fill_(1)
    h = torch.zeros(2, 50, 16)
    assert (slot(h, h, None) != 0).all()
    slot.train()
    assert 0.4 < (slot(h, h, None) == 0).float().mean() < 0.6


def test_the_penalty_is_the_distance_of_v_from_the_identity(build):
    model = build("fusion", fusion_regularization=0.5)
    assert model.penalty() == 0
    with torch.no_grad():
        for slot in fusions(model).values():
            slot.value.weight[0, 1] += 2
    assert model.penalty().item() == pytest.approx(0.5 * 2 * 4)
    model.penalty().backward()
    assert slot.value.weight.grad[0, 1] == pytest.approx(0.5 * 2 * 2)
    assert build("fusion", fusion_regularization=0.0).penalty() is None


def test_counts():
    def count(**knobs):
        return AdapterFusion(FusionConfig(**knobs)).count(SIZES["roberta_small"]).total

    assert count() == 4 * (3 * 512 * 512 + 512) == 3_147_776
    assert count(placement="both") == 2 * count()
    assert count(skip_layers=1, layer_norm=True, scaling="learned") == 3 / 4 * count()


# ---- Adapters from folders -------------------------------------------------------------------


def test_it_starts_with_the_adapters_of_the_folders(fuse, two):
    model = fuse(two)
    for name, slot in fusions(model).items():
        for path, adapter in zip(two.split(","), slot.adapters):
            tensors = adapter_folder.read(path).tensors
            for key, value in adapter.named_buffers():
                assert torch.equal(value, tensors[f"{name}.{key}"])


def test_one_adapter_twice_is_that_adapter(fuse, write, base, batch, logits):
    """Whatever the shares: a mean of two that are alike."""
    path = write("one")
    alone = folder.load(adapter_folder.read(path), base)
    model = fuse(f"{path},{path}")
    model.classification_heads = alone.classification_heads
    difference = (logits(model, batch) - logits(alone, batch)).abs().max()
    assert difference < TOLERANCE["fp32"]
    perturb(model)
    assert (logits(model, batch) - logits(alone, batch)).abs().max() > 1e-2


def test_its_folder_needs_the_others_no_more(fuse, write, base, batch, logits, tmp_path):
    paths = [shutil.copytree(write(name), tmp_path / name) for name in ("one", "two")]
    model = fuse(",".join(map(str, paths)))
    perturb(model)
    adapter_folders.write(tmp_path / "fused", model, base)
    for path in paths:
        shutil.rmtree(path)
    again = folder.load(adapter_folder.read(tmp_path / "fused"), base)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_run_and_its_resumption(fairseq, data_folder, base_checkpoint, tmp_path):
    """By the real command line: two adapters, their fusion, which goes on without their folders."""

    def train(name, peft, **more):
        given = {"finetune_from_model": base_checkpoint, "from_scratch": None, **more}
        words = train_flags(data_folder, tmp_path / name, f"roberta_small_{peft}", **given)
        return fairseq("train", *words)

    for seed in (1, 2):
        done = train(f"a{seed}", "adapter", adapter_bottleneck=4, seed=seed)
        assert done.returncode == 0, done.stderr
    adapters = ",".join(str(tmp_path / name / "adapter") for name in ("a1", "a2"))
    knobs = {"fusion_adapters": adapters, "fusion_bottleneck": 4}
    done = train("refused", "fusion", fusion_adapters=adapters)
    assert done.returncode == 1 and "Give the --fusion-bottleneck" in done.stderr
    done = train("refused", "fusion")
    assert done.returncode == 1 and "give two folders or more" in done.stderr
    scratch = {"from_scratch": True, "finetune_from_model": None}
    done = train("refused", "fusion", **knobs, **scratch)
    assert done.returncode == 1 and "Give it with --finetune-from-model" in done.stderr
    assert "Traceback" not in done.stderr

    whole = train("whole", "fusion", max_epoch=2, **knobs)
    assert whole.returncode == 0, whole.stderr
    first = train("halves", "fusion", max_epoch=1, **knobs)
    assert first.returncode == 0, first.stderr
    for name in ("a1", "a2"):
        shutil.rmtree(tmp_path / name)
    second = train("halves", "fusion", max_epoch=2, **knobs)
    assert second.returncode == 0, second.stderr
    files = [tmp_path / name / "checkpoint_last.pt" for name in ("whole", "halves")]
    one, other = (torch.load(file, weights_only=True)["model"] for file in files)
    assert set(one) == set(other) and any(".adapters.1." in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"style": "houlsby"}, "--adapter-style pfeiffer, and --fusion-style is houlsby"),
        ({"activation": "tanh"}, "--adapter-activation relu, and --fusion-activation is tanh"),
        ({"skip_layers": 1}, "--adapter-skip-layers 0, and --fusion-skip-layers is 1"),
        ({"bottleneck": 6}, "expected (6, 16). Give the --fusion-bottleneck"),
        ({"regularization": -1.0}, "--fusion-regularization -1 is no factor"),
    ],
)
def test_other_knobs_are_refused(fuse, two, knobs, message):
    with pytest.raises(ValueError) as error:
        fuse(two, **knobs)
    assert message in str(error.value)


def test_other_folders_are_refused(fuse, write, dictionary, tmp_path):
    def refused(*adapters):
        with pytest.raises(ValueError) as error:
            fuse(",".join(map(str, adapters)))
        return str(error.value)

    one = write("one")
    assert "names 1: there is nothing to choose from" in refused(one)
    assert "no adapter folder" in refused(one, tmp_path / "nothing")
    lora = write("lora", "lora", lora_rank=2)
    assert f"{lora} is of --peft lora" in refused(one, lora)
    other = write("other", on=adapter_folders.base_state(dictionary, seed=5))
    assert "another base, so it does not fit" in refused(one, other)


def test_it_takes_adapters_and_a_base(build, base, two):
    with pytest.raises(ValueError, match="give two folders or more"):
        build("fusion").check_base(base)
    model = build("fusion", **flags("fusion", adapters=two, **PFEIFFER))
    with pytest.raises(ValueError, match="--finetune-from-model"):
        model.check_base()


def test_a_slot_holds_one(build):
    with pytest.raises(ValueError, match="fusion and adapter do not go together"):
        build("fusion,adapter")

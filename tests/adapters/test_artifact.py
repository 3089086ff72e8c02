"""What is read from an adapter folder is what was written; the base it belongs to."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
from families import BART, Transformer, TransformerLM  # noqa: E402

from fairseq_peft.adapters import folder as adapter_folder  # noqa: E402
from fairseq_peft.models import folder as folders_model  # noqa: E402


def test_what_is_read_is_what_was_written(dictionary, base, tmp_path):
    model = adapter_folders.perturbed(dictionary, base, "lora,bitfit")
    path = adapter_folders.write(
        tmp_path / "adapter", model, base, labels=["schlecht", "gut ünd mehr"]
    )
    assert {file.name for file in path.iterdir()} == set(adapter_folders.FILES)
    found = adapter_folder.read(path)
    assert found.description["labels"] == ["schlecht", "gut ünd mehr"]
    assert found.description["method"]["peft"] == "lora+bitfit"
    assert found.description["method"]["knobs"] == model.setting.knobs()
    state = model.state_dict()
    assert set(found.tensors) == model.own_names()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.tensors.items())
    model = found.text_files[adapter_folder.TOKENIZER]
    assert model.read_bytes().startswith(b"a model of pieces")


def test_a_command_line_that_is_no_utf_8_is_kept(dictionary, base, tmp_path):
    """Python hands its bytes on as lone surrogates."""
    model = adapter_folders.perturbed(dictionary, base)
    path = adapter_folders.write(tmp_path / "adapter", model, base, command="train \udcff")
    assert adapter_folder.read(path).description["command"] == "train \udcff"


def test_apply_accounts_for_every_tensor(dictionary, base, good):
    found = adapter_folder.read(good)
    model = adapter_folders.perturbed(dictionary, base, seed=99)
    adapter_folder.apply(model, found)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in found.tensors.items())
    fewer = dict(list(found.tensors.items())[1:])
    lacking = adapter_folder.AdapterFolder(found.folder, found.description, fewer)
    assert "1 missing" in adapter_folders.refused(adapter_folder.apply, model, lacking)
    wrong = adapter_folders.perturbed(dictionary, base, "ia3")
    assert "left over" in adapter_folders.refused(adapter_folder.apply, wrong, found)


def test_a_tied_tensor_that_trained_is_not_overwritten(dictionary, base, batch, logits, tmp_path):
    """The base's own file has the token embedding again, as the LM head's weight."""
    model = adapter_folders.perturbed(dictionary, base, "full")
    found = adapter_folder.read(adapter_folders.write(tmp_path / "adapter", model, base))
    assert found.description["complete"] and "encoder.lm_head.weight" not in found.tensors
    again = folders_model.load(found, None)
    assert torch.equal(logits(again, batch), logits(model, batch))
    state = again.state_dict()
    body = "encoder.sentence_encoder.embed_tokens.weight"
    assert torch.equal(state["encoder.lm_head.weight"], state[body])
    assert not torch.equal(state[body], base[body])


def test_from_scratch_the_folder_holds_the_whole_model(dictionary, base, batch, logits, tmp_path):
    model = adapter_folders.perturbed(dictionary, base)
    found = adapter_folder.read(adapter_folders.write(tmp_path / "adapter", model, None))
    assert found.description["base"] is None and found.description["complete"]
    assert torch.equal(logits(folders_model.load(found, None), batch), logits(model, batch))


# ---- The base --------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_body_alone(base):
    expected = adapter_folder.fingerprint(base)
    assert adapter_folder.fingerprint(dict(reversed(base.items()))) == expected
    more = {**base, "classification_heads.x.out_proj.weight": torch.ones(2, 16)}
    more["encoder.sentence_encoder.layers.0.in_proj_weight"] = torch.ones(3)
    more["encoder.lm_head.bias"] = torch.ones(35)
    assert adapter_folder.fingerprint(more) == expected
    older = {
        key.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm"): t
        for key, t in base.items()
    }
    assert adapter_folder.fingerprint(older) == expected
    changes = {
        "a value": lambda t: t.index_fill(0, torch.tensor([3]), 7.0),
        "a type": lambda t: t.double(),
        "a shape": lambda t: t[None],
    }
    name = "encoder.sentence_encoder.layers.1.fc1.bias"
    for what, change in changes.items():
        assert adapter_folder.fingerprint({**base, name: change(base[name])}) != expected, what
    renamed = {key.replace("layers.1.fc1.bias", "layers.1.fc1.bios"): t for key, t in base.items()}
    assert adapter_folder.fingerprint(renamed) != expected


@pytest.mark.parametrize("kind", [TransformerLM, Transformer, BART])
def test_the_fingerprint_is_of_every_familys_own_tensors(dictionary, kind):
    """Whatever other writers of the same model add or leave out; and no tensor may be another."""
    state = dict(kind(dictionary).build("full").state_dict())
    expected = adapter_folder.fingerprint(state)
    for name in [name for name in state if name.endswith(("version", "output_projection.weight"))]:
        assert adapter_folder.fingerprint({n: t for n, t in state.items() if n != name}) == expected
    more = {"classification_heads.x.out_proj.weight": torch.ones(2, 16)}
    more["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    more["decoder.layers.0.in_proj_weight"] = torch.ones(3)
    assert adapter_folder.fingerprint({**more, **dict(reversed(state.items()))}) == expected
    for name, tensor in adapter_folder.body(state).items():
        tied = {n for n, t in state.items() if t.data_ptr() == tensor.data_ptr()} - {name}
        changed = {**state, **dict.fromkeys([name, *tied], tensor + 1)}
        assert adapter_folder.fingerprint(changed) != expected, name


def test_a_base_has_tensors():
    assert "this one has none" in adapter_folders.refused(adapter_folder.fingerprint, {})
    heads = {"classification_heads.x.out_proj.weight": torch.ones(2)}
    assert "classification_heads.x" in adapter_folders.refused(adapter_folder.fingerprint, heads)


def test_another_base_is_refused_unless_it_is_allowed_loudly(good, base, dictionary, caplog):
    found, another = adapter_folder.read(good), adapter_folders.base_state(dictionary, seed=5)
    folders_model.load(found, base)
    text = adapter_folders.refused(folders_model.load, found, another)
    assert adapter_folder.fingerprint(another)[:12] in text and "expected" in text
    assert adapter_folder.fingerprint(base)[:12] in text and "--allow-other-base" in text
    assert not caplog.records
    folders_model.load(found, another, True)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert (
        "--allow-other-base" in record.getMessage()
        and "has never been measured" in record.getMessage()
    )
    assert "Give it (--base)" in adapter_folders.refused(folders_model.load, found, None)

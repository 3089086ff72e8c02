"""``fairseq-peft to-hf`` and ``from-hf`` of BART, mBART and M2M-100, against the library itself and
with its own models in the layouts of published ones."""

from __future__ import annotations

import argparse
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytest.importorskip("transformers")

import adapter_folders  # noqa: E402
import hf_models  # noqa: E402
import safetensors.torch  # noqa: E402
from helpers import opens_without_plugin  # noqa: E402
from verbs import refused, run  # noqa: E402

from fairseq_peft.hf import encoder_decoder  # noqa: E402

every_kind = pytest.mark.parametrize("kind", hf_models.ENCODER_DECODERS)


def weights_of(path):
    return torch.load(path, weights_only=False)["model"]


@every_kind
def test_there_and_back(kind, tmp_path, capsys):
    """Features, logits, written words and the ids of texts are compared on both ways; what comes
    back is the checkpoint, which stock fairseq opens, with all words in its dictionary."""
    ours = hf_models.write_encoder_decoder(tmp_path / "ours", kind)
    run("to-hf", tmp_path / "ours" / "model.pt", tmp_path / "hf")
    run("from-hf", tmp_path / "hf", tmp_path / "back")
    told = capsys.readouterr().out
    for line in ("encoder features", "96 words are written alike", "200 texts have the same token"):
        assert told.count(line) == 2, told
    before, after = (weights_of(tmp_path / name / "model.pt") for name in ("ours", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    words = hf_models.Dictionary.load(str(tmp_path / "back" / "dict.txt"))
    assert words.symbols == ours.dictionary.symbols

    state = torch.load(tmp_path / "back" / "model.pt", weights_only=False)
    assert opens_without_plugin(tmp_path / "back" / "model.pt")
    stock_class = hf_models.ENCODER_DECODERS[kind][0].stock_class
    task = argparse.Namespace(source_dictionary=words, target_dictionary=words)
    stock = stock_class.build_model(state["args"], task).eval()
    stock.load_state_dict(after, strict=True)
    source = torch.tensor([[7, 9, 20, 2], [5, 2, 1, 1]])
    target = torch.tensor([[2, 11, 12], [2, 30, 4]])
    with torch.no_grad():
        found, expected = (m(source, source.ne(1).sum(1), target)[0] for m in (stock, ours))
    assert (found - expected).abs().max() < 1e-5


def test_what_a_folder_says_of_languages(tmp_path):
    """mBART: a source ends with its language, and the decoder begins with that of the target.
    M2M-100: a source begins with its language, and the first word is that of the target."""
    from transformers import AutoTokenizer

    found = {}
    for kind in ("mbart", "m2m_100"):
        hf_models.write_encoder_decoder(tmp_path / kind, kind)
        run("to-hf", tmp_path / kind / "model.pt", tmp_path / f"{kind}-hf", "--no-check")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / f"{kind}-hf")
        generation = json.loads((tmp_path / f"{kind}-hf" / "generation_config.json").read_text())
        start, first = (generation.get(f"{n}_token_id") for n in ("decoder_start", "forced_bos"))
        text = tokenizer.convert_ids_to_tokens(tokenizer("a").input_ids)
        found[kind] = [
            text[0],
            *text[-2:],
            *map(tokenizer.convert_ids_to_tokens, (start, first or 1)),
        ]
        assert tokenizer.decode(tokenizer("a").input_ids, skip_special_tokens=True) == "a"
    assert found["mbart"][1:] == ["</s>", "en_XX", "ro_RO", "<pad>"]
    assert found["m2m_100"][0] == "__en__" and found["m2m_100"][2:] == ["</s>", "</s>", "__fr__"]


def test_an_adapter_goes_there_merged(tmp_path, capsys):
    """On its base, with the dictionary of its folder, which has the languages already."""
    from fairseq_peft.models import folder
    from fairseq_peft.tasks.stock import words_of

    base = hf_models.write_encoder_decoder(tmp_path, "mbart").state_dict()
    words = hf_models.encoder_decoder("mbart", task_words(tmp_path)).dictionary
    flags = {"peft_targets": "all-linear,embed_tokens"}
    model = hf_models.ENCODER_DECODERS["mbart"][0](words).build(
        "lora", encoder_normalize_before=True, no_scale_embedding=False, **flags
    )
    model.load_state_dict(dict(base))
    for name, parameter in model.named_parameters():
        if name in model.added:
            parameter.data += 0.3
    reference = folder.reference(str(tmp_path / "model.pt"), base)
    tensors, described = folder.content(model, None, reference)
    cfg = argparse.Namespace(task="translation", source_lang="en", target_lang="ro")
    task = argparse.Namespace(source_dictionary=words, target_dictionary=words, cfg=None, args=cfg)
    told, copies = words_of(task)
    copies["sentencepiece.bpe.model"] = tmp_path / "sentencepiece.bpe.model"
    task_flags = {"_name": "translation", "source_lang": "en", "target_lang": "ro"}
    adapter = tmp_path / "adapter"
    described = {**described, **told, "task": task_flags}
    described["model"]["_name"] = "mbart_lora"
    adapter_folders.adapter_folder.write(adapter, tensors, described, copies)
    words_given = ("to-hf", adapter, tmp_path / "hf", "--base", tmp_path / "model.pt")
    assert "--langs en would be ignored" in refused(capsys, *words_given, "--langs", "en")
    run(*words_given, "--no-check")
    assert "MBartForConditionalGeneration" in capsys.readouterr().out
    found = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    model.merge()
    merged = model.state_dict()
    for name in ("encoder.layers.0.fc1.weight", "decoder.layers.1.encoder_attn.q_proj.weight"):
        assert torch.equal(found[f"model.{name}"], merged[name])
        assert not torch.equal(merged[name], base[name])
    assert torch.equal(found["model.shared.weight"], merged["decoder.output_projection.weight"])


def task_words(folder):
    words = hf_models.Dictionary.load(str(folder / "dict.txt"))
    for word in hf_models.ENCODER_DECODERS["mbart"][3]:
        words.add_symbol(word)
    return words


def test_a_folder_that_computes_otherwise_is_not_written(tmp_path, capsys, monkeypatch):
    hf_models.write_encoder_decoder(tmp_path, "m2m_100")
    convert = encoder_decoder.to_hf

    def wrong(weights, kind):
        found = convert(weights, kind)
        found["model.encoder.layers.1.fc2.bias"] = 1.01 * found["model.encoder.layers.1.fc2.bias"]
        return found

    monkeypatch.setattr(encoder_decoder, "to_hf", wrong)
    line = refused(capsys, "to-hf", tmp_path / "model.pt", tmp_path / "hf")
    assert "does not compute what the checkpoint does" in line
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("kind", "flags", "word"),
    [
        ("m2m_100", {"layernorm_embedding": True}, "none of the library's encoder-decoders"),
        ("bart", {"share_all_embeddings": False}, "--share-all-embeddings"),
        ("bart", {"activation_fn": "gelu_accurate"}, "--activation-fn gelu_accurate"),
        ("m2m_100", {"no_token_positional_embeddings": True}, "--no-token-positional-embeddings"),
        ("mbart", {"peft": "lora"}, "lora_A has no counterpart"),
        ("mbart", {"max_source_positions": 50}, "positions of two lengths"),
    ],
)
def test_a_model_without_counterpart_is_refused(kind, flags, word, tmp_path, capsys):
    hf_models.write_encoder_decoder(tmp_path, kind, **flags)
    words = ("to-hf", tmp_path / "model.pt", tmp_path / "hf", "--no-check")
    assert word in refused(capsys, *words)
    assert not (tmp_path / "hf").exists()


def test_the_task_names_languages_not_the_layout(tmp_path):
    """Under mBART's task a model without norms in front of its blocks, a BART by its layout, has
    mBART's names of languages: an imported adapter's dictionary is that of its base."""
    (tmp_path / "dict.txt").write_text("a 1\nb 1\n")
    task = {"_name": "translation_from_pretrained_bart", "langs": "en_XX,ro_RO"}
    kind = next(kind for kind in encoder_decoder.KINDS if kind.model_type == "bart")
    words = encoder_decoder.dictionary(
        tmp_path / "model.pt", tmp_path / "dict.txt", 9, {"cfg": {"task": task}}, kind
    )
    assert words.symbols[-3:] == ["[en_XX]", "[ro_RO]", "<mask>"]


def test_languages_that_no_checkpoint_names_are_given(tmp_path, capsys):
    hf_models.write_encoder_decoder(tmp_path, "mbart")
    state = torch.load(tmp_path / "model.pt", weights_only=False)
    state["cfg"]["task"] = {"_name": "translation"}
    torch.save(state, tmp_path / "model.pt")
    words = ("to-hf", tmp_path / "model.pt", tmp_path / "hf", "--no-check")
    line = refused(capsys, *words)
    assert "gives 61 rows, 62 with <mask>" in line and "(--langs)" in line
    run(*words, "--langs", "en_XX,ro_RO")
    capsys.readouterr()
    assert "--head would be ignored" in refused(
        capsys, *words, "--force", "--langs", "en_XX,ro_RO", "--head", "x"
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"activation_function": "gelu_new"}, "activation_function 'gelu_new'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"pad_token_id": 0}, "pad_token_id 0"),
        ({"decoder_layers": 1}, "are not those of its config.json"),
        ({"final_logits_bias": 1.0}, "no bias of the logits"),
        ({"model.strange.weight": 1.0}, "has no counterpart"),
    ],
)
def test_a_folder_without_counterpart_is_refused(changes, word, tmp_path, capsys):
    hf_models.write_encoder_decoder(tmp_path, "bart")
    run("to-hf", tmp_path / "model.pt", tmp_path / "hf", "--no-check")
    capsys.readouterr()
    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for name, value in changes.items():
        if isinstance(value, float):
            tensors[name] = torch.full((1, 62), value)
        else:
            config[name] = value
    safetensors.torch.save_file(tensors, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    line = refused(capsys, "from-hf", tmp_path / "hf", tmp_path / "back", "--no-check")
    assert word in line and not (tmp_path / "back").exists()


def published(name, folder):
    """A tiny model of the library's own class with the vocabulary of a published one: pieces, all
    languages of its tokenizer, and what fills the table up; how fairseq calls the last rows."""
    import transformers

    hf_models.write_tokenizer(folder / "pieces")
    spm = folder / "pieces" / "sentencepiece.bpe.model"
    words = hf_models.Dictionary.load(str(folder / "pieces" / "dict.txt")).symbols
    rows = {word: row for row, word in enumerate(words)}
    if name == "m2m_100":
        (folder / "vocab.json").write_text(json.dumps(rows))
        tokenizer = transformers.M2M100Tokenizer(folder / "vocab.json", spm)
        last = [*tokenizer.lang_token_to_id, *(f"madeupword{161 + i:04d}" for i in range(8))]
    else:
        tokenizer = transformers.NllbTokenizer(vocab=rows, merges=[])
        last = [tokenizer.convert_ids_to_tokens(i) for i in range(len(words), len(tokenizer))]
        last = [word if word == "<mask>" else f"__{word}__" for word in last]
        last += [f"madeupword{len(words) + len(last):04d}"]
    sizes = {f"{half}_{n}": v for half in ("encoder", "decoder")
             for n, v in (("layers", 2), ("ffn_dim", 24), ("attention_heads", 4))}  # fmt: skip
    flags = {"d_model": 16, "max_position_embeddings": 40, "scale_embedding": True}
    config = transformers.M2M100Config(vocab_size=len(words) + len(last), **sizes, **flags)
    model = transformers.M2M100ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    return [*words, *last]


@pytest.mark.parametrize("name", ["m2m_100", "nllb"])
def test_from_the_librarys_own(name, tmp_path, capsys):
    symbols = published(name, tmp_path)
    run("from-hf", tmp_path / "hf", tmp_path / "ours")
    told = capsys.readouterr().out
    assert "96 words are written alike" in told
    assert ("200 texts have the same token ids" in told) == (name == "m2m_100")
    assert hf_models.Dictionary.load(str(tmp_path / "ours" / "dict.txt")).symbols == symbols
    before = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "ours" / "sentencepiece.bpe.model").write_bytes(
        (tmp_path / "pieces" / "sentencepiece.bpe.model").read_bytes()
    )
    run("to-hf", tmp_path / "ours" / "model.pt", tmp_path / "back", "--no-check")
    after = safetensors.torch.load_file(tmp_path / "back" / "model.safetensors")
    assert after.keys() - before.keys() <= {"final_logits_bias"}
    assert all(torch.equal(before[name], after[name]) for name in before)

"""A fairseq checkpoint as a folder that Hugging Face's library opens by itself.

config.json, model.safetensors           RobertaForSequenceClassification, RobertaForMaskedLM, or,
                                         without any head, RobertaModel; of an encoder-decoder
                                         Bart-, MBart- or M2M100ForConditionalGeneration, and
                                         generation_config.json
tokenizer.json, tokenizer_config.json    text -> fairseq's ids; of GPT-2's byte pairs vocab.json and
                                         merges.txt, too
dict.txt, sentencepiece.bpe.model        copies, for the way back (or the files of another --bpe)
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from fairseq_peft import folders
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.data import checks
from fairseq_peft.errors import InputError, unwritten
from fairseq_peft.files import json_text
from fairseq_peft.hf import base_model, check, encoder_decoder, tokenizer, weights
from fairseq_peft.hf import config as hf_config
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.text import bpe
from fairseq_peft.text.subwords import Subwords


def convert(
    checkpoint: Path,
    out: Path,
    dictionary: Path | None = None,
    spm: Path | None = None,
    *,
    bpe_dir: Path | None = None,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    checked: bool = True,
    texts: Sequence[str] = (),
    base: Path | None = None,
    allow_other_base: bool = False,
    trust: bool = False,
    languages: Sequence[str] = (),
) -> dict:
    """Write the folder ``out``, which appears once it is whole and checked.

    Args:
        checkpoint: a language model, or a model fine-tuned as a whole or merged; or an adapter
            folder, which is merged into its base.
        dictionary, spm: its dict.txt and its sentencepiece model; None for those beside it, or in
            the adapter folder, where another ``--bpe`` may have its files, too.
        bpe_dir: a folder to look in for both, in place of those.
        head: the classification head, where there are several.
        labels: class names in the order of the outputs; else the checkpoint's, else LABEL_0, ...
        checked: whether both sides compute, and read, the same (``check.py``); needs transformers.
        texts: more texts to read on both sides.
        base, allow_other_base: the base of an adapter folder, and whether it may be another than
            the one that it was trained on.
        trust: as ``slim.read`` takes it.
        languages: those that an encoder-decoder's task adds to its dictionary, where the checkpoint
            names none.

    Returns:
        what was written and compared: kind, labels, tensors, and the largest differences; for
        an encoder-decoder whose text the library cannot read from these files, the ``reason``.

    Raises:
        InputError: a file cannot be used, the model has no counterpart, or the sides differ.
    """
    dictionary, subwords = files(checkpoint, dictionary, spm, bpe_dir, base)
    if checked:
        check.load_transformers()
    given = read(checkpoint, dictionary, base, allow_other_base, trust, languages)
    of_kind = _roberta if given.kind is None else _encoder_decoder
    config, tensors, contents, found = of_kind(checkpoint, given, subwords, head, labels)
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    found = {"kind": config["architectures"][0], "tensors": len(tensors), **found}
    try:
        with folders.replaced(out) as new:
            (new / "model.safetensors").write_bytes(
                safetensors.torch.save(tensors, {"format": "pt"})
            )
            for name, value in {"config.json": config, **contents}.items():
                is_text = isinstance(value, str)
                text = value if is_text else json_text(value, indent=1) + "\n"
                (new / name).write_text(text, encoding="utf-8")
            shutil.copyfile(dictionary, new / adapter_folder.DICTIONARY)
            bpe.write(subwords, new)
            if checked:
                found.update(compare(given, found, subwords, new, texts))
    except OSError as error:
        raise unwritten(out, error) from error
    return found


def _roberta(checkpoint, given, subwords, head, labels):
    """config.json, tensors, other files and what is told, of a RoBERTa."""
    head = choose_head(checkpoint, given, head)
    if head is not None:
        check_begin(checkpoint, given.state)
    names = class_names(checkpoint, given, head, labels)
    tied = weights.is_tied(given.weights)
    lm_head = weights.has_lm_head(given.weights)
    kind = (given.state.get("task_state") or {}).get("kind")
    config = hf_config.roberta(
        Namespace(**given.flags),
        len(given.dictionary),
        names,
        tied,
        lm_head,
        kind or hf_config.kind_of({}, len(names)),
    )
    tensors = weights.convert_to_hf(given.weights, head)
    contents = tokenizer.contents(subwords, given.dictionary.symbols, given.flags["max_positions"])
    return config, tensors, contents, {"labels": names, "head": head}


def _encoder_decoder(checkpoint, given, subwords, head, labels):
    """The same of an encoder-decoder."""
    for flag, value in (("--head", head), ("--labels", labels)):
        if value:
            raise InputError(
                f"{flag} would be ignored: {checkpoint} writes text, and has no classes. Leave it "
                "out."
            )
    words = given.dictionary
    ends = encoder_decoder.ends(given.state, words)
    start = words.index(ends.start)
    config = encoder_decoder.config(
        given.flags, given.kind, len(words), base_model.told(given.state), start
    )
    first = {} if ends.first is None else {"forced_bos_token_id": words.index(ends.first)}
    names = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    contents = {"generation_config.json": {**{name: config[name] for name in names}, **first}}
    found = {"labels": [], "ends": ends}
    symbols = list(map(encoder_decoder.their_symbol, words.symbols))
    named = map(encoder_decoder.their_symbol, encoder_decoder.special_symbols(words.symbols))
    around = (tuple(map(encoder_decoder.their_symbol, part)) for part in ends[:2])
    frame = tokenizer.Frame(*around, tuple(named))
    try:
        longest = given.flags["max_source_positions"]
        contents.update(tokenizer.contents(subwords, symbols, longest, frame))
    except InputError as error:  # its ids are those of the published tokenizer all the same
        found["reason"] = str(error)
    return config, encoder_decoder.to_hf(given.weights, given.kind), contents, found


def files(
    checkpoint: Path,
    dictionary: Path | None,
    spm: Path | None,
    bpe_dir: Path | None = None,
    base: Path | None = None,
) -> tuple[Path, Subwords]:
    """The checkpoint's dict.txt and what cuts its text: those given, else those in ``bpe_dir``,
    beside it, or in the adapter folder.

    Raises:
        InputError: a file does not exist, or is damaged.
    """
    if not checkpoint.is_dir():
        what = "a checkpoint (model.pt)" if base is None else "the adapter folder of that base"
        finetuned.check_file(checkpoint, what)
    if spm and bpe_dir:
        raise InputError(
            f"--bpe-dir {bpe_dir} and --spm name two ways to read text. Leave one out."
        )
    beside = bpe_dir or (checkpoint if checkpoint.is_dir() else checkpoint.parent)
    dictionary = dictionary or beside / adapter_folder.DICTIONARY
    if not dictionary.is_file():  # source and target have one each, which are the same
        dictionary = next(iter(sorted(beside.glob("dict.*.txt"))), dictionary)
    place = None if spm else bpe.locate(beside)
    needed = {"--dict": dictionary}
    if place is None:
        needed["--spm"] = spm or beside / adapter_folder.TOKENIZER
    for flag, path in needed.items():
        if not path.is_file():
            raise InputError(f"{path} does not exist. Give the checkpoint's own with {flag}.")
    return dictionary, bpe.sentencepiece(needed["--spm"]) if place is None else place.load()


def read(
    checkpoint: Path,
    dictionary: Path,
    base: Path | None = None,
    allow_other_base: bool = False,
    trust: bool = False,
    languages: Sequence[str] = (),
) -> base_model.Base:
    """The checkpoint, or the adapter folder merged into its base; arguments as ``convert``.

    Raises:
        InputError: a file cannot be used, or the method cannot be merged.
    """
    if not checkpoint.is_dir():
        if base is not None:
            raise InputError(
                f"--base {base} would be ignored: {checkpoint} is no adapter folder. Leave it out."
            )
        return base_model.read_any(checkpoint, dictionary, trust, languages)
    if languages:
        raise InputError(
            f"--langs {','.join(languages)} would be ignored: the dictionary of {checkpoint} has "
            "its languages. Leave it out."
        )
    found, model = finetuned.from_folder(
        checkpoint, base, allow_other_base, trust, of_any_task=True
    )
    words = model.dictionary
    given = checks.load_dictionary(str(dictionary))
    if not found.is_text:
        given.add_symbol(tokenizer.MASK)
    if given.symbols != words.symbols:
        raise InputError(
            f"{dictionary} is not the dictionary that {checkpoint} was trained with. Leave --dict "
            "out: the folder has its own."
        )
    state = finetuned.stand_in(found.description)
    if encoder_decoder.is_one(model.state_dict()):
        merge(checkpoint, model, next(iter(model.classification_heads), None))
        weights = model.state_dict()
        kind, flags = encoder_decoder.flags(checkpoint, state, weights)
        return base_model.Base(state, weights, flags, words, kind)
    if found.is_text:
        raise InputError(
            f"{checkpoint} is of --task {found.description['task'].get('_name')}, whose model has "
            "no counterpart here: those of RoBERTa, BART, mBART and M2M-100 have."
        )
    flags = base_model.flags(checkpoint, state, adapter_folder.renamed(model.state_dict()))
    hf_config.check(Namespace(**flags))
    merge(checkpoint, model, found.description["head"]["name"])
    return base_model.Base(state, adapter_folder.renamed(model.state_dict()), flags, words)


def merge(folder: Path, model, head: str | None) -> None:
    """Fold the method of an adapter folder's model into its base, in place.

    Raises:
        InputError: the method cannot be merged.
        RuntimeError: the merged model computes otherwise.
    """
    batches = list(finetuned.random_batches(model.dictionary, model.longest_text))
    before = finetuned.logits(model, batches, head)
    try:
        model.merge()
    except InputError as error:
        raise InputError(
            f"{folder} has no counterpart among Hugging Face's models: {error}"
        ) from error
    difference = (finetuned.logits(model, batches, head) - before).abs().max()
    finetuned.check_merged(difference, before)


def choose_head(checkpoint: Path, base: base_model.Base, wanted: str | None) -> str | None:
    """The classification head to convert; None for a language model.

    Raises:
        InputError: there is no such head, or several to choose from.
    """
    ending = ".out_proj.weight"
    heads = [
        name[len(HEADS) : -len(ending)]
        for name in base.weights
        if name.startswith(HEADS) and name.endswith(ending)
    ]
    if wanted is not None and wanted not in heads:
        raise InputError(
            f"--head {wanted!r}: {checkpoint} has no such head. Its heads: "
            f"{', '.join(heads) or 'none'}."
        )
    if wanted is None and len(heads) > 1:
        raise InputError(
            f"{checkpoint} has the heads {', '.join(heads)}, and a folder has one. Choose (--head)."
        )
    head = wanted or next(iter(heads), None)
    dense = None if head is None else base.weights.get(f"{HEADS}{head}.dense.weight")
    dim = base.flags["encoder_embed_dim"]
    if head is not None and (dense is None or tuple(dense.shape) != (dim, dim)):
        raise InputError(
            f"{checkpoint} has a head {head!r} without a dense layer of {dim} x {dim}, and Hugging "
            "Face's classification head has no other. Train with --classifier-head roberta."
        )
    return head


def check_begin(checkpoint: Path, state: dict) -> None:
    """Raise InputError where a classifier was trained on texts without ``<s>``."""
    told = base_model.told(state, "task")
    name = told.get("_name") or told.get("task")
    # fairseq's own task puts <s> there only if it is asked to.
    stock = name == "sentence_prediction" and told.get("init_token") is None
    if told.get("no_init_token") or stock:
        flag = "without --init-token 0" if stock else "with --no-init-token"
        raise InputError(
            f"{checkpoint} was trained {flag}, on texts that do not begin with <s>, and Hugging "
            "Face's tokenizer puts it before every text. Train with it."
        )


def class_names(checkpoint: Path, base: base_model.Base, head: str | None, given) -> list[str]:
    """Class names in the order of the outputs; none for a language model.

    Raises:
        InputError: they are not as many as the head has outputs.
    """
    if head is None:
        if given:
            raise InputError(
                f"--labels {','.join(given)} would be ignored: {checkpoint} has no classification "
                "head. Leave it out."
            )
        return []
    number = len(base.weights[f"{HEADS}{head}.out_proj.weight"])
    told = (base.state.get("task_state") or {}).get("labels")
    names = list(given or told or (f"LABEL_{i}" for i in range(number)))
    if len(names) != number or len(set(names)) < number:
        raise InputError(
            f"{checkpoint} has a head of {number} classes; the names given are {', '.join(names)}. "
            "Give one for each class, in the order of the outputs (--labels)."
        )
    return names


def compare(base: base_model.Base, told: dict, subwords, folder: Path, texts: Sequence[str]):
    """What ``check.py`` finds of the folder: differences, and how many texts were read alike.

    Args:
        told: the ``head`` of a RoBERTa; the ``ends`` of an encoder-decoder's texts, and the
            ``reason`` why the library reads none.
    """
    if base.kind is None:
        model = base_model.load(base, told["head"])
        batches = finetuned.random_batches(base.dictionary, base.flags["max_positions"])
        found = check.models(model, told["head"], folder, batches)
        return {**found, **check.reading(subwords, base.dictionary, folder, texts)}
    model = base_model.load(base, None)
    found = check.encoder_decoders(model, folder, told["ends"].start)
    if "reason" in told:
        return found
    ends = [[base.dictionary.index(symbol) for symbol in part] for part in told["ends"][:2]]
    return {**found, **check.reading(subwords, base.dictionary, folder, texts, ends=ends)}

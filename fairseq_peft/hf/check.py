"""The same numbers on both sides: a fairseq model against a folder of Hugging Face's, by that
library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from fairseq_peft.checkpoints.finetuned import random_batches
from fairseq_peft.data.text_encoder import TextEncoder
from fairseq_peft.errors import InputError
from fairseq_peft.text.rows import LINE_BREAKS
from fairseq_peft.text.subwords import Subwords

#: Largest difference that is rounding: of features, whose size is 10, and of logits.
LIMIT = 1e-5
#: Texts of random pieces that are read on both sides.
NUM_TEXTS = 200
#: Words that an encoder-decoder writes on both sides.
NUM_TOKENS = 12


def load_transformers():
    """The module transformers.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "The check of what is converted needs transformers, which is not installed. Install "
            "the extra hf (pip install 'fairseq-peft[hf]'), or give --no-check."
        ) from error
    return transformers


def quiet() -> None:
    """Let the library put out nothing but errors, in this process: for commands, whose own lines
    say what was found."""
    logging = load_transformers().logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of every text that is longer than the model reads


def models(
    model,
    head: str | None,
    folder: Path,
    batches: Iterable[torch.Tensor],
    ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """The largest differences of features, and of LM or class logits, by what is compared.

    Args:
        model: fairseq's, in eval mode. Without a head that is read, features are all it has.
        head: its classification head; None for the LM head.
        folder: the folder of Hugging Face's.
        batches: token ids (B, T), padded at the right. Where there is padding, nothing is compared:
            fairseq sets its embeddings to zero, Hugging Face does not.
        ids: the token id there of each of fairseq's; None if they are the same.

    Raises:
        InputError: a difference is more than rounding.
    """
    transformers = load_transformers()
    kind, more = "AutoModelForSequenceClassification" if head else "AutoModelForMaskedLM", {}
    features_only = head is None and not model.reads_lm_head
    if features_only:  # without a pooler: it would be random, and warned of
        kind, more = "AutoModel", {"add_pooling_layer": False}
    try:
        theirs = getattr(transformers, kind).from_pretrained(folder, **more).float().eval()
    except OSError as error:
        raise InputError(f"transformers does not open {folder} ({str(error)[:200]}).") from error
    pad = model.encoder.dictionary.pad()
    rows = torch.arange(len(model.encoder.dictionary)) if ids is None else torch.tensor(ids)
    logits = "class logits" if head else "LM logits"
    seen = {"features": []} if features_only else {"features": [], logits: []}

    def see(name, ours, other):
        # Rounding grows with size; features are of size 10.
        size = max(1.0, ours.abs().max().item() / 10)
        seen[name].append((ours - other).abs().max().item() / size)

    with torch.no_grad():
        for tokens in batches:
            there = tokens != pad
            given = {"input_ids": rows[tokens], "attention_mask": there.long()}
            output = theirs(**given, output_hidden_states=True)
            features = model(tokens, features_only=True)[0]
            see("features", features[there], output.hidden_states[-1][there])
            if features_only:
                continue
            if head:
                ours = model(tokens, features_only=True, classification_head_name=head)[0]
                see(logits, ours, output.logits)
            else:
                see(logits, model(tokens)[0][there], output.logits[there][:, rows])
    return _largest(folder, seen)


def encoder_decoders(model, folder: Path, start: str) -> dict[str, float]:
    """The largest differences between an encoder-decoder of fairseq's, in eval mode, and that of a
    folder of Hugging Face's: of the encoder's and the decoder's features and of logits, and how
    many ``tokens`` both have chosen, word by word, the likeliest each time.

    Args:
        start: what the decoder begins with.

    Raises:
        InputError: a difference is more than rounding, or other words were chosen.
    """
    transformers = load_transformers()
    try:
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).float().eval()
    except OSError as error:
        raise InputError(f"transformers does not open {folder} ({str(error)[:200]}).") from error
    words = model.dictionary
    seen = {"encoder features": [], "decoder features": [], "logits": []}

    def see(name, ours, other):
        size = max(1.0, ours.abs().max().item() / 10)
        seen[name].append((ours - other).abs().max().item() / size)

    with torch.no_grad():
        for tokens in random_batches(words, model.longest_text, number=2):
            there, target = tokens != words.pad(), tokens.roll(1, 0)
            target[:, 0] = words.index(start)
            read = target != words.pad()
            lengths = there.sum(1)
            given = {"input_ids": tokens, "attention_mask": there.long()}
            output = theirs(
                **given,
                decoder_input_ids=target,
                decoder_attention_mask=read.long(),
                output_hidden_states=True,
                use_cache=False,
            )
            memory = model.encoder(tokens, lengths)["encoder_out"][0].transpose(0, 1)
            see("encoder features", memory[there], output.encoder_last_hidden_state[there])
            features = model(tokens, lengths, target, features_only=True)[0]
            see("decoder features", features[read], output.decoder_hidden_states[-1][read])
            see("logits", model(tokens, lengths, target)[0][read], output.logits[read])
        ours = greedy(model, tokens, lengths, words.index(start))
        settings = transformers.GenerationConfig(
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            num_beams=1,
            decoder_start_token_id=words.index(start),
            pad_token_id=words.pad(),
        )
        theirs.generation_config = settings  # not what the folder says of ends
        written = theirs.generate(**given, generation_config=settings)[:, 1:]
    found = _largest(folder, seen)
    if not torch.equal(ours, written):
        raise InputError(
            f"{folder} writes other words than the checkpoint: {written[0].tolist()}, and "
            f"{ours[0].tolist()}. Please report this model's configuration."
        )
    return {**found, "tokens": ours.numel()}


def greedy(model, tokens, lengths, start: int) -> torch.Tensor:
    """The likeliest words one after the other, ``NUM_TOKENS`` whatever they are: tokens (B, S) ->
    (B, NUM_TOKENS)."""
    memory, cache = model.encoder(tokens, lengths), {}
    found = torch.full((len(tokens), 1), start)
    for _ in range(NUM_TOKENS):
        logits = model.decoder(found, memory, incremental_state=cache)[0][:, -1:]
        found = torch.cat([found, logits.argmax(-1)], 1)
    return found[:, 1:]


def reading(
    subwords: Subwords | None,
    dictionary,
    folder: Path,
    rows: Sequence[str],
    ids: Sequence[int] | None = None,
    ends: Sequence[Sequence[int]] | None = None,
) -> dict[str, int]:
    """How many of ``rows`` and of random texts are read alike, with the arguments and errors of
    ``texts``; nothing where fairseq has nothing to read text with.

    Args:
        ends: token ids before and behind a text, where they are not ``<s>`` and ``</s>``.
    """
    if subwords is None:
        return {}
    encoder = TextEncoder(subwords, dictionary)

    def encode(rows):
        found = encoder.items([(row,) for row in rows], [10**9] * len(rows))
        if ends is not None:
            found = [[*ends[0], *row[1:-1], *ends[1]] for row in map(list, found)]
        return found if ids is None else [[ids[i] for i in row] for row in found]

    same, ties = texts(encode, folder, [*random_texts(subwords, dictionary), *rows])
    return {"texts": same, "ties": ties}


def random_texts(subwords: Subwords, dictionary) -> list[str]:
    """Texts of random pieces, each a line."""
    pieces = subwords.vocabulary() or dictionary.symbols[dictionary.nspecial : -1]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(pieces), (NUM_TEXTS, 24), generator=generator)
    found = [subwords.decode([pieces[i] for i in row]) for row in ids.tolist()]
    return [LINE_BREAKS.sub(" ", text) for text in found]


def texts(encode, folder: Path, rows: Sequence[str]) -> tuple[int, int]:
    """How many texts have the same token ids on both sides, and how many the same in another order.

    Two ways to cut a text may have the same score: ``....`` is ``.`` and ``...``, or the other way
    round. Which is taken depends on the last digit of sums: sentencepiece's have 24 bits and run
    over the whole text, Hugging Face's have 53 and run over a word.

    Args:
        encode: texts -> token ids with ``<s>`` and ``</s>``, as fairseq reads them, by the ids
            there.

    Raises:
        InputError: a text has other tokens.
    """
    tokenizer = load_transformers().AutoTokenizer.from_pretrained(folder)
    ties = 0
    for number, (text, ours) in enumerate(zip(rows, encode(rows)), 1):
        ours, found = list(ours), tokenizer(text)["input_ids"]
        if sorted(found) != sorted(ours):
            raise InputError(
                f"{folder} reads text {number}, {text[:60]!r}, as {found[:12]}, fairseq as "
                f"{ours[:12]}. If the text holds a name such as <s>, leave it out."
            )
        ties += found != ours
    return len(rows) - ties, ties


def _largest(folder, seen: dict) -> dict[str, float]:
    """The largest of the differences ``seen``, a list for each name; InputError if one is large."""
    # torch's maximum of numbers with nan is nan.
    found = {name: torch.tensor(values).max().item() for name, values in seen.items()}
    for name, difference in found.items():
        if not difference <= LIMIT:
            raise InputError(
                f"{folder} does not compute what the checkpoint does: {name} differ by "
                f"{difference:.1e}. Please report this model's configuration."
            )
    return found

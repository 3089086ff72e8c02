"""A contestant of predict_speed.py: ``fairseq_peft.Classifier``, or stock fairseq's own
``roberta.predict`` in a loop as its examples have it, on a clock."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from predict_meter import fingerprints, finish, milliseconds_alone, parser


def ours(args):
    """(predict, tokens of texts) of this package, from an adapter folder."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from fairseq_peft import Classifier

    classifier = Classifier.load(None, args.model, precision=args.precision, device=args.device)

    def tokens(texts):
        (reader,) = classifier._readers.values()
        return reader.encoder.items([(text,) for text in texts], [reader.max_tokens] * len(texts))

    return lambda texts: classifier.predict(texts, batch_size=args.batch_size), tokens


def stock(args):
    """(predict, tokens of texts) of fairseq: random weights, its hub interface, its collater."""
    from fairseq.data import Dictionary
    from fairseq.data.data_utils import collate_tokens
    from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
    from fairseq.models.roberta import RobertaEncoder, RobertaModel
    from fairseq.models.roberta.hub_interface import RobertaHubInterface
    from fairseq.models.roberta.model import base_architecture

    folder, sizes = Path(args.model), json.loads(args.sizes)
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")
    model_args = argparse.Namespace(
        encoder_layers=sizes["layers"],
        encoder_embed_dim=sizes["embed_dim"],
        encoder_ffn_embed_dim=sizes["ffn_dim"],
        encoder_attention_heads=sizes["heads"],
        max_positions=sizes["max_positions"],
    )
    base_architecture(model_args)
    model = RobertaModel(model_args, RobertaEncoder(model_args, dictionary))
    model.register_classification_head("head", num_classes=sizes["classes"])
    task = SimpleNamespace(source_dictionary=dictionary)
    roberta = RobertaHubInterface(SimpleNamespace(bpe=None), task, model).eval().to(args.device)
    spm = SentencepieceConfig(sentencepiece_model=str(folder / "sentencepiece.bpe.model"))
    roberta.bpe = SentencepieceBPE(spm)

    def encode(text):
        cut = roberta.encode(text)[: args.max_tokens]  # the model refuses longer ones
        cut[-1] = dictionary.eos()
        return cut

    @torch.no_grad()
    def predict(texts):
        found = []
        for first in range(0, len(texts), args.batch_size):
            rows = [encode(text) for text in texts[first : first + args.batch_size]]
            batch = rows[0] if len(rows) == 1 else collate_tokens(rows, dictionary.pad())
            found += roberta.predict("head", batch).exp().tolist()
        return found

    return predict, lambda texts: [encode(text).tolist() for text in texts]


def main():
    flags = parser(__doc__)
    flags.add_argument("--software", choices=("ours", "stock"), required=True)
    flags.add_argument("--model", required=True, help="adapter folder; for stock its tokenizer's")
    flags.add_argument("--sizes", default="{}")
    args = flags.parse_args()
    predict, tokens = {"ours": ours, "stock": stock}[args.software](args)
    texts = json.load(sys.stdin)
    predict(texts[: args.warmup])
    loaded = time.time()
    start = time.perf_counter()
    rows = predict(texts)
    seconds = time.perf_counter() - start
    assert len(rows) == len(texts)
    alone = milliseconds_alone(predict, texts)
    finish(args, loaded, seconds, fingerprints(tokens(texts)), {"alone_ms": alone})


if __name__ == "__main__":
    main()

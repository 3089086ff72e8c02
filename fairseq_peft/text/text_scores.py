"""BLEU, chrF and ROUGE of texts, by the packages that papers use: sacrebleu and rouge-score."""

from __future__ import annotations

import re

from fairseq_peft.errors import InputError

METRICS = ("bleu", "chrf", "rouge")
ROUGE = ("rouge1", "rouge2", "rougeL")
#: A row of fairseq-generate's output: its number, its score, its detokenised text.
GENERATED = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")


def score(hypotheses: list[str], references: list[str], metrics=("bleu", "chrf")) -> dict:
    """Scores in per cent, and ``signatures`` that say how they were computed.

    BLEU and chrF are of all texts together, with sacrebleu's defaults; ROUGE is the mean F1 of the
    rows, without stemming. rouge-score takes what is no letter from a to z and no digit for a
    space, an accented letter, too.

    Raises:
        InputError: the lists have different lengths, or none, or a package is not installed.
    """
    if len(hypotheses) != len(references) or not references:
        raise InputError(
            f"{len(hypotheses)} texts against {len(references)} references: expected as many, and "
            "at least one."
        )
    found = {"rows": len(references), "signatures": {}}
    for metric in metrics:
        if metric == "rouge":
            found.update(_rouge(hypotheses, references))
            found["signatures"][metric] = "rouge-score, F1, mean of the rows, no stemming"
        else:
            scorer = _sacrebleu(metric)
            found[metric] = scorer.corpus_score(hypotheses, [references]).score
            found["signatures"][metric] = str(scorer.get_signature())
    return found


def _sacrebleu(metric: str):
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise _missing("sacrebleu") from None
    return {"bleu": BLEU, "chrf": CHRF}[metric]()


def _rouge(hypotheses, references):
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError:
        raise _missing("rouge-score") from None
    scorer = RougeScorer(ROUGE, tokenizer=DefaultTokenizer(use_stemmer=False))
    rows = [scorer.score(one, other) for other, one in zip(hypotheses, references)]
    return {name: 100 * sum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE}


def _missing(package):
    return InputError(
        f"The package {package} is not installed. pip install 'fairseq-peft[scores]'."
    )


def generated(lines: list[str]) -> list[str]:
    """The texts: lines as they are, or in the output of fairseq-generate its best, row by row.

    Raises:
        InputError: rows are missing in such an output.
    """
    rows = {}
    for line in lines:
        match = GENERATED.fullmatch(line)
        if match:
            rows.setdefault(int(match[1]), match[2])
    if not rows:
        return lines
    missing = sorted(set(range(max(rows) + 1)) - set(rows))
    if missing:
        raise InputError(
            f"Row {missing[0]} is missing: the output of fairseq-generate has {len(rows)} rows, "
            f"the last is {max(rows)}. Let it read all, with --required-batch-size-multiple 1."
        )
    return [rows[number] for number in range(len(rows))]


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark in front of a space."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]

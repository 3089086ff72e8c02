"""What a data set is like: lengths, cuts, unknown tokens, texts that occur in two splits."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter

from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES, LABELS, NUMBER
from fairseq_peft.text.corpus import Corpus, sort_labels
from fairseq_peft.text.rows import Row, names_of

SPECIAL_TOKENS = {False: 2, True: 4}  # <s> a </s>, and <s> a </s> </s> b </s> for pairs


def duplicates(corpus: Corpus) -> dict[str, dict[str, int]]:
    """For each two splits ("test_in_train"): how many texts of one also occur in the other.

    ``texts`` counts different texts, ``rows`` the rows of the first that have them,
    ``other_label`` those texts that do not have the same labels in both.
    """
    found = {}
    for one, other in (("test", "train"), ("valid", "train"), ("test", "valid")):
        if one in corpus.rows and other in corpus.rows:
            labels, labels_other = (
                labels_by_text(corpus.rows[one]),
                labels_by_text(corpus.rows[other]),
            )
            shared = labels.keys() & labels_other.keys()
            found[f"{one}_in_{other}"] = {
                "texts": len(shared),
                "rows": sum(row.key in shared for row in corpus.rows[one]),
                "other_label": sum(labels[key] != labels_other[key] for key in shared),
            }
    return found


def labels_by_text(rows: list[Row]) -> dict[tuple[str, str], set[str]]:
    labels = {}
    for row in rows:
        labels.setdefault(row.key, set()).add(row.label)
    return labels


def drop_duplicates(corpus: Corpus) -> Corpus:
    """Without the rows of train whose text valid or test has; valid and test stay as they are.

    Raises:
        InputError: what is left of train teaches nothing, or not every class.
    """
    held_out = {row.key for split in ("valid", "test") for row in corpus.rows.get(split, [])}
    train = [row for row in corpus.rows["train"] if row.key not in held_out]
    found = Corpus({**corpus.rows, "train": train}, corpus.notes, corpus.kind)
    if not train:
        raise InputError("--drop-duplicates leaves no row in train: valid or test has each text.")
    left = {name for row in train for name in corpus.names(row)}
    gone = sort_labels({name for row in corpus.rows["train"] for name in corpus.names(row)} - left)
    if gone:
        raise InputError(
            f"--drop-duplicates leaves no row of {', '.join(gone)} in train. Leave it out, or give "
            "train other texts."
        )
    if corpus.kind == NUMBER and len({float(row.label) for row in train}) < 2:
        raise InputError("--drop-duplicates leaves equal numbers alone in train. Leave it out.")
    return found


def split_statistics(
    rows: list[Row],
    tokens: list[list[list[str]]],
    known: set[str],
    max_positions: int,
    kind: str = CLASSES,
) -> dict:
    """``tokens[i]`` are the pieces of each text (one or two) of row i; ``known`` is the dictionary.

    Lengths are in pieces, without special tokens. A row is cut if it is longer than what
    ``max_positions`` leaves once the special tokens are in.
    """
    lengths = sorted(sum(len(text) for text in texts) for texts in tokens)
    room = max_positions - SPECIAL_TOKENS[rows[0].text2 is not None]
    truncated = sum(length > room for length in lengths)
    unknown = sum(token not in known for texts in tokens for text in texts for token in text)
    return {
        "rows": len(rows),
        "labels": dict(
            sorted(Counter(name for row in rows for name in names_of(row.label, kind)).items())
        ),
        **_of_kind(rows, kind),
        "repeated_rows": len(rows) - len({row.key for row in rows}),
        "tokens": sum(lengths),
        "length_mean": sum(lengths) / len(lengths),
        "length_median": statistics.median(lengths),
        "length_p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
        "length_max": lengths[-1],
        "truncated_rows": truncated,
        "truncated_share": truncated / len(rows),
        "unknown_tokens": unknown,
        "unknown_share": unknown / max(1, sum(lengths)),
    }


def _of_kind(rows: list[Row], kind: str) -> dict:
    """What there is to say where a row has not one class."""
    if kind == LABELS:
        return {"rows_without_label": sum(not row.label for row in rows)}
    if kind == NUMBER:
        numbers = [float(row.label) for row in rows]
        mean = statistics.fmean(numbers)
        return {"number_min": min(numbers), "number_mean": mean, "number_max": max(numbers)}
    return {}


def frequent_unknown(tokens, known: set[str], num_shown: int = 10) -> list[list]:
    """The unknown pieces that occur most, as [piece, count]."""
    counts = Counter(
        token for texts in tokens for text in texts for token in text if token not in known
    )
    return [list(item) for item in sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:num_shown]]


def report_lines(stats: dict) -> list[str]:
    """``stats.json`` for a person."""
    kind = stats.get("kind", CLASSES)
    names = ", ".join(stats["labels"][:20]) + (" ..." if len(stats["labels"]) > 20 else "")
    last = "lowest, mean and highest number" if kind == NUMBER else "rows of each class"
    lines = [
        "a number a row" if kind == NUMBER else f"{len(stats['labels'])} {kind}: {names}",
        f"{'split':6}{'rows':>8}{'tokens':>11}{'mean':>8}{'median':>8}{'p95':>6}{'max':>7}"
        f"{'cut':>8}{'unknown':>9}   {last}",
    ]
    for split, of in stats["splits"].items():
        classes = ", ".join(
            f"{label}: {count:,}" for label, count in list(of["labels"].items())[:8]
        )
        if kind == NUMBER:
            classes = ", ".join(f"{of[f'number_{name}']:.6g}" for name in ("min", "mean", "max"))
        elif kind == LABELS:
            classes += f"; no label: {of['rows_without_label']:,}"
        lines.append(
            f"{split:6}{of['rows']:>8,}{of['tokens']:>11,}{of['length_mean']:>8.1f}"
            f"{of['length_median']:>8g}{of['length_p95']:>6}{of['length_max']:>7}"
            f"{of['truncated_share']:>8.1%}{of['unknown_share']:>9.2%}   {classes}"
        )
    lines.append(
        f"cut: longer than {stats['max_tokens']} pieces, what {stats['max_positions']} positions "
        f"leave beside <s> and </s>"
    )
    if stats["frequent_unknown"]:
        shown = ", ".join(f"{piece} ({count:,})" for piece, count in stats["frequent_unknown"])
        lines.append(f"unknown pieces that occur most: {shown}")
    for name, count in stats["notes"].items():
        lines.append(f"{name.replace('_', ' ')}: {count:,}")
    for name, of in stats["duplicates"].items():
        one, other = name.split("_in_")
        if of["texts"]:
            lines.append(
                f"warning: {of['texts']:,} different texts of {one} ({of['rows']:,} rows) also "
                f"occur in {other}, {of['other_label']:,} of them with another label"
            )
    lines += label_warnings(stats["splits"])
    if stats["dropped_train_rows"]:
        lines.append(
            f"dropped {stats['dropped_train_rows']:,} rows of train: valid or test has them"
        )
    elif any(stats["duplicates"][name]["texts"] for name in stats["duplicates"] if "train" in name):
        lines.append(
            "DROP_DUPLICATES=train (--drop-duplicates train) drops them from train, only there"
        )
    return lines


def label_warnings(splits: dict) -> list[str]:
    """What is odd about the labels of the splits, a sentence each."""
    counts, found = splits["train"]["labels"], []
    decimals = [label for label in counts if re.fullmatch(r"[+-]?\d*\.\d+", label)]
    if decimals:
        found.append(
            f"warning: {len(decimals)} labels are decimals ({first_of(decimals)}): each is a class "
            "of its own, as no value lies between classes. To predict numbers: --kind number (KIND)"
        )
    single = [label for label, count in counts.items() if count == 1]
    if single:
        found.append(
            f"warning: {len(single)} classes have one row in train ({first_of(single)}): too few "
            "to learn"
        )
    for split in ("valid", "test"):
        missing = [
            label for label in counts if split in splits and not splits[split]["labels"].get(label)
        ]
        if missing:
            found.append(
                f"warning: {len(missing)} classes have no row in {split} ({first_of(missing)}): "
                "its figures say nothing of them"
            )
    return found


def first_of(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")

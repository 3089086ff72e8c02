"""Print the exact parameter counts of an architecture and its methods, with their formulas."""

from __future__ import annotations

import json
import sys

from fairseq_peft import architectures, methods
from fairseq_peft.errors import InputError


def add_arguments(parser):
    parser.add_argument(
        "--arch",
        required=True,
        help="roberta_small, roberta_base or roberta_large, or with a method's suffix",
    )
    parser.add_argument("--peft", nargs="+", metavar="METHOD", help="methods (all of them)")
    parser.add_argument("--num-classes", type=int, default=2, help="classes of the head (2)")
    parser.add_argument("--vocab-size", type=int, help="rows of the token embedding, with specials")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "knobs", nargs="*", help="behind --: knobs as fairseq-train takes them, --lora-rank 4"
    )


def run(args) -> int:
    size, method = split_arch(args.arch)
    if args.num_classes < 2:
        raise InputError(f"--num-classes {args.num_classes}: a classifier needs at least 2.")
    dims = architectures.SIZES[size]
    if args.vocab_size is not None:
        if args.vocab_size < 6:
            raise InputError(
                f"--vocab-size {args.vocab_size}: 5 rows are specials, give at least 6."
            )
        dims = architectures.Dims(**{**vars(dims), "vocab_size": args.vocab_size})
    names = args.peft or ([method] if method else methods.available())
    counts = count(size, dims, names, parse_knobs(args.knobs), args.num_classes)
    if args.json:
        sys.stdout.write(json.dumps(counts, indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(table(counts)) + "\n")
    return 0


def split_arch(arch: str):
    """``"roberta_small_lora"`` as ("roberta_small", "lora"); the method is None without a
    suffix."""
    for size in architectures.SIZES:
        if arch == size:
            return size, None
        if arch.startswith(size + "_") and arch[len(size) + 1 :] in methods.available():
            return size, arch[len(size) + 1 :]
    known = ", ".join(architectures.SIZES)
    raise InputError(
        f"--arch {arch!r} is unknown. Give one of {known}, alone or with _ and one of "
        f"{', '.join(methods.available())}."
    )


def parse_knobs(words) -> dict:
    """``["--lora-rank", "4"]`` as {"lora_rank": "4"}."""
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise InputError(f"{' '.join(words)!r} is not a list of --knob value pairs.")
    return {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2])}


def count(size, dims, names, knobs, num_classes) -> dict:
    """All counts, JSON ready; parameters are integers, shares are fractions."""
    encoder = architectures.matrices(dims)
    rest = architectures.encoder_rest(dims)
    lm_head = architectures.lm_head(dims)
    head = architectures.classification_head(dims, num_classes)
    base = encoder.total + rest.total + lm_head.total
    return {
        "arch": size,
        "terms": rows(architectures.layer_matrices(dims)) + rows(encoder),
        "encoder_matrices": encoder.total,
        "encoder_rest": rows(rest),
        "encoder": encoder.total + rest.total,
        "lm_head": rows(lm_head),
        "with_lm_head": base,
        "head": rows(head),
        "with_lm_head_and_head": base + head.total,
        "methods": [count_method(name, dims, knobs, head.total, base) for name in names],
    }


def count_method(name, dims, knobs, head, base) -> dict:
    """One setting's counts; knobs of methods that it does not have are left to those."""
    own = knob_types(name)
    try:
        given = {flag: own[flag](value) for flag, value in knobs.items() if flag in own}
    except ValueError as error:
        raise InputError(f"A knob of {name} has no value of its type: {error}.") from error
    setting = methods.setting(name, given)
    added, trained = setting.count(dims), setting.count_base(dims)
    trainable = added.total + trained.total
    return {
        "method": setting.name,
        "terms": rows(trained) + rows(added),
        "trainable_without_head": trainable,
        "head": head,
        "trainable": trainable + head,
        "total": base + added.total + head,
        "share": (trainable + head) / (base + added.total + head),
        "share_without_head": trainable / (base + added.total + head),
        "task_bytes": 4 * (trainable + head),
    }


def knob_types(peft: str) -> dict[str, type]:
    """Flag -> type, for every knob of the methods in ``peft``; a switch takes true or false."""
    from dataclasses import fields

    from fairseq_peft.methods.base import field_types, flag_name

    found = {}
    for method in methods.split(peft):
        types = field_types(method.Config)
        for knob in fields(method.Config):
            kind = types[knob.name]
            found[flag_name(method.name, knob)] = switch if kind is bool else kind
    return found


def switch(word: str) -> bool:
    """``"true"`` or ``"false"`` as a bool."""
    if word.lower() not in ("true", "false"):
        raise ValueError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def rows(terms) -> list[dict]:
    return [
        {"part": term.part, "formula": term.formula, "parameters": term.count}
        for term in terms.terms
    ]


def table(counts) -> list[str]:
    """The counts for a person, line by line."""

    def line(part, formula, number, note=""):
        return f"  {part:<34} {formula:<30} {number:>12,}{note}"

    lines = [counts["arch"]]
    lines += [line(*row.values()) for row in counts["terms"]]
    lines += [line("encoder, matrices alone", "", counts["encoder_matrices"])]
    lines += [line(*row.values()) for row in counts["encoder_rest"]]
    lines += [line("encoder", "", counts["encoder"])]
    lines += [line(*row.values()) for row in counts["lm_head"]]
    lines += [line("with LM head", "", counts["with_lm_head"])]
    lines += [line(*row.values()) for row in counts["head"]]
    lines += [line("with LM head and head", "", counts["with_lm_head_and_head"])]
    for method in counts["methods"]:
        lines += ["", f"{counts['arch']} --peft {method['method']}: what trains"]
        lines += [line(*row.values()) for row in method["terms"]]
        for part, key in [("without the head", "_without_head"), ("with the head", "")]:
            share = f"  {100 * method['share' + key]:8.4f} % of {method['total']:,}"
            lines.append(line(part, "", method["trainable" + key], share))
    return lines

"""Print the exact parameter counts of an architecture and its methods, with their formulas."""

from __future__ import annotations

import dataclasses
import json
import sys

from fairseq_peft import architectures, methods
from fairseq_peft.errors import InputError


def add_arguments(parser):
    built, counted = architectures.SIZES, architectures.COUNTED
    parser.add_argument(
        "--arch",
        required=True,
        help=f"{', '.join(built)}, or with _ and a method; counted only: "
        f"{', '.join(name for name in counted if name not in built)}",
    )
    parser.add_argument("--peft", nargs="+", metavar="METHOD", help="methods (all of them)")
    parser.add_argument("--num-classes", type=int, help="classes of the head (2)")
    parser.add_argument(
        "--classifier-head", choices=("roberta", "linear"), help="kind of the head (roberta)"
    )
    parser.add_argument("--vocab-size", type=int, help="rows of the token embedding, with specials")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "knobs",
        nargs="*",
        help="behind --: knobs of the methods, each with a value: --lora-rslora true",
    )


def run(args) -> int:
    arch, method = split_arch(args.arch)
    dims = architectures.COUNTED[arch]
    num_classes = 2 if args.num_classes is None else args.num_classes
    if num_classes < 2:
        raise InputError(f"--num-classes {num_classes}: a classifier needs at least 2.")
    given = {"--num-classes": args.num_classes, "--classifier-head": args.classifier_head}
    for flag, value in given.items():
        if value is not None and not dims.head(2).total:
            raise InputError(
                f"{flag} {value} would be ignored: {arch} answers with text and has no "
                "classification head. Leave it out."
            )
    if args.vocab_size is not None:
        if args.vocab_size < 6:
            raise InputError(
                f"--vocab-size {args.vocab_size}: 5 rows are specials, give at least 6."
            )
        dims = dataclasses.replace(dims, vocab_size=args.vocab_size)
    names = args.peft or ([method] if method else None)
    knobs = parse_knobs(args.knobs)
    check_knobs(knobs, names)
    counts = count(arch, dims, names, knobs, num_classes, args.classifier_head)
    if args.json:
        sys.stdout.write(json.dumps(counts, indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(table(counts)) + "\n")
    return 0


def split_arch(arch: str):
    """``"roberta_small_lora"`` as ("roberta_small", "lora"); the method is None without a
    suffix."""
    for size in architectures.COUNTED:
        if arch == size:
            return size, None
        if arch.startswith(size + "_") and arch[len(size) + 1 :] in methods.available():
            return size, arch[len(size) + 1 :]
    known = ", ".join(architectures.COUNTED)
    if arch in (f"roberta_{name}" for name in (*methods.available(), "peft")):
        raise InputError(
            f"--arch {arch} takes its sizes from a base, and here is none. Give one of {known}, "
            "alone or with _ and a method."
        )
    raise InputError(
        f"--arch {arch!r} is unknown. Give one of {known}, alone or with _ and one of "
        f"{', '.join(methods.available())}."
    )


def parse_knobs(words) -> dict:
    """``["--lora-rank", "4"]`` as {"lora_rank": "4"}."""
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise InputError(f"{' '.join(words)!r} is not a list of --knob value pairs.")
    return {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2])}


def check_knobs(knobs, names) -> None:
    """Raise InputError for a knob that none of the settings ``names`` has (None: all methods)."""
    used, known = (
        set().union(*map(knob_types, some)) for some in (names or (), methods.available())
    )
    for knob in knobs:
        flag = "--" + knob.replace("_", "-")
        if knob not in known:
            raise InputError(
                f"{flag} is unknown here: behind -- stand knobs of methods (fairseq-peft methods "
                "lists them); sizes are those of --arch, but for --vocab-size before the --."
            )
        if names is not None and knob not in used:
            raise InputError(
                f"{flag} would be ignored: --peft {' '.join(names)} does not use it. Leave it out, "
                "or choose the method it belongs to."
            )


def count(arch, dims, names, knobs, num_classes, head_kind=None) -> dict:
    """All counts, JSON ready; parameters are integers, shares are fractions.

    With ``names`` None every method is counted; on an architecture that is counted only, those that
    have no count there with these knobs are listed with the reason.
    """
    sections, total = [], 0
    for section in dims.sections():
        total += section.count.total
        sections.append(
            {
                "title": section.title,
                "details": rows(section.details),
                "terms": rows(section.count.terms),
                "total": total,
            }
        )
    head = dims.head(num_classes, head_kind) if head_kind else dims.head(num_classes)
    counted, left_out = [], {}
    for name in methods.available() if names is None else names:
        try:
            counted.append(count_method(name, arch, dims, knobs, head.total, total))
        except InputError as error:
            if names is not None or arch in architectures.SIZES:
                raise
            left_out[name] = str(error)
    return {
        "arch": arch,
        "sections": sections,
        "base": total,
        "head": rows(head.terms),
        "with_head": total + head.total,
        "methods": counted,
        "left_out": left_out,
    }


def count_method(peft, arch, dims, knobs, head, base) -> dict:
    """One setting's counts; knobs of methods that it does not have are left to those."""
    own = knob_types(peft)
    try:
        given = {flag: own[flag](value) for flag, value in knobs.items() if flag in own}
    except ValueError as error:
        raise InputError(f"A knob of {peft} has no value of its type: {error}.") from error
    setting = methods.setting(peft, given)
    try:
        added, trained = setting.count(dims), setting.count_base(dims)
    except architectures.Undefined as reason:
        raise InputError(f"--peft {setting.name} has no count on {arch}: {reason}") from reason
    trainable = added.total + trained.total
    if not trainable + head:
        raise InputError(
            f"--peft {setting.name} trains nothing on {arch}: there is no classification head. "
            "Choose another method."
        )
    total = base + added.total + head
    return {
        "method": setting.name,
        "terms": rows(trained.terms) + rows(added.terms),
        "trainable_without_head": trainable,
        "head": head,
        "trainable": trainable + head,
        "total": total,
        "share": (trainable + head) / total,
        "share_without_head": trainable / total,
        "task_bytes": 4 * (trainable + head) + setting.buffer_bytes(dims),
    }


def knob_types(peft: str) -> dict[str, type]:
    """Flag -> type, for every knob of the methods in ``peft``; a switch takes true or false."""
    from fairseq_peft.methods import token_rows
    from fairseq_peft.methods.base import field_types, flag_name

    found = {token_rows.FLAG: str}
    for method in methods.split(peft):
        types = field_types(method.Config)
        for knob in dataclasses.fields(method.Config):
            found[flag_name(method.name, knob)] = reader(types[knob.name])
    return found


def reader(kind):
    """What makes a value of ``kind`` (int, Optional[float], ...) of a word."""
    inner = [one for one in getattr(kind, "__args__", ()) if one is not type(None)]
    kind = inner[0] if inner else kind
    return switch if kind is bool else kind


def switch(word: str) -> bool:
    """``"true"`` or ``"false"`` as a bool."""
    if word.lower() not in ("true", "false"):
        raise ValueError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def rows(terms) -> list[dict]:
    return [
        {"part": term.part, "formula": term.formula, "parameters": term.count} for term in terms
    ]


def table(counts) -> list[str]:
    """The counts for a person, line by line."""

    def line(part, formula, number, note=""):
        return f"  {part:<36} {formula:<34} {number:>12,}{note}"

    lines = [counts["arch"]]
    for section in counts["sections"]:
        lines += [line(*row.values()) for row in section["details"] + section["terms"]]
        lines.append(line(section["title"], "", section["total"]))
    if counts["head"]:
        lines += [line(*row.values()) for row in counts["head"]]
        lines.append(line("with classification head", "", counts["with_head"]))
    for method in counts["methods"]:
        lines += ["", f"{counts['arch']} --peft {method['method']}: what trains"]
        lines += [line(*row.values()) for row in method["terms"]]
        parts = {"without the head": "_without_head", "with the head": ""}
        if not counts["head"]:
            parts = {"of all parameters": ""}
        for part, key in parts.items():
            share = f"  {100 * method['share' + key]:8.4f} % of {method['total']:,}"
            lines.append(line(part, "", method["trainable" + key], share))
        if counts["head"]:
            for part, key in parts.items():
                lines.append(line(f"fp32 bytes, {part}", "", 4 * method["trainable" + key]))
    for method, reason in counts["left_out"].items():
        lines += ["", f"{counts['arch']} --peft {method}: left out. {reason}"]
    return lines

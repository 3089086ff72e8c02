"""Writes docs/reference/: every command, flag and script, from what the code says of itself.

    python docs/tools/reference.py            writes the pages
    python docs/tools/reference.py --check    exit status 1 and names, where some are not current

A test runs the check. The pages say the same on every machine and every Python: nothing in them is
laid out by argparse.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import logging
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/tools/reference.py: do not edit. -->\n\n"
#: A word that fairseq's dataclasses have where a default is to be taken from another flag.
INTERPOLATED = "${"
#: The default of what has to be given.
MISSING = "???"


# ---- text --------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """A help text as Markdown: flags become code, and what Markdown would read is escaped."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*\\])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(</?s>)", r"`\1`", parts[i])
        parts[i] = re.sub(r"<(?!/?s>`)", "&lt;", parts[i])
        parts[i] = re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", parts[i])
    return "".join(parts)


def cell(text: str) -> str:
    """The same in one cell of a table."""
    return prose(" ".join(text.split())).replace("|", r"\|")


def code(text: str) -> str:
    return f"`{text}`".replace("|", r"\|")


def description(docstring: str) -> str:
    """A docstring as Markdown; what is indented is code."""
    blocks = re.split(r"\n\s*\n", docstring.strip("\n"))
    return "\n\n".join(
        f"```text\n{_dedent(block)}\n```" if block.startswith("    ") else prose(block)
        for block in blocks
    )


def _dedent(block: str) -> str:
    return "\n".join(line[4:].rstrip() for line in block.splitlines())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(title: str, *parts: str) -> str:
    return f"# {title}\n\n{NOTE}" + "\n\n".join(part for part in parts if part) + "\n"


# ---- fairseq-peft --------------------------------------------------------------------------------


def long_choice(action: argparse.Action) -> bool:
    """Too many words for one line: the text has them."""
    return bool(action.choices) and len(",".join(map(str, action.choices))) > 24


def takes(action: argparse.Action) -> str:
    """What follows a flag on the command line, or stands for an argument without one."""
    if action.nargs == 0:
        return ""
    name = action.metavar or (None if action.option_strings else action.dest)
    if name is None and action.choices and not long_choice(action):
        name = "{" + ",".join(map(str, action.choices)) + "}"
    return {"*": "[{0} ...]", "+": "{0} [{0} ...]", "?": "[{0}]"}.get(action.nargs, "{0}").format(
        name or action.dest.upper()
    )


def usage(name: str, parser: argparse.ArgumentParser) -> str:
    """One line: what has to be given, in the order of the command."""
    words, optional = [], False
    for action in parser._actions:
        if action.option_strings:
            optional = optional or not action.required
            if action.required:
                words.append(f"{action.option_strings[-1]} {takes(action)}")
        else:
            words.append(
                takes(action) if action.nargs != argparse.REMAINDER else f"[{action.metavar}]"
            )
    for group in parser._mutually_exclusive_groups:
        if group.required:
            either = [f"{a.option_strings[-1]} {takes(a)}".strip() for a in group._group_actions]
            words.insert(0, "(" + " | ".join(either) + ")")
    return " ".join(["fairseq-peft", name, *(["[flags]"] if optional else []), *words])


def verb(name: str, parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        said = action.help % {**vars(action), "prog": parser.prog} if action.help else ""
        if long_choice(action):
            said += ": " + ", ".join(map(code, action.choices))
        names = [" ".join([flag, takes(action)]).strip() for flag in action.option_strings]
        rows.append([", ".join(map(code, names or [takes(action)])), cell(said)])
    parts = [
        f"## `{name}`",
        f"```text\n{usage(name, parser)}\n```",
        description(parser.description),
    ]
    return "\n\n".join([*parts, *([table(["", "what it says"], rows)] if rows else [])])


def first_sentence(parser: argparse.ArgumentParser) -> str:
    return re.split(r"\.(?:\s|$)|\n\n", parser.description.strip())[0]


def commands() -> str:
    from fairseq_peft import cli

    (verbs,) = (
        action
        for action in cli.build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    index = [
        [f"[`{name}`](#{name})", cell(first_sentence(verbs.choices[name]))]
        for name in sorted(verbs.choices)
    ]
    return page(
        "Commands",
        "`fairseq-peft COMMAND`, or `python -m fairseq_peft.cli COMMAND` where the package is "
        "not installed. Each has `--help`. Exit status: 0; 1 for input that is wrong, with a "
        "sentence; 2 for a flag that does not exist; 130 for Ctrl-C.",
        table(["command", "what it does"], index),
        *(verb(name, verbs.choices[name]) for name in sorted(verbs.choices)),
    )


# ---- fairseq-train -------------------------------------------------------------------------------


def type_name(kind) -> str:
    """``Optional[int]`` is ``int``."""
    inner = [part for part in getattr(kind, "__args__", ()) if part is not type(None)]
    if getattr(kind, "__origin__", None) is not list and len(inner) == 1:
        kind = inner[0]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(str(item.value) for item in kind)
    return "float" if kind is float else getattr(kind, "__name__", str(kind).replace("typing.", ""))


def shown_default(field) -> str:
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is None or default in ("", MISSING) or default is dataclasses.MISSING:
        return ""
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def flags_table(rows: list[list[str]]) -> str:
    """Rows of flag, type, default, help; without the third column where nothing stands in it."""
    head = ["flag", "type", "default", "what it says"]
    if not any(row[2] for row in rows):
        head, rows = head[:2] + head[3:], [row[:2] + row[3:] for row in rows]
    return table(head, rows) if rows else "No flags."


def fields_table(fields) -> str:
    """A table of the flags of a dataclass of fairseq, but for those that belong to another.

    What has to be given (``MISSING``) stands on fairseq's command line without a flag.
    """
    rows = []
    for field in fields:
        said = field.metadata.get("help")
        if said == argparse.SUPPRESS or INTERPOLATED in str(field.default) or said is None:
            continue
        given = field.default == MISSING
        flag = field.name.upper() if given else "--" + field.name.replace("_", "-")
        default = shown_default(field)
        rows.append(
            [code(flag), type_name(field.type), code(default) if default else "", cell(said)]
        )
    return flags_table(rows)


def own(registry: dict) -> dict:
    """name -> class, of what the plugin registered."""
    return {
        name: found
        for name, found in sorted(registry.items())
        if found.__module__.startswith("fairseq_peft.")
    }


def architectures(names: list[str]) -> str:
    """The names of a family, with METHOD for that of any method."""
    from fairseq_peft import methods

    method = re.compile("_(" + "|".join(methods.available()) + ")$")
    short = dict.fromkeys(method.sub("_METHOD", name) for name in names)
    return ", ".join(map(code, short))


def model_flags() -> str:
    from fairseq.models import ARCH_MODEL_INV_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY

    from fairseq_peft import methods
    from fairseq_peft.commands.methods import describe
    from fairseq_peft.methods import token_rows
    from fairseq_peft.models.options import COMMON, METHOD_FIELDS

    parts = [
        "`fairseq-train --user-dir fairseq_peft --arch ARCHITECTURE`. METHOD is the name of a "
        f"method ({', '.join(map(code, methods.available()))}); it is a preset for `--peft METHOD`."
        " A flag that nobody gives has the value of the base, or that of the architecture's name, "
        "or the one that stands here.",
        "## Models of every family",
    ]
    models = own(MODEL_REGISTRY)
    first = next(iter(models))
    configs = {name: dataclasses.fields(MODEL_DATACLASS_REGISTRY[name]) for name in models}
    common = [field for field in configs[first] if field.name in (*COMMON, token_rows.FLAG)]
    parts.append(fields_table(common))
    for name, fields in configs.items():
        parts.append(f"## `{name}`")
        parts.append(architectures(ARCH_MODEL_INV_REGISTRY[name]))
        refused = getattr(sys.modules[models[name].__module__], "REFUSED", {})
        hidden = {*COMMON, *METHOD_FIELDS, *refused}
        parts.append(fields_table(field for field in fields if field.name not in hidden))
        if refused:
            flags = ", ".join(code("--" + flag.replace("_", "-")) for flag in refused)
            parts.append(f"Of fairseq's own, with a sentence refused: {flags}.")
    parts.append("## Methods")
    for name in methods.available():
        row = describe(methods.get(name))
        parts.append(f"### `--peft {name}`")
        parts.append(
            f"{prose(row['summary'])[0].upper()}{prose(row['summary'])[1:]}. "
            f"[What it computes](../methods.md#{name})."
        )
        flags = [
            [code(knob["flag"]), knob["type"], code(knob["shown_default"]), cell(knob["help"])]
            for knob in row["knobs"]
        ]
        parts.append(flags_table(flags))
    return page("Flags of the models", *parts)


#: What chooses a part of a run -> what it is called.
PARTS = {
    "task": "Task",
    "criterion": "Criterion",
    "optimizer": "Optimizer",
    "lr_scheduler": "Learning rate",
}


def training_flags() -> str:
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    registries = {
        "task": (TASK_REGISTRY, TASK_DATACLASS_REGISTRY),
        **{
            name: (found["registry"], found["dataclass_registry"])
            for name, found in REGISTRIES.items()
        },
    }
    parts = [
        "What the plugin adds to `fairseq-train` beside models. fairseq's own flags beside a "
        "method: [fairseq's flags](../fairseq-flags.md)."
    ]
    for choice, title in PARTS.items():
        classes, configs = registries[choice]
        for name in own(classes):
            parts.append(f"## {title}: `--{choice.replace('_', '-')} {name}`")
            parts.append(fields_table(dataclasses.fields(configs[name])))
    return page("Flags of training", *parts)


# ---- scripts -------------------------------------------------------------------------------------


def scripts() -> str:
    parts = [
        "Each script has `--help` and `--dry-run`, runs from any folder, and skips what is done. "
        "Knobs are environment variables, and what follows `--` goes to `fairseq-train` verbatim."
    ]
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        if not path.read_text(encoding="utf-8").startswith("#!"):
            continue  # what scripts share
        done = subprocess.run(
            ["bash", str(path), "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        parts.append(f"## `{path.name}`\n\n```text\n{done.stdout.rstrip()}\n```")
    return page("Scripts", *parts)


#: file -> what writes it.
PAGES = {
    "commands.md": commands,
    "model-flags.md": model_flags,
    "training-flags.md": training_flags,
    "scripts.md": scripts,
}


def stale() -> list[str]:
    """The pages that do not say what the code says."""
    found = []
    for name, make in PAGES.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != make():
            found.append(name)
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)  # fairseq's remarks on what is not installed
    import fairseq_peft.plugin  # noqa: F401

    if args.check:
        names = stale()
        if names:
            sys.stderr.write(f"not current: {', '.join(names)}; run scripts/docs.sh reference\n")
        return bool(names)
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

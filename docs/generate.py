# SPDX-License-Identifier: GPL-2.0-or-later
"""Generate documents from the code: manual pages, errors, JSON, its types in TypeScript. Run ``docs/generate.py``.

A manual page is a template (``man/*.in``, roff) in which lines such as ``@COMMANDS@`` are replaced by text from the
commands or the keys of the configuration. A group of commands without a template gets a page as well. Tests check
that the generated files are current.

Why not argparse-manpage: it repeats every global option below every command, drops the columns of tables, and
has no place for what is not an option.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from virt_dmem import errors
from virt_dmem.cli.json_schema import Failure, answers
from virt_dmem.cli.parser import build_parser
from virt_dmem.config import schema
from virt_dmem.config.schema import keys
from virt_dmem.daemon.main import build_parser as build_daemon_parser

DOCS = Path(__file__).parent
REFERENCE = Path("reference")
SCHEMA = "virt-dmem.schema.json"
GROUP_PAGE = """\
.\\" SPDX-License-Identifier: GPL-2.0-or-later
.TH VIRT-DMEM-{upper} 1 "" "virt-dmem" "User commands"
.SH NAME
virt\\-dmem\\-{name} \\- {summary}
.SH SYNOPSIS
@SYNOPSIS@
.SH COMMANDS
All take the global options of
.BR virt\\-dmem (1).
@COMMANDS@
.SH EXIT STATUS
As of
.BR virt\\-dmem (1).
.SH SEE ALSO
.BR virt\\-dmem (1)
"""
JSON_HEAD = f"""\
# JSON output

<!-- made by docs/generate.py from virt_dmem/cli -->

With `--json` every command prints one JSON object on standard output, and nothing else; `events` prints
one in each line. Sizes are integers in bytes, times seconds since the epoch. `schema` is the version of the
format, now 1: it is incremented when a field is removed or changes its meaning. Fields may be added at any time:
ignore those you do not know. The same as a JSON Schema: [{SCHEMA}]({SCHEMA}); its
`commands` names the type of each command's output.

A failure is an object as well, with a non-zero exit status: see [errors](errors.md).
"""
TYPES = Path("../packaging/cockpit/src/model/answers.ts")
TYPES_HEAD = """\
// SPDX-License-Identifier: GPL-2.0-or-later
// made by docs/generate.py from virt_dmem/cli: what each command takes, and what it prints with --json
"""
README = Path("../README.md")
RUNS = REFERENCE / "runs.json"
RUNS_BEGIN = "<!-- made by docs/generate.py from docs/reference/runs.json, which runs of tests write -->"
RUNS_END = "<!-- end -->"
ERRORS_HEAD = """\
# Errors

<!-- made by docs/generate.py from virt_dmem/errors.py -->

Every failure has a stable code: `--json` prints it and `virt-dmem explain CODE` explains it. The message states
what happened, the hint how to resolve it. [Alerts](alerts.md) have codes of their own.

| code | exit status | meaning |
|---|---|---|"""


def documents() -> dict[Path, str]:
    """Return every generated document by its path below docs/."""
    parser = build_parser()
    globals_ = _Globals(parser)
    made = {Path("man/virt-dmem.1"): _filled(_template("virt-dmem.1"), parser, globals_)}
    for name, child, summary in _children(parser):
        if _subparsers(child):
            text = GROUP_PAGE.format(name=name, upper=name.upper(), summary=_roff(summary))
            page = _filled(_template(f"virt-dmem-{name}.1") or text, child, globals_)
            made[Path(f"man/virt-dmem-{name}.1")] = page
    made[Path("man/virt-dmemd.8")] = _filled(_template("virt-dmemd.8"), build_daemon_parser(), None)
    made[Path("man/virt-dmem.toml.5")] = _template("virt-dmem.toml.5").replace("@KEYS@\n", _keys())
    schema = _schema()
    made[REFERENCE / SCHEMA] = json.dumps(schema, indent=2) + "\n"
    made[REFERENCE / "json.md"] = _json_document(schema)
    made[REFERENCE / "errors.md"] = _errors_document()
    made[TYPES] = _typescript(schema, parser)
    runs = json.loads((DOCS / RUNS).read_text("utf-8"))["runs"]
    made[README] = with_runs((DOCS / README).read_text("utf-8"), runs)
    return made


def runs_table(runs: list[dict[str, Any]]) -> str:
    """Return the table of what was run where."""
    lines = ["| architecture | Linux | libvirt | QEMU | passed | tests | day |", "|---|---|---|---|---|---|---|"]
    for run in runs:
        cells = [run[name] or "-" for name in ("arch", "kernel", "libvirt", "qemu", "what")]
        lines.append(f"| {' | '.join(cells)} | {run['tests']} | {run['date']} |")
    return "\n".join(lines)


def with_runs(readme: str, runs: list[dict[str, Any]]) -> str:
    """Return README with the table of these runs."""
    before, _, rest = readme.partition(RUNS_BEGIN)
    _, _, after = rest.partition(RUNS_END)
    if not after:
        raise ValueError("README has lost the marks of its table of runs.")
    return f"{before}{RUNS_BEGIN}\n{runs_table(runs)}\n{RUNS_END}{after}"


def _template(name: str) -> str:
    path = DOCS / "man" / f"{name}.in"
    return path.read_text("utf-8") if path.exists() else ""


# -- manual pages


class _Globals:
    """The options that every command takes."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.actions = [action for action in parser._actions if action.option_strings]
        self.names = {name for action in self.actions for name in action.option_strings}

    def without(self, parser: argparse.ArgumentParser) -> list[argparse.Action]:
        return [action for action in parser._actions if not self.names & set(action.option_strings)]


def _filled(page: str, parser: argparse.ArgumentParser, globals_: _Globals | None) -> str:
    page = page.replace("@OPTIONS@\n", _options(globals_.actions if globals_ else parser._actions))
    if globals_:
        verbs = list(_children(parser))
        usages = "\n.br\n".join(_usage(child, globals_) for _, child, _ in verbs)
        page = page.replace("@SYNOPSIS@\n", f"{usages}\n")
        page = page.replace("@COMMANDS@\n", "".join(_command(*verb, globals_) for verb in verbs))
    return page


def _subparsers(parser: argparse.ArgumentParser) -> list[Any]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _children(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield name, parser and summary of each command, in the order of ``--help``."""
    for action in _subparsers(parser):
        for choice in action._choices_actions:
            yield choice.dest, action.choices[choice.dest], choice.help


def _usage(parser: argparse.ArgumentParser, globals_: _Globals) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=10_000)
    formatter.add_usage(None, globals_.without(parser), parser._mutually_exclusive_groups, prefix="")
    usage = formatter.format_help().strip().removeprefix(parser.prog)
    return f".B {_roff(parser.prog)}\n{_arguments(usage)}".rstrip()


def _arguments(usage: str) -> str:
    """Set placeholders (NAME, N=SIZE) in italics."""
    return re.sub(r"\b([A-Z]+(?:=[A-Z]+)?)\b", r"\\fI\1\\fR", _roff(usage.strip()))


def _command(name: str, parser: argparse.ArgumentParser, summary: str, globals_: _Globals) -> str:
    if _subparsers(parser):
        words = ", ".join(f"\\fB{_roff(name)} {_roff(verb)}\\fR" for verb, _, _ in _children(parser))
        return f".SS {_roff(name)}\n{_sentence(summary)} {words}: see\n.BR virt\\-dmem\\-{_roff(name)} (1).\n"
    text = f".SS {_roff(parser.prog.removeprefix('virt-dmem '))}\n{_usage(parser, globals_)}\n"
    paragraphs = (parser.description or "").split("\n\n")
    text += "".join(f".PP\n{_roff(paragraph)}\n" for paragraph in paragraphs)
    text += _options([action for action in globals_.without(parser) if _is_shown(action)])
    if parser.epilog:  # the columns of a table
        text += f".PP\n.nf\n{_roff(parser.epilog)}\n.fi\n"
    return text


def _is_shown(action: argparse.Action) -> bool:
    return bool(action.help) and action.help != argparse.SUPPRESS


def _sentence(summary: str) -> str:
    return _roff(f"{summary[:1].upper()}{summary[1:]}:")


def _options(actions: list[argparse.Action]) -> str:
    return "".join(_option(action) for action in actions if not isinstance(action, argparse._SubParsersAction))


def _option(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else "|".join(map(str, action.choices or []))
    names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in action.option_strings)
    term = f"{names} \\fI{_roff(value)}\\fR" if names and value else names or f"\\fI{_roff(value)}\\fR"
    default = action.default if isinstance(action.default, str) and action.default else ""
    help_text = (action.help or "").replace("show program's version number", "print the version")
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices and action.metavar else ""
    known = f"; default: {default}" if default and default != argparse.SUPPRESS and action.choices else ""
    return f".TP\n{term}\n{_capital(_roff(help_text))}{choices}{known}.\n"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _roff(text: str) -> str:
    """Return plain text with roff's control characters escaped."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _keys() -> str:
    """Return every key of the configuration, section by section, with the docstring below it in the code."""
    said = _docstrings()
    lines, section = [], ""
    for key, kind, default in keys():
        if key == "adopt":
            continue
        of, _, name = key.rpartition(".")
        if of != section:
            section = of
            lines.append(f".SS [{_roff(of)}]")
        text = said[key].replace("``", "")
        lines += [".TP", f".B {_roff(name)}", f"{_roff(text)}"]
        value = _roff(json.dumps(default)).replace('"', "\\(dq")
        lines += [".br", f"{_kind(kind)}; default: \\fB{value}\\fR"]
    return "\n".join([*lines, *_rule_keys(said)]) + "\n"


def _rule_keys(said: dict[str, str]) -> Iterator[str]:
    """Yield the keys of a rule, after what rules are."""
    yield f".SS [[adopt]]\n{_roff(said['adopt'].replace('``', ''))}"
    for name, kind in get_type_hints(schema.AdoptRule).items():
        value = _roff(json.dumps(getattr(schema.AdoptRule(), name))).replace('"', "\\(dq")
        yield f".TP\n.B {_roff(name)}\n{_roff(said[f'adopt.{name}'])}\n.br\n{_kind(kind)}; default: \\fB{value}\\fR"


def _kind(kind: object) -> str:
    names: dict[object, str] = {str: "String", int: "Whole number", float: "Number", bool: "true or false"}
    if choices := get_args(kind):
        return "One of " + ", ".join(_roff(f'"{choice}"').replace('"', "\\(dq") for choice in choices)
    return names.get(kind, str(kind))


def _docstrings() -> dict[str, str]:
    """Return the docstring below each key, by key; Python itself does not keep them."""
    found = {}
    classes = {
        node.name: node for node in ast.parse(inspect.getsource(schema)).body if isinstance(node, ast.ClassDef)
    }
    sections = {
        kind.__name__: name for name, kind in schema.Config.__annotations__.items() if inspect.isclass(kind)
    }
    sections["AdoptRule"] = "adopt"
    sections |= {text: name for name, text in schema.Config.__annotations__.items() if isinstance(text, str)}
    for name, node in classes.items():
        above = f"{sections[name]}." if name in sections else ""
        for field, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
            ):
                found[above + field.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return found


# -- JSON


def _schema() -> dict[str, Any]:
    kinds = [Failure, *dict.fromkeys(answers().values())]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What virt-dmem prints with --json",
        "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds],
        "commands": {command: {"$ref": f"#/$defs/{kind.__name__}"} for command, kind in answers().items()},
        "$defs": found,
    }


def _json_document(schema: dict[str, Any]) -> str:
    defs = schema["$defs"]
    named = [kind.__name__ for kind in dict.fromkeys(answers().values())]
    lines = [JSON_HEAD]
    for name in ["Failure", *named, *(name for name in defs if name not in {"Failure", *named})]:
        lines += [f"## {name}", "", defs[name].get("description", ""), "", "| field | type | |", "|---|---|---|"]
        required = defs[name].get("required", [])
        for field, kind in defs[name]["properties"].items():
            may_miss = "" if field in required else " (may be missing)"
            lines.append(f"| `{field}` | {_type(kind)}{may_miss} | {kind.get('description', '')} |")
        lines.append("")
    return "\n".join(lines)


def _type(kind: dict[str, Any]) -> str:
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in kind:
        return " or ".join(_type(one) for one in kind["anyOf"])
    if "enum" in kind:
        return ", ".join(f"`{json.dumps(value)}`" for value in kind["enum"])
    if kind.get("type") == "array":
        return f"list of {_type(kind['items'])}"
    return str(kind.get("type", "any"))


# -- TypeScript


def _typescript(schema: dict[str, Any], parser: argparse.ArgumentParser) -> str:
    """Return the schema as interfaces, and one more that has options, operands and answer of each command."""
    lines = [TYPES_HEAD]
    for name, kind in schema["$defs"].items():
        required = kind.get("required", [])
        lines.append(f"export interface {name} {{")
        for field, of in kind["properties"].items():
            lines.append(f"    {field}{'' if field in required else '?'}: {_typescript_type(of)};")
        lines.append("}\n")
    lines.append("export interface Commands {")
    for command, answer in answers().items():
        declared = _parser_of(parser, command)
        actions = [action for action in _Globals(parser).without(declared) if action.help != argparse.SUPPRESS]
        options = [action for action in actions if action.option_strings]
        operands = [action for action in actions if not action.option_strings]
        lines.append(f'    "{command}": {{')
        lines.append("        options: {" if options else "        options: Record<string, never>;")
        for action in options:
            optional = "" if action.required else "?"
            lines.append(f'            "{action.option_strings[0]}"{optional}: {_option_type(action)};')
        lines += ["        };"] * bool(options)
        lines.append(f"        operands: [{', '.join(map(_operand, operands))}];")
        lines.append(f"        answer: {answer.__name__};")
        lines.append("    };")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _parser_of(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    for word in command.split():
        parser = next(child for name, child, _ in _children(parser) if name == word)
    return parser


def _typescript_type(kind: dict[str, Any]) -> str:
    if "$ref" in kind:
        return str(kind["$ref"].rpartition("/")[2])
    if "anyOf" in kind:
        return " | ".join(_typescript_type(one) for one in kind["anyOf"])
    if "enum" in kind:
        return " | ".join(json.dumps(value) for value in kind["enum"])
    match kind.get("type"):
        case "array":
            return f"{_typescript_type(kind['items'])}[]"
        case "object":
            return f"Record<string, {_typescript_type(kind['additionalProperties'])}>"
    names = {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}
    return names.get(kind.get("type", ""), "unknown")


def _option_type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "true"
    return "string[]" if isinstance(action.default, list) else _value_type(action)


def _operand(action: argparse.Action) -> str:
    name = re.sub(r"\W", "", action.dest)
    return f"{name}{'?' if action.nargs == '?' else ''}: {_value_type(action)}"


def _value_type(action: argparse.Action) -> str:
    return " | ".join(json.dumps(choice) for choice in action.choices) if action.choices else "string"


# -- errors


def _errors_document() -> str:
    def tree(kind: type[errors.DmemError]) -> Iterator[type[errors.DmemError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    lines = [ERRORS_HEAD]
    known = sorted(tree(errors.DmemError), key=lambda kind: kind.code)
    lines += [f"| `{kind.code}` | {kind.exit_status.value} | {kind.explanation} |" for kind in known]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all documents."""
    for path, text in documents().items():
        (DOCS / path).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

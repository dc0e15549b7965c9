# SPDX-License-Identifier: GPL-2.0-or-later
"""Random documents made from libvirt's own RelaxNG schema, so that we build for the schema and not for samples.

``SchemaWriter`` walks the grammar with a seeded random number generator: every element, attribute, choice and
data type that the schema knows can occur. What our code is about is chosen more often than the rest. On top of
the grammar come the things XML allows everywhere: comments, processing instructions, CDATA, white space,
prefixes, encodings.

A document can still be refused by libxml2: its RelaxNG does not know every order that <interleave> allows.

``python -m tests.rig.schema_documents COUNT [SEED] [unknown]`` tries many, and prints what happened to them.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as data_field
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

from lxml import etree

SCHEMAS = Path("/usr/share/libvirt/schemas")
RNG = "{http://relaxng.org/ns/structure/1.0}"
OURS = "https://virt-dmem.dev/xmlns/domain/1.0"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

# How likely an optional part is taken when it leads to one of these elements or attributes.
LIKELY = {
    "memory": 0.7, "memoryBacking": 0.7, "cpu": 0.6, "numa": 0.6, "numatune": 0.4, "metadata": 0.5, "devices": 0.7,
    "hugepages": 0.4, "page": 0.6, "nodeset": 0.5, "source": 0.5, "access": 0.5, "allocation": 0.5, "vcpu": 0.6,
    "placement": 0.3, "maxMemory": 0.4, "currentMemory": 0.4, "cell": 0.8, "memAccess": 0.3, "memnode": 0.4,
    "iothreads": 0.4, "cputune": 0.3, "launchSecurity": 0.02, "unit": 0.5, "commandline": 0.3, "override": 0.3,
    "arch": 0.8, "machine": 0.8, "pagesize": 0.5, "nodemask": 0.4, "uuid": 0.7, "genid": 0.3, "title": 0.3,
    "description": 0.3, "resource": 0.2, "sysinfo": 0.2, "keywrap": 0.05, "locked": 0.3, "idmap": 0.05,
}  # fmt: skip
NUMBERS = [
    "0",
    "1",
    "2",
    "7",
    "64",
    "512",
    "1024",
    "2048",
    "524288",
    "1048576",
    "4194304",
    "4194305",
    "18446744073709551615",
]
TEXTS = [
    "",
    "text",
    "é ü",
    "a &amp; b",
    "<![CDATA[<&]]>",
    "]]&gt;",
    "&#13;&#9;&#x1F600;",
    " spaced ",
    "\n   lines\n",
]
REQUESTS = [
    f"<dmem:memory xmlns:dmem='{OURS}'/>",
    f"<dmem:memory xmlns:dmem='{OURS}' pool='x'/>",
    f"<d:memory xmlns:d='{OURS}' pool='x'> <!-- why --> </d:memory>",
    f"<memory xmlns='{OURS}' pool='other'>\n    <!-- why -->\n  </memory>",
    f"<memory xmlns='{OURS}'><x xmlns=''/></memory>",
]
FOREIGN = [
    "<app:x xmlns:app='http://example.com/app'>text <app:y a='1'/> more</app:x>",
    "<x xmlns='http://example.com/default'><y xmlns=''/></x>",
    "<dmem:memory xmlns:dmem='http://example.com/not-ours'/>",
    "<r:x xmlns:r='relative/name'/>",
    f"<q:wrap xmlns:q='urn:q'><memory xmlns='{OURS}' pool='not-here'/></q:wrap>",
    f"<dmem:other xmlns:dmem='{OURS}'/>",
    "<plain><memory/></plain>",
    "<x xml:lang='de' xml:space='preserve'>  <y/>  </x>",
]
UNKNOWN = [
    "text",
    "<unknown/>",
    "<u:x xmlns:u='urn:u' u:a='1'><y/></u:x>",
    "<x xmlns='urn:u'/>",
    "<![CDATA[ ]]>",
    "&#160;",
]
ROOT_DECLARATIONS = [
    "", "", f" xmlns:dmem='{OURS}'", f" xmlns:a='{OURS}'", " xmlns:dmem='http://example.com/not-ours'",
    " xmlns:ns0='urn:zero'", " xmlns:r='relative/name'", f" xmlns:qemu='{QEMU}'",
]  # fmt: skip
ENCODINGS = ["utf-8"] * 12 + [
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "iso-8859-1",
    "cp1252",
    "utf-32",
    "us-ascii",
]


@dataclass
class Item:
    """An element that was written."""

    name: str
    attributes: dict[str, str] = data_field(default_factory=dict)
    children: list[Item | str] = data_field(default_factory=list)


class TooDeep(Exception):
    """The grammar led deeper than was allowed."""


class Unwritable(Exception):
    """A part of the grammar for which nothing can be written."""


class SchemaWriter:
    """Writes documents; the same seed, the same document."""

    def __init__(self) -> None:
        self._defines: dict[str, list[etree._Element]] = {}
        self._loaded: set[str] = set()
        self._load("domain.rng")
        self._names: dict[int, frozenset[str]] = {}
        self._keep: list[etree._Element] = []

    def _load(self, file: str) -> None:
        if file in self._loaded:
            return
        self._loaded.add(file)
        for child in etree.parse(SCHEMAS / file, etree.XMLParser(remove_comments=True)).getroot():
            if child.tag == f"{RNG}include":
                self._load(child.get("href", ""))
            elif child.tag == f"{RNG}define":
                self._defines.setdefault(child.get("name", ""), []).append(child)

    def document(self, seed: int, *, unknown: bool = False) -> bytes:
        """Return one document; whether libvirt's schema takes it is for libxml2 to say.

        ``unknown``: also put in elements, attributes and text that the schema does not know, and libvirt ignores.
        """
        writing = _Writing(self, random.Random(seed), unknown=unknown)
        while True:
            try:
                (root,) = writing.write(self._defines["domain"][0], 0)
            except TooDeep:
                continue
            return writing.printed(root)

    def alternatives(self, name: str) -> list[etree._Element]:
        """Return the patterns of a define; several where it is combined by choice."""
        return self._defines[name]

    def leads_to(self, pattern: etree._Element) -> frozenset[str]:
        """Return the elements and attributes that ``pattern`` may begin with."""
        known = self._names.get(id(pattern))
        if known is None:
            self._keep.append(pattern)  # lxml's proxies are only as stable as the references to them
            if pattern.tag in (f"{RNG}element", f"{RNG}attribute"):
                known = frozenset({pattern.get("name", "")})
            elif pattern.tag == f"{RNG}ref":
                known = frozenset().union(*(self.leads_to(d) for d in self.alternatives(pattern.get("name", ""))))
            else:
                known = frozenset().union(*(self.leads_to(child) for child in pattern))
            self._names[id(pattern)] = known
        return known


class _Writing:
    """One document being written."""

    def __init__(self, grammar: SchemaWriter, rng: random.Random, *, unknown: bool) -> None:
        self._grammar = grammar
        self._unknown = unknown
        self.rng = rng
        self._order = rng.choice(["schema", "shuffled", "mixed"])
        self._plain = rng.random() < 0.3  # no comments, no odd white space
        self._path: list[str] = []

    # The grammar

    def write(self, pattern: etree._Element, depth: int) -> list[Any]:
        """Return what ``pattern`` becomes: Items, strings (text) and (name, value) pairs (attributes)."""
        if depth > 90:
            raise TooDeep
        kind = etree.QName(pattern).localname
        method: Callable[[etree._Element, int], list[Any]] = getattr(self, f"_{kind}")
        return method(pattern, depth + 1)

    def _each(self, patterns: Sequence[etree._Element], depth: int) -> list[Any]:
        return [part for pattern in patterns for part in self.write(pattern, depth)]

    def _group(self, pattern: etree._Element, depth: int) -> list[Any]:
        return self._each(pattern, depth)

    def _define(self, pattern: etree._Element, depth: int) -> list[Any]:
        return self._each(pattern, depth)

    def _ref(self, pattern: etree._Element, depth: int) -> list[Any]:
        name = pattern.get("name", "")
        if name == "customElement":
            return [self._custom(3)]
        return self.write(self.rng.choice(self._writable(self._grammar.alternatives(name))), depth)

    def _writable(self, patterns: Sequence[etree._Element]) -> list[etree._Element]:
        return [p for p in patterns if p.find(f"{RNG}notAllowed") is None] or list(patterns)

    def _choice(self, pattern: etree._Element, depth: int) -> list[Any]:
        choices = list(pattern)
        if self._path == ["domain", "@type"]:
            return ["kvm" if self.rng.random() < 0.6 else "qemu" if self.rng.random() < 0.95 else "xen"]
        if self._path and self._path[-1] == "devices" and self.rng.random() < 0.4:
            choices = [c for c in choices if "memory" in self._grammar.leads_to(c)] or choices
        if self._path and self._path[-1] == "@memAccess" and self.rng.random() < 0.9:
            return ["shared"]
        return self.write(self.rng.choice(choices), depth)

    def _chance(self, pattern: etree._Element, depth: int) -> float:
        likely = [LIKELY[name] for name in self._grammar.leads_to(pattern) if name in LIKELY]
        return max(likely, default=max(0.02, 0.3 - depth / 150))

    def _optional(self, pattern: etree._Element, depth: int) -> list[Any]:
        return self._each(pattern, depth) if self.rng.random() < self._chance(pattern, depth) else []

    def _zeroOrMore(self, pattern: etree._Element, depth: int) -> list[Any]:  # noqa: N802
        written: list[Any] = []
        for _ in range(4):
            if self.rng.random() < self._chance(pattern, depth):
                written += self._each(pattern, depth)
        return written

    def _oneOrMore(self, pattern: etree._Element, depth: int) -> list[Any]:  # noqa: N802
        return self._each(pattern, depth) + self._zeroOrMore(pattern, depth)

    def _interleave(self, pattern: etree._Element, depth: int) -> list[Any]:
        branches = [self.write(child, depth) for child in pattern]
        if self._order == "mixed":
            mixed: list[Any] = []
            while branches := [branch for branch in branches if branch]:
                mixed.append(self.rng.choice(branches).pop(0))
            return mixed
        if self._order == "shuffled":
            self.rng.shuffle(branches)
        return [part for branch in branches for part in branch]

    def _element(self, pattern: etree._Element, depth: int) -> list[Any]:
        name = pattern.get("name", "")
        namespace = pattern.get("ns") or next((a.get("ns") for a in pattern.iterancestors() if a.get("ns")), None)
        if namespace:
            name = f"{{{namespace}}}{name}"
        self._path.append(name)
        item = Item(name)
        for part in self._each(pattern, depth):
            if isinstance(part, tuple):
                item.attributes[part[0]] = part[1]
            else:
                item.children.append(part)
        if name == "metadata":
            item.children = self._metadata()
        self._path.pop()
        return [item]

    def _attribute(self, pattern: etree._Element, depth: int) -> list[Any]:
        name = pattern.get("name", "")
        self._path.append(f"@{name}")
        value = "".join(self._each(pattern, depth)) if len(pattern) else self.rng.choice(["", "x", "a b", "é"])
        self._path.pop()
        return [(name, value)]

    def _text(self, _pattern: etree._Element, _depth: int) -> list[Any]:
        in_attribute = bool(self._path) and self._path[-1].startswith("@")
        return [self.rng.choice(["", "x", "a b", "é", "1"]) if in_attribute else Raw(self.rng.choice(TEXTS))]

    def _empty(self, _pattern: etree._Element, _depth: int) -> list[Any]:
        return []

    def _notAllowed(self, _pattern: etree._Element, _depth: int) -> list[Any]:  # noqa: N802
        return []

    def _value(self, pattern: etree._Element, _depth: int) -> list[Any]:
        return [pattern.text or ""]

    def _list(self, pattern: etree._Element, depth: int) -> list[Any]:
        return [" ".join(str(part) for part in self._each(pattern, depth))]

    def _data(self, pattern: etree._Element, _depth: int) -> list[Any]:
        kind = pattern.get("type", "")
        limits = {param.get("name", ""): param.text or "" for param in pattern.iterfind(f"{RNG}param")}
        if kind == "dateTime":
            return ["2024-02-29T12:00:00"]
        if kind == "NCName":
            return [self.rng.choice(["x", "a-b", "_1"])]
        if (
            "Int" in kind
            or "Long" in kind
            or "Short" in kind
            or kind in ("int", "long", "short", "integer", "positiveInteger")
        ):
            return [self._number(kind, limits)]
        if "pattern" in limits:
            return [from_pattern(limits["pattern"], self.rng)]
        return [self.rng.choice(["", "x", "a b", "é", "/x/y"])]

    def _number(self, kind: str, limits: dict[str, str]) -> str:
        pattern = limits.get("pattern", "")
        if pattern and pattern != "[0-9]+":
            return from_pattern(pattern, self.rng)
        low = int(limits.get("minInclusive", "1" if kind == "positiveInteger" else "0"))
        high = int(
            limits.get("maxInclusive", "65535" if "hort" in kind else "4294967295" if "Int" in kind else 2**63 - 1)
        )
        if self._path and self._path[-1] in ("@id", "@cellid", "node"):
            return str(self.rng.randrange(3))
        number = int(self.rng.choice(NUMBERS))
        return str(number if low <= number <= high else self.rng.randint(low, min(high, low + 100)))

    # Metadata

    def _metadata(self) -> list[Any]:
        wanted = [Raw(text) for text in self.rng.sample(FOREIGN, self.rng.randrange(3))]
        if self.rng.random() < 0.5:
            wanted.append(Raw(self.rng.choice(REQUESTS)))
        wanted += [self._custom(2) for _ in range(self.rng.randrange(2))]
        self.rng.shuffle(wanted)
        return wanted

    def _custom(self, depth: int) -> Any:
        namespace = self.rng.choice(["urn:a", "urn:b", "http://example.com/c"])
        item = Item(f"{{{namespace}}}{self.rng.choice(['x', 'memory', 'memoryBacking', 'replaced'])}")
        if self.rng.random() < 0.5:
            item.attributes["a"] = self.rng.choice(["", "x", "&<'\"", "\n\t"])
        for _ in range(self.rng.randrange(3) if depth else 0):
            item.children.append(
                self._custom(depth - 1) if self.rng.random() < 0.6 else Raw(self.rng.choice(TEXTS))
            )
        return item

    # The document

    def printed(self, root: Item) -> bytes:
        """Return the document as bytes, in some encoding."""
        rng = self.rng
        encoding = "utf-8" if self._plain else rng.choice(ENCODINGS)
        declared = "utf-8" if encoding == "utf-8-sig" else encoding
        gap = rng.choice(["", "\n", "\n  ", "\r\n\t", " "])
        body = self._xml(root, gap if rng.random() < 0.8 else "\n", rng.choice(ROOT_DECLARATIONS))
        before = after = ""
        if encoding != "utf-8" or rng.random() < 0.3:
            standalone = rng.choice(["", "", " standalone='yes'", " standalone='no'"])
            before = f"<?xml version='1.0' encoding='{declared}'{standalone}?>" + rng.choice(["", "\n"])
        if not self._plain:
            before += rng.choice(["", "", "<!-- generated -->\n", "<?pi before?>"])
            after = rng.choice(["", "", "<!-- after -->", "\n<?pi after?>\n"])
        after += rng.choice(["", "\n", "\n\n"])
        text = before + body + after
        if encoding == "utf-16-le":
            return b"\xff\xfe" + text.encode(encoding)
        if encoding == "utf-16-be":
            return b"\xfe\xff" + text.encode(encoding)
        return text.encode(encoding, "xmlcharrefreplace")

    def _odd(self) -> str:
        if self._unknown and self.rng.random() < 0.05:
            return self.rng.choice(UNKNOWN)
        if self._plain or self.rng.random() < 0.93:
            return ""
        return self.rng.choice(["<!-- c -->", "<!---->", "<?pi data?>", "\n\n", "<!-- <memoryBacking/> -->"])

    def _xml(self, item: Item, gap: str, declarations: str = "") -> str:
        namespace, _, name = item.name.rpartition("}")
        prefix = ""
        if namespace := namespace.removeprefix("{"):
            prefix = "qemu:" if namespace == QEMU else self.rng.choice(["", "p:", "dmem:"])
            declarations += f" xmlns{':' if prefix else ''}{prefix.rstrip(':')}='{namespace}'"
            if f"xmlns:{prefix.rstrip(':')}=" in declarations.partition(" xmlns")[0]:
                prefix = ""
        pairs = list(item.attributes.items())
        if self._unknown and "unknown" not in item.attributes and self.rng.random() < 0.05:
            pairs.append(("unknown", "1"))
        self.rng.shuffle(pairs)
        attributes = "".join(f" {key}={_quoted(value, self.rng)}" for key, value in pairs)
        start, end = f"<{prefix}{name}{declarations}{attributes}", f"</{prefix}{name}>"
        if not item.children:
            return f"{start}/>" if self.rng.random() < 0.8 else f"{start}>{end}"
        if any(isinstance(child, str) for child in item.children) and item.name != "metadata":
            inside = "".join(
                self._xml(child, "")
                if isinstance(child, Item)
                else child
                if isinstance(child, Raw)
                else _escaped(child)
                for child in item.children
            )
        else:
            parts = [
                self._xml(c, f"{gap}  " if gap.startswith("\n") else gap) if isinstance(c, Item) else c
                for c in item.children
            ]
            inside = gap + "".join(self._odd() + part + self._odd() + gap for part in parts)
        return f"{start}>{inside}{end}"


class Raw(str):
    """Text that is XML already."""

    __slots__ = ()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")


def _quoted(text: str, rng: random.Random) -> str:
    quote = rng.choice("'\"")
    text = _escaped(text).replace("\n", "&#10;").replace("\t", "&#9;")
    return quote + text.replace(quote, "&apos;" if quote == "'" else "&quot;") + quote


def from_pattern(pattern: str, rng: random.Random) -> str:
    """Return a string that an XML Schema pattern of libvirt's matches; they are Python's too."""
    return _matching(sre_parser.parse(pattern), rng)


def _matching(parsed: Any, rng: random.Random) -> str:
    written = ""
    for operation, argument in parsed:
        if operation is sre.LITERAL:
            written += chr(argument)
        elif operation is sre.ANY:
            written += rng.choice("ab1 /é")
        elif operation is sre.NOT_LITERAL:
            written += "b" if argument == ord("a") else "a"
        elif operation is sre.IN:
            written += _member(argument, rng)
        elif operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, inner = argument
            for _ in range(rng.randint(low, min(int(high), low + 4))):
                written += _matching(inner, rng)
        elif operation is sre.SUBPATTERN:
            written += _matching(argument[-1], rng)
        elif operation is sre.BRANCH:
            written += _matching(rng.choice(argument[1]), rng)
        else:
            raise Unwritable(operation)
    return written


def _member(members: Sequence[Any], rng: random.Random) -> str:
    ranges: list[tuple[int, int]] = []
    negated = False
    for operation, argument in members:
        if operation is sre.NEGATE:
            negated = True
        elif operation is sre.LITERAL:
            ranges.append((argument, argument))
        elif operation is sre.RANGE:
            ranges.append(argument)
        elif operation is sre.CATEGORY:
            ranges.append((ord(" "), ord(" ")))
    if negated:
        return rng.choice([c for c in "abcXYZ019 ._-é" if not any(low <= ord(c) <= high for low, high in ranges)])
    low, high = rng.choice(ranges)
    return chr(rng.randint(low, high))


def domain_schema() -> etree.RelaxNG:
    """Return libvirt's schema, compiled."""
    return etree.RelaxNG(etree.parse(SCHEMAS / "domain.rng"))


def main(count: int, seed: int, *, unknown: bool) -> int:
    """Try ``count`` documents; print what became of them and the seeds of what failed."""
    from tests.rig.schema_property import Failure, examine

    writer, schema, outcomes, failures = SchemaWriter(), domain_schema(), Counter[str](), Counter[str]()
    for number in range(seed, seed + count):
        xml = writer.document(number, unknown=unknown)
        try:
            outcomes[examine(xml, None if unknown else schema)] += 1
        except Failure as failure:
            what = str(failure).splitlines()[0][:160]
            failures[what] += 1
            if failures[what] <= 3:
                print(f"seed {number}: {what}", flush=True)
    for outcome, times in outcomes.most_common() + failures.most_common():
        print(f"{times:8} {outcome}")
    return 1 if failures else 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    sys.exit(main(numbers[0], *numbers[1:] or [0], unknown="unknown" in sys.argv))

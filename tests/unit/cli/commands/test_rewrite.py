# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem rewrite``: the filter."""

from __future__ import annotations

import json

import pytest

from tests.rig.command_line import run
from tests.rig.golden import GOLDEN, canonical
from virt_dmem.errors import ExitStatus


def test_the_filter_rewrites_and_gives_back() -> None:
    before = (GOLDEN / "compact-in.xml").read_bytes()
    there = run("rewrite", stdin=before)
    assert (there.returncode, there.stderr) == (0, b"")
    assert b"dmem:memory" in there.stdout
    back = run("rewrite", "--undo", stdin=there.stdout)
    assert canonical(back.stdout) == canonical(before)


@pytest.mark.parametrize("undo", [[], ["--undo"]], ids=["apply", "undo"])
@pytest.mark.parametrize("xml", [b"", b"<domain", b"hello", b"<network/>", b"\xff\xfe\x00"])
def test_what_the_filter_refuses_leaves_nothing_on_stdout(undo: list[str], xml: bytes) -> None:
    done = run("rewrite", *undo, stdin=xml)
    assert done.returncode == ExitStatus.FAILED
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_the_filter_keeps_a_password_that_its_diff_does_not_show() -> None:
    graphics = b"<devices><graphics type='vnc'\n  passwd = 'hunter2'/></devices></domain>"
    xml = (GOLDEN / "compact-in.xml").read_bytes().replace(b"</domain>", graphics)
    assert b"hunter2" in run("rewrite", stdin=xml).stdout
    shown = run("rewrite", "--print-diff", stdin=xml)
    assert b"+" in shown.stdout
    assert b"hunter2" not in shown.stdout
    assert b"hunter2" not in run("rewrite", "--print-diff", "--json", stdin=xml).stdout


def test_for_another_program_the_filter_s_xml_and_json_are_exact() -> None:
    xml = (GOLDEN / "compact-in.xml").read_text()
    name = "a\x9bb\u202ec"
    named = xml.replace("<name>", f"<name>{name}", 1).encode()
    assert f"<name>{name}".encode() in run("rewrite", stdin=named).stdout
    answer = run("rewrite", "--json", stdin=named).stdout
    assert answer.isascii()
    assert f"<name>{name}" in json.loads(answer)["xml"]


def test_options_that_do_not_go_together_are_refused_before_anything_is_read() -> None:
    done = run("rewrite", "--migratable", stdin=b"no XML")
    assert (done.returncode, b"--migratable requires --undo" in done.stderr) == (ExitStatus.USAGE, True)

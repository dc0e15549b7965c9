# SPDX-License-Identifier: GPL-2.0-or-later
"""``--json`` prints what docs/reference/json.md says, with a real virt-dmemd and a pool of tmpfs."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.answers import command_of, require_documented
from tests.rig.command_line import Command
from tests.rig.golden import GOLDEN
from tests.rig.mount_namespace import in_own_mount_namespace
from tests.rig.repository import REPOSITORY
from virt_dmem.cli.json_schema import SCHEMA_VERSION, answers
from virt_dmem.cli.main import main
from virt_dmem.cli.parser import build_parser
from virt_dmem.domain_xml.rewrite import apply
from virt_dmem.errors import ExitStatus
from virt_dmem.ipc.client import Client

IN_OWN_TESTS = {"check", "events", "status"}
"""They fail in a private namespace, and one has an object for each event."""
IN_LIBVIRT_TESTS = {"apply", "attach", "detach", "park", "refresh", "resize", "unapply", "unpark"}
"""Need a libvirt with QEMU: tests/rig/command.py holds every answer there against its type as well."""


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from list(verbs(child, f"{prefix}{name} ")) or [f"{prefix}{name}"]


def test_every_command_has_a_type_for_its_answer() -> None:
    assert sorted(answers()) == sorted(verbs(build_parser()))


def test_the_schema_names_the_type_of_every_command() -> None:
    schema = json.loads((REPOSITORY / "docs/reference/virt-dmem.schema.json").read_text("utf-8"))
    for command, kind in answers().items():
        assert schema["commands"][command]["$ref"] == f"#/$defs/{kind.__name__}"
        assert schema["$defs"][kind.__name__]["properties"]["schema"]["enum"] == [SCHEMA_VERSION]


def domain_xml() -> str:
    """A small domain, applied."""
    xml = re.sub(rb"(emory unit='KiB'>)\d+", rb"\g<1>8192", (GOLDEN / "plain-in.xml").read_bytes())
    return apply(xml, pool="small").decode()


@in_own_mount_namespace
def test_what_every_command_prints_is_as_documented(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def ask(*args: str) -> Any:
        seen.add(command_of(args))
        return command.json(*args)

    ask("pool", "create", "small", "--size", "64M", "--backend", "tmpfs")
    assert ask("pool", "show", "small")["pool"]["reserved_bytes"] is None, "no daemon can be asked"
    with command.daemon():
        with Client(command.directory / "run/sock") as daemon:
            for _ in daemon.call_more("Hook", operation="prepare", xml=domain_xml()):
                pass
        (domain,) = ask("list")["domains"]
        assert domain["reserved_bytes"] == sum(extent["size_bytes"] for extent in domain["extents"]) > 0
        assert domain["steps"] == [], "they are in show"
        assert ask("show", domain["name"])["domain"]["uuid"] == domain["uuid"]
        assert ask("show", domain["uuid"], "--timing")["domain"]["steps"]
        assert ask("pool", "list")["pools"][0]["reserved_bytes"] == domain["reserved_bytes"]
        assert ask("list", "--applied") == {"domains": []}
        ask("alerts")
        ask("metrics")
        ask("pause-apply", "--for", "1h")
        assert ask("alerts")["alerts"]
        ask("pause-apply", "--resume")
        ask("pool", "drain", "small")
        ask("pool", "drain", "small", "--undo")
        assert ask("savings")["pools"]
        with Client(command.directory / "run/sock") as daemon:
            for _ in daemon.call_more("Hook", operation="release", xml=domain_xml()):
                pass
        ask("reconcile", "--dry-run")
        ask("pool", "resize", "small", "--size", "32M")
        ask("report", "--file", str(command.directory / "report.tar.gz"))
    ask("pool", "mount", "small")
    ask("pool", "destroy", "small")
    ask("plan-host", "--guest-memory", "320G")
    ask("config", "show")
    ask("completion", "bash")
    ask("explain", "usage")
    for words in (["rewrite"], ["rewrite", "--print-diff"], ["rules"]):
        stdin = io.BytesIO((GOLDEN / "plain-in.xml").read_bytes())
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stdin))
        ask(*words)
    assert sorted(seen | IN_OWN_TESTS) == sorted(set(answers()) - IN_LIBVIRT_TESTS)


@pytest.mark.parametrize("args", [["explain", "nonsense"], ["pool", "show", "none"], ["frobnicate"]], ids=" ".join)
def test_a_failure_prints_as_documented(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "virt-dmem.toml"
    config.write_text(f'[daemon]\nrun_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n')
    assert main([*args, "--json", "--config", str(config)]) != ExitStatus.DONE
    assert require_documented([], capsys.readouterr().out)["error"]["hint"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem park``, ``unpark`` and ``refresh``: what is asked of virt-dmemd, and what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from tests.rig.answers import require_documented
from tests.rig.command_line import Command
from virt_dmem.cli.main import main
from virt_dmem.errors import DomainRefused, ExitStatus


class Daemon:
    """A fake of virt-dmemd, with a running and a parked domain; what is asked about "bad" fails."""

    def __init__(self, state: str = "running", file: str = "", seconds: float = 0.0) -> None:
        self.asked: list[dict[str, Any]] = []
        self._domain = {"uuid": "u", "name": "guest", "state": state, "state_file": file, "pause_seconds": seconds}

    def call(self, method: str) -> dict[str, Any]:
        assert method == "ListDomains"
        phases = {"bad": "running", "good": "running", "saved": "parked", "new": "prepared"}
        return {"domains": [{"uuid": uuid, "name": f"the {uuid} one", "phase": phases[uuid]} for uuid in phases]}

    def call_more(self, method: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        self.asked.append({"method": method, **parameters})
        if parameters["domain"] == "bad":
            raise DomainRefused("Domain bad cannot be parked.", hint="Remove it.")
        yield {"reply": {"done": False, "message": "saving", "domain": None}}
        yield {"reply": {"done": True, "message": "", "domain": self._domain}}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has the command ask a fake."""

    def use(daemon: Daemon) -> Daemon:
        monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(daemon))
        return daemon

    return use


@pytest.mark.parametrize(
    ("args", "daemon", "printed"),
    [
        (["park", "guest"], Daemon("parked", "/s"), "guest is parked; its state is /s.\n"),
        (["unpark", "guest"], Daemon(), "guest is running.\n"),
        (["unpark", "guest"], Daemon("paused"), "guest is paused, as it was.\n"),
        (["unpark", "--discard", "guest"], Daemon("discarded"), "guest is given up.\n"),
        (["refresh", "guest"], Daemon("running", "", 0.84), "guest is running after 0.8 s.\n"),
        (["refresh", "--dry-run", "guest"], Daemon("possible"), "guest can be refreshed.\n"),
    ],
)
def test_the_outcome_is_printed(command: Command, use: Any, args: list[str], daemon: Daemon, printed: str) -> None:
    use(daemon)
    assert command(*args) == printed
    (asked,) = daemon.asked
    assert asked["domain"] == "guest"
    assert asked["method"] == args[0].title()


def test_all_of_a_phase_are_gone_through_and_each_failure_is_told(command: Command, use: Any) -> None:
    daemon = use(Daemon())
    said = command("refresh", "--all", status=ExitStatus.FAILED)
    assert [asked["domain"] for asked in daemon.asked] == ["bad", "good"]
    assert "the bad one: Domain bad cannot be parked. Remove it." in said
    assert "1 of 2 domains failed." in said
    daemon.asked.clear()
    command("unpark", "--all")
    assert [asked["domain"] for asked in daemon.asked] == ["saved"]


def test_json_has_those_that_failed_beside_those_that_did_not(
    command: Command, use: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Daemon())
    assert main(["refresh", "--all", "--json"]) == ExitStatus.FAILED
    args = ["refresh", "--all", "--json"]
    bad, good = require_documented(args, capsys.readouterr().out)["domains"]
    assert (bad["name"], bad["state"], bad["error"]["code"]) == ("the bad one", "failed", "domain-refused")
    assert (good["name"], good["state"], good["error"]) == ("guest", "running", None)


@pytest.mark.parametrize("words", [["park"], ["unpark"], ["unpark", "--discard", "--yes"], ["refresh"]])
def test_a_typo_is_told_from_a_domain_that_holds_nothing(command: Command, words: list[str]) -> None:
    with command.daemon():
        said = command(*words, "tset", status=ExitStatus.FAILED)
        assert "has no domain 'tset'" in said
        assert "Did you mean 'test'?" in said
        assert "[domain-not-found]" in said
        assert "is not applied" in command(*words, "test", status=ExitStatus.FAILED)


@pytest.mark.parametrize(
    "args", [["refresh"], ["refresh", "guest", "--all"], ["unpark"], ["unpark", "--all", "--discard"]]
)
def test_one_domain_or_all_must_be_named(command: Command, use: Any, args: list[str]) -> None:
    assert use(Daemon()).asked == []
    command(*args, status=ExitStatus.USAGE)

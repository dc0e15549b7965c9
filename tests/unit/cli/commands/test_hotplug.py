# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem attach``, ``detach`` and ``resize``: what is asked of virt-dmemd, and what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from tests.rig.command_line import Command
from virt_dmem.errors import DomainRefused, ExitStatus


class Daemon:
    """A fake of virt-dmemd."""

    def __init__(self, state: str, message: str = "") -> None:
        self.asked: dict[str, Any] = {}
        self._change = {"uuid": "u", "name": "guest", "alias": "dimm0", "size_bytes": 1 << 30, "state": state}
        self._change["message"] = message

    def call_more(self, method: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        self.asked = {"method": method, **parameters}
        yield {"reply": {"done": False, "message": "populating", "done_bytes": 1, "total_bytes": 2}}
        yield {"reply": {"done": True, "change": self._change}}


@pytest.mark.parametrize(
    ("args", "state", "printed"),
    [
        (["attach", "guest", "--size", "1G"], "attached", "dimm0 of guest: 1 GiB attached.\n"),
        (["detach", "guest", "dimm0"], "detached", "dimm0 of guest: 1 GiB detached.\n"),
        (["resize", "guest", "dimm0", "--size", "1G"], "resized", "dimm0 of guest: 1 GiB plugged.\n"),
        (["detach", "guest", "dimm0"], "pending", "dimm0 of guest: pending.\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_outcome_is_printed(
    command: Command, monkeypatch: pytest.MonkeyPatch, args: list[str], state: str, printed: str
) -> None:
    monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(Daemon(state)))
    assert command(*args) == printed


def test_zero_may_be_plugged_but_not_attached(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon("resized")
    monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(daemon))
    command("resize", "guest", "dimm0", "--size", "0", "--wait", "1m")
    assert daemon.asked == {"method": "Resize", "domain": "guest", "alias": "dimm0", "size_bytes": 0, "wait": 60}
    assert "'0' is not a size" in command("attach", "guest", "--size", "0", status=ExitStatus.USAGE)
    assert "is not the number of a node" in command(
        "attach", "guest", "--size", "1G", "--node", "-", status=ExitStatus.USAGE
    )


class Refusing:
    """A fake of virt-dmemd, where no domain holds memory."""

    def call_more(self, _method: str, **_parameters: Any) -> Iterator[dict[str, Any]]:
        raise DomainRefused("It does not run on memory of a pool.", hint="")

    def call(self, _method: str, **_parameters: Any) -> dict[str, Any]:
        raise DomainRefused("It holds nothing.", hint="")


@pytest.mark.parametrize(
    ("name", "why"), [("tset", "Did you mean 'test'?"), ("test", "Domain test runs on ordinary memory")]
)
def test_a_domain_that_holds_no_memory_is_told_of_as_by_show(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.setattr("virt_dmem.cli.daemon.connect", lambda *_, **__: nullcontext(Refusing()))
    assert why in command("attach", name, "--size", "1G", status=ExitStatus.FAILED)

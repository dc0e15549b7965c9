# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for the completion of shells; ``commands/test_completion`` asks a real bash."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.rig.command_line import HOSTILE
from virt_dmem.cli import completion_names as names


class Daemon:
    """A fake of virt-dmemd, with names that no shell is to see."""

    def call(self, method: str, **_: str) -> dict[str, Any]:
        found = ["good", HOSTILE, "two\nlines", "$(reboot)"]
        if method == "ListPools":
            return {"pools": [{"name": name} for name in found]}
        return {"domain": {"extents": [{"alias": name} for name in found]}}


@pytest.mark.parametrize("kind", names.KINDS)
def test_only_printable_names_are_told(kind: str) -> None:
    assert names.names(kind, Daemon(), "web") == ["good", "$(reboot)"]  # type: ignore[arg-type]


def test_each_shell_can_read_its_functions() -> None:
    found = names.functions(["a-code"], {"pool list": "NAME FREE"})
    subprocess.run(["bash", "-n"], input=found["bash"], text=True, check=True)
    assert names.function("columns", "pool list") == "_virt_dmem_columns_pool_list"
    for text in found.values():
        assert "_virt_dmem_columns_pool_list() {" in text
        assert "a-code" in text

# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool show``."""

from __future__ import annotations

import pytest

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace


@in_own_mount_namespace
def test_a_pool_is_shown_with_its_nodes_below(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    header, pool, blank, nodes, node = command("pool", "show", "small").splitlines()
    assert header.split()[3:6] == ["READY", "TARGET", "LIMIT"]
    assert pool.split()[0] == "small"
    assert blank == ""
    assert nodes.split() == ["NODE", "CAPACITY", "RESERVED", "FREE", "READY"]
    assert node.split() == ["any", "8", "MiB", "-", "-", "-"]


@in_own_mount_namespace
def test_it_says_why_nothing_is_pre_zeroed(command: Command) -> None:
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")
    with command.daemon():
        assert "\nPre-zeroed: nothing. " in command("pool", "show", "small")
        assert command.json("pool", "show", "small")["pool"]["ready_note"]
        assert command.json("pool", "show", "small")["pool"]["segments"] == [
            {"name": "small", "capacity_bytes": 8 << 20, "reserved_bytes": 0}
        ]


def test_several_segments_are_listed_as_each_shrinks_by_itself(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is a fake: huge pages are for the tests that allocate some."""
    unknown = dict.fromkeys(("ready_bytes", "ready_goal_bytes", "ready_most_bytes", "ready_policy", "pinned_bytes"))
    row = unknown | {
        "name": "p", "backend": "hugetlbfs", "page_size": 2 << 20, "mount": "/m", "state": "ready", "nodes": [],
        "on_boot": None, "ready_note": None, "elastic": None, "segments": [
            {"name": "p", "capacity_bytes": 1 << 30, "reserved_bytes": 4 << 20},
            {"name": "p+1", "capacity_bytes": 2 << 30, "reserved_bytes": 0},
        ],
    }  # fmt: skip
    monkeypatch.setattr("virt_dmem.cli.pool_rows.pool_rows", lambda *_: [row])
    *_, head, first, second, _, said = command("pool", "show", "p").splitlines()
    assert head.split() == ["SEGMENT", "CAPACITY", "RESERVED"]
    assert (first.split()[0], second.split()) == ("p", ["p+1", "2", "GiB", "0", "B"])
    assert "only while nothing of it is reserved" in said

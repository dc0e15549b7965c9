# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem pool create``, with real mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rig.command_line import Command
from tests.rig.mount_namespace import in_own_mount_namespace
from virt_dmem.errors import ExitStatus
from virt_dmem.host.mounts import mount_at
from virt_dmem.units import MIB


@in_own_mount_namespace
def test_a_pool_is_created_shown_and_destroyed_without_a_daemon(command: Command) -> None:
    made = command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]
    assert (made["capacity_bytes"], made["state"], made["reserved_bytes"]) == (8 * MIB, "ready", None)
    listed = command("pool", "list").splitlines()
    assert listed[0].split() == ["NAME", "BACKEND", "PAGES", "CAPACITY", "RESERVED", "FREE", "STATE", "ON-BOOT"]
    assert listed[1].split()[:-1] == ["small", "tmpfs", "4", "KiB", "8", "MiB", "-", "-", "ready"]
    assert command("pool", "list", "-o", "mount,name").splitlines()[1].split() == [
        str(command.directory / "run/pools/small"),
        "small",
    ]
    assert "any" in command("pool", "show", "small")
    assert command.json("savings")["pools"][0]["net_bytes"] == 0
    assert "small" in command("savings")
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs", status=ExitStatus.FAILED)
    command("pool", "destroy", "small")
    assert command.json("pool", "list") == {"pools": []}
    assert "no pool 'small'" in command("pool", "destroy", "small", status=ExitStatus.FAILED)
    assert "no pool 'small'" in command("pool", "show", "small", status=ExitStatus.FAILED)


@in_own_mount_namespace
def test_a_pool_of_tmpfs_asks_for_huge_pages_and_keeps_them_when_it_is_resized(command: Command) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists():
        pytest.skip("needs a kernel with huge pages for tmpfs")
    mount = Path(command.json("pool", "create", "small", "--size", "8M", "--backend", "tmpfs")["pool"]["mount"])
    for size in ("8192k", "16384k"):
        found = mount_at(mount)
        assert found is not None
        assert {"huge=within_size", f"size={size}"} <= set(found.options.split(","))
        command("pool", "resize", "small", "--size", "16M")
    command("pool", "destroy", "small")


@in_own_mount_namespace
def test_a_pool_that_is_to_come_back_at_boot_has_its_unit_enabled(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemctl is a fake that notes its arguments."""
    fake = command.directory / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {command.directory}/asked\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.directory}:{os.environ['PATH']}")
    command("pool", "create", "small", "--size", "8M", "--backend", "tmpfs", "--on-boot")
    assert (command.directory / "asked").read_text() == "enable virt-dmem-pool@small.service\n"
    fake.write_text("#!/bin/sh\necho No. >&2; exit 1\n")
    said = command("pool", "create", "other", "--size", "8M", "--backend", "tmpfs", "--on-boot", status=1)
    assert "Pool other is there, and will not be restored at boot: No." in said
    assert [pool["name"] for pool in command.json("pool", "list")["pools"]] == ["other", "small"]

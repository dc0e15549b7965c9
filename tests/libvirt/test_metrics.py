# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the metrics of a running daemon: over the control socket, and in the node exporter's file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.rig.command import virt_dmem, virt_dmem_json
from tests.rig.daemon import Daemon
from tests.rig.domains import domain_xml
from tests.rig.private_libvirt import PrivateLibvirt
from tests.rig.processes import RigError, tail, wait_for

MIB = 1 << 20
REQUEST = "<dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0' pool='small'/>"


def value(text: str, name: str, **labels: str) -> float:
    """Return the sample with this name and these labels; 0 if there is none yet."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = [item for item in samples if item.name == name and labels.items() <= item.labels.items()]
    assert len(found) <= 1
    return float(found[0].value) if found else 0


def test_a_start_a_refusal_and_an_apply_are_counted(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmpfs_pool: str
) -> None:
    wait_for("the daemon to follow libvirt", lambda: "connected to libvirt" in tail(daemon.log))
    libvirtd.define(domain_xml("fits", metadata=REQUEST))
    wait_for("it to be applied", lambda: "fits: applied" in tail(daemon.log))
    libvirtd.define(domain_xml("large", memory="512MiB"))
    virt_dmem("apply", "large", "--pool", tmpfs_pool)
    libvirtd.virsh("start", "--paused", "fits")
    with pytest.raises(RigError, match="512 MiB"):
        libvirtd.virsh("start", "--paused", "large")
    text = virt_dmem("metrics")
    for operation in ("prepare", "start", "started"):
        assert value(text, "virt_dmem_hook_seconds_count", operation=operation) == (
            2 if operation == "prepare" else 1
        )
    assert 0 < value(text, "virt_dmem_hook_seconds_sum", operation="started") < 5
    assert value(text, "virt_dmem_hook_refused_total", operation="prepare", code="not-enough-memory") == 1
    assert value(text, "virt_dmem_apply_total", outcome="applied") == 1
    assert value(text, "virt_dmem_domains", phase="running") == 1
    (shown,) = virt_dmem_json("pool", "list")["pools"]
    nodes = ["any" if node["node"] < 0 else str(node["node"]) for node in shown["nodes"]]
    for what, mib in (("capacity", 256), ("reserved", 64), ("free", 192)):
        by_node = [value(text, f"virt_dmem_pool_{what}_bytes", pool=tmpfs_pool, node=node) for node in nodes]
        assert sum(by_node) == mib * MIB
    assert value(text, "virt_dmem_libvirt_connected") == 1


@pytest.mark.needs_hugepages
def test_what_a_pool_saves_is_what_savings_says(
    libvirtd: PrivateLibvirt, daemon: Daemon, hugetlbfs_pool: str
) -> None:
    text = virt_dmem("metrics")
    left = value(text, "virt_dmem_struct_page_left_bytes", pool=hugetlbfs_pool)
    saved = value(text, "virt_dmem_struct_page_saved_bytes", pool=hugetlbfs_pool)
    assert saved + left == 128 * MIB / 64
    (shown,) = virt_dmem_json("savings")["pools"]
    assert (saved, left) == (shown["net_bytes"], shown["metadata_left_bytes"])


def test_the_textfile_is_kept_up_to_date_and_a_missing_directory_is_logged_once(
    libvirtd: PrivateLibvirt, daemon: Daemon, tmp_path: Path
) -> None:
    directory = tmp_path / "exporter"
    file = directory / "virt_dmem.prom"
    daemon.config = f'[metrics]\ntextfile = "{file}"\ninterval_seconds = 1\n'
    daemon.restart()
    wait_for("the complaint", lambda: "cannot be written" in tail(daemon.log))
    directory.mkdir()
    wait_for("the file", file.exists)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    first = value(file.read_text(), "virt_dmem_exposition_time_seconds")
    wait_for(
        "it to be written again",
        lambda: value(file.read_text(), "virt_dmem_exposition_time_seconds") > first,
    )
    assert daemon.log.read_text().count("cannot be written") == 1

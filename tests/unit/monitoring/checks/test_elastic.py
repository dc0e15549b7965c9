# SPDX-License-Identifier: GPL-2.0-or-later
"""``check`` tells what elastic pools lack."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.rig.checked_machine import bare_machine
from tests.rig.elastic_records import elastic_record
from tests.rig.fake_tree import put
from tests.rig.pool_records import huge_record, write_record
from virt_dmem.monitoring.checks import elastic
from virt_dmem.monitoring.checks.base import Machine
from virt_dmem.pools.backends.checks import Status
from virt_dmem.units import GIB


def machine_with(tmp_path: Path, *, elastic_pool: bool = True) -> Machine:
    machine = bare_machine(tmp_path)
    config = machine.own_config()
    config.pool_records_dir.mkdir(parents=True)
    write_record(config, elastic_record(config) if elastic_pool else huge_record(config))
    return machine


def test_a_host_without_elastic_pools_needs_nothing(tmp_path: Path) -> None:
    assert elastic.elastic_pools(bare_machine(tmp_path / "none")).status is Status.PASS
    assert elastic.elastic_pools(machine_with(tmp_path / "fixed", elastic_pool=False)).status is Status.PASS


def test_a_service_that_does_not_listen_is_a_failure(tmp_path: Path) -> None:
    result = elastic.elastic_pools(machine_with(tmp_path))
    assert result.status is Status.FAIL
    assert "elastic pool p takes no memory" in result.message
    assert "virt-dmem-pages.socket" in result.hint


def test_a_kernel_that_loses_pages_is_a_failure(tmp_path: Path) -> None:
    machine = machine_with(tmp_path)
    put(machine.root / "proc/sys/kernel/osrelease", "6.12.117\n")
    result = elastic.elastic_pools(machine)
    assert result.status is Status.FAIL
    assert "6.12.117 loses huge pages" in result.message


def test_one_that_listens_passes_and_a_kernel_without_pressure_is_a_warning(tmp_path: Path) -> None:
    machine = machine_with(tmp_path)
    path = machine.path(machine.config.pages_socket_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert elastic.elastic_pools(machine).status is Status.WARN
        put(machine.root / "proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
        assert elastic.elastic_pools(machine).status is Status.PASS


def test_pages_of_1g_without_memory_kept_for_them_are_a_warning(tmp_path: Path) -> None:
    machine = machine_with(tmp_path)
    config = machine.own_config()
    record = elastic_record(config)
    record.page_size = GIB
    write_record(config, record)
    path = machine.path(machine.config.pages_socket_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    put(machine.root / "proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    meminfo = machine.root / "proc/meminfo"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        result = elastic.elastic_pools(machine)
        assert result.status is Status.WARN
        assert "no memory for pages of 1 GiB: elastic pool p" in result.message
        meminfo.write_text(meminfo.read_text() + "CmaTotal:       2097152 kB\n")
        assert elastic.elastic_pools(machine).status is Status.PASS

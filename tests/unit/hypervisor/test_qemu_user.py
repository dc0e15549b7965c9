# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's user is that of the DAC label, where it exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from virt_dmem.config.schema import Config, LibvirtConfig
from virt_dmem.domain_xml.reader import read_domain
from virt_dmem.errors import ExtentError
from virt_dmem.hypervisor.qemu_user import placed, placed_running

NS = "https://virt-dmem.dev/xmlns/domain/1.0"

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"

DIGITS = "9" * 5000


def domain(body: str = "", *, memory: str = "1048576", name: str = "a", attributes: str = "") -> bytes:
    return (
        f"<domain type='kvm' id='1'{attributes}><name>{name}</name><uuid>{UUID}</uuid>"
        f"<metadata><dmem:memory xmlns:dmem='{NS}'/></metadata><memory>{memory}</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>{body}</domain>"
    ).encode()


@pytest.mark.parametrize("label", ["+" + DIGITS, "+4294967295", "+-1", "+", "+٣", "n\0"])
def test_a_label_that_names_no_user_is_refused(label: str, tmp_path: Path) -> None:
    memory = replace(read_domain(domain()), dac_user=label, dac_group=label, domain_id=7)
    (tmp_path / "qemu.conf").write_text(f'memory_backing_dir = "{tmp_path}"\n')
    config = Config(libvirt=LibvirtConfig(config_file=str(tmp_path / "qemu.conf")))
    directory = tmp_path / f"7-{memory.name[:20]}"
    directory.mkdir()
    with pytest.raises(ExtentError, match="DAC label"):
        placed(config, memory)
    whom = placed(config, replace(memory, dac_user="+4294967294", dac_group="+0"))
    assert whom == (directory, (2**32 - 2, 0))


def test_a_memory_backing_dir_that_was_changed_since_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = replace(read_domain(domain()), domain_id=7)
    config = Config(libvirt=LibvirtConfig(config_file=str(tmp_path / "qemu.conf")))
    (tmp_path / "qemu.conf").write_text(f'memory_backing_dir = "{tmp_path}/new"\n')
    monkeypatch.setattr(
        "virt_dmem.hypervisor.qemu_user.memory_directory", lambda _: tmp_path / "old/libvirt/qemu/7-a"
    )
    with pytest.raises(ExtentError, match=f"memory files in {tmp_path}/old/.*qemu.conf is {tmp_path}/new now"):
        placed_running(config, memory, 1)
    for known in (None, tmp_path / "new/7-a"):
        monkeypatch.setattr("virt_dmem.hypervisor.qemu_user.memory_directory", lambda _, known=known: known)
        with pytest.raises(ExtentError, match=r"no directory 7-\*"):
            placed_running(config, memory, 1)

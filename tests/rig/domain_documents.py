# SPDX-License-Identifier: GPL-2.0-or-later
"""Small domain XMLs for tests that read them; ``domains`` has those that libvirt starts."""

from __future__ import annotations

from virt_dmem.domain_xml.elements import NAMESPACE

__all__ = ["APPLIED", "CELLS", "UUID", "device", "domain", "metadata"]

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
CELLS = "<cell id='0' memory='512' unit='MiB'/><cell id='1' memory='1' unit='GiB'/>"
APPLIED = "<memoryBacking><source type='file'/><access mode='shared'/><allocation mode='ondemand'/></memoryBacking>"


def domain(
    inside: str = "",
    *,
    memory: str = "<memory>1048576</memory>",
    machine: str = "arch='x86_64' machine='pc-q35-7.2'",
    head: str = "type='kvm'",
    cells: str = "",
    vcpu: str = "<vcpu>2</vcpu>",
) -> bytes:
    """Return the XML of the domain ``vm``, with ``inside`` at its end."""
    numa = f"<cpu><numa>{cells}</numa></cpu>" if cells else ""
    return (
        f"<domain {head}><name>vm</name><uuid>{UUID}</uuid>{memory}{vcpu}<os><type {machine}>hvm</type></os>"
        f"{numa}{inside}</domain>"
    ).encode()


def metadata(inside: str = "") -> str:
    """Return the metadata with a request for pool memory, with ``inside`` as its attributes."""
    return f"<metadata><dmem:memory xmlns:dmem='{NAMESPACE}'{inside}/></metadata>"


def device(model: str, inside: str = "", *, size: int = 128, node: int = 0, source: str = "") -> str:
    """Return a memory device of ``size`` MiB in the guest cell ``node``."""
    target = f"<target><size unit='MiB'>{size}</size><node>{node}</node></target>"
    return f"<memory model='{model}'>{source}{target}{inside}</memory>"

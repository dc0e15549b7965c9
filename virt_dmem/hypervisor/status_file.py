# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what libvirt recorded of a domain that arrives by migration, without asking it: it holds the domain's lock.

libvirt keeps the status of each running domain in a file that only root can read, with the job in progress and its
flags (``qemuDomainObjPrivateXMLFormatJob``). It is written before the hook ``started`` is called. Its format is
libvirt's own: whatever is not as expected is not known.
"""

from __future__ import annotations

from pathlib import Path

from virt_dmem.domain_xml.parse import MAX_XML_BYTES, XmlRefused, parse_xml

__all__ = ["arrives_by_postcopy"]

_POSTCOPY = 1 << 15
"""VIR_MIGRATE_POSTCOPY."""


def arrives_by_postcopy(run_dir: Path, name: str, uuid: str) -> bool | None:
    """Return whether post-copy is allowed for the migration by which a domain arrives; ``None``: not known.

    It is not where QEMU waits for a guest that is restored from a file.

    :param run_dir: The directory of libvirt's status files.
    """
    try:
        with (run_dir / f"{name}.xml").open("rb") as file:
            root = parse_xml(file.read(MAX_XML_BYTES + 1)).getroot()
    except (OSError, XmlRefused):
        return None
    job = root.find("job")
    if root.tag != "domstatus" or root.findtext("domain/uuid") != uuid or job is None:
        return None
    if job.get("async") != "migration in":
        return False if job.get("async") == "start" else None
    try:
        return bool(int(job.get("flags", ""), 16) & _POSTCOPY)
    except ValueError:
        return None

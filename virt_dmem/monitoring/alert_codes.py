# SPDX-License-Identifier: GPL-2.0-or-later
"""The stable codes of alerts, and what each means; those of errors are in ``errors.py``."""

from __future__ import annotations

__all__ = [
    "GUEST_OUTSIDE_POOL",
    "MEMORY_OUTSIDE_POOL",
    "DEVICE_ON_RAW_MEMORY",
    "EXTENT_QUARANTINED",
    "EXTENT_ENLARGED",
    "MEMORY_PINNED",
    "MEMORY_FAILED",
    "POOL_SHORT",
    "LEDGER_DAMAGED",
    "RECONCILE_FAILED",
    "APPLY_FIGHT",
    "APPLY_PAUSED",
    "EXPLANATIONS",
]

GUEST_OUTSIDE_POOL = "guest-outside-pool"
MEMORY_OUTSIDE_POOL = "memory-outside-pool"
DEVICE_ON_RAW_MEMORY = "device-on-raw-memory"
EXTENT_QUARANTINED = "extent-quarantined"
EXTENT_ENLARGED = "extent-enlarged"
MEMORY_PINNED = "memory-pinned"
MEMORY_FAILED = "memory-failed"
POOL_SHORT = "pool-short-of-reservations"
LEDGER_DAMAGED = "ledger-damaged"
RECONCILE_FAILED = "reconcile-failed"
APPLY_FIGHT = "apply-fight"
APPLY_PAUSED = "apply-paused"

EXPLANATIONS = {
    GUEST_OUTSIDE_POOL: (
        "A domain that asks for pool memory runs, and virt-dmemd did not see it start, so its memory is wherever "
        "libvirt put it, perhaps in a file on a disk. Most often libvirtd was not told that there is a hook."
    ),
    MEMORY_OUTSIDE_POOL: (
        "A memory device was attached to a domain of ours past virt-dmem. It is ordinary memory of the host, or a "
        "file on a disk; nobody planned for it, and its struct pages are not saved."
    ),
    DEVICE_ON_RAW_MEMORY: (
        "A domain whose memory has no struct pages (dmemfs) was given a device, past virt-dmem, that cannot work "
        "on it. By VFIO it is worse than that: such a device keeps no hold on the memory that it writes to, and "
        "could go on when that is no longer the domain's. dmemfs gives a file's memory to nobody else as long as "
        "the file lives, but a process that was handed the VFIO container can outlive the domain."
    ),
    EXTENT_QUARANTINED: (
        "A domain is gone, and some process still maps its memory: a QEMU that does not die, or a peer such as "
        "vhost-user. The memory counts as used and is freed by itself as soon as nobody maps it."
    ),
    EXTENT_ENLARGED: (
        "A process that has the memory file of a domain open, its QEMU or who QEMU passed it to, made it larger "
        "than the domain reserved, or took memory beyond its end. It was cut to its size. QEMU never does that by "
        "itself, so look what runs as QEMU's user. The alert ends with the domain."
    ),
    MEMORY_PINNED: (
        "Guests gave memory back, and some of it is pinned by a process or a device: io_uring, direct I/O or RDMA "
        "that has not ended. The kernel keeps these pages until the pin is gone, and the pool is so much smaller "
        "for so long. Nobody else gets them, and they are free by themselves afterwards. 'virt-dmem pool show' "
        "says how much it is."
    ),
    MEMORY_FAILED: (
        "QEMU reported that memory of a domain failed in hardware. The domain goes on if the failure hit nothing "
        "that it needs. QEMU does not say where it was, so all memory of the domain is read and zeroed before any "
        "of it is given to another; what cannot be read stays quarantined."
    ),
    POOL_SHORT: (
        "A pool has less memory than domains hold of it: it was unmounted or made smaller past virt-dmem. Guests "
        "that run keep their memory; nothing is given from the pool until it is whole again."
    ),
    LEDGER_DAMAGED: (
        "The ledger could not be read when virt-dmemd started, so it was set aside and a new one was begun. "
        "Running domains were found again by what their QEMUs map. Which of them have memory that failed was in "
        "the old one only; delete it when you have looked at it, and the alert is over."
    ),
    RECONCILE_FAILED: (
        "One item could not be reconciled: a file, a domain, a row of the ledger or the record of a pool. All "
        "others were, and this one is tried again every few seconds."
    ),
    APPLY_FIGHT: (
        "Another tool keeps taking back what virt-dmemd writes into the XML of a domain, so virt-dmemd left it "
        "alone. The domain does not start until it is applied."
    ),
    APPLY_PAUSED: (
        "'virt-dmem pause-apply' is in force: domains that are defined with our metadata are not rewritten, and "
        "do not start until they are. 'virt-dmem apply' works."
    ),
}
"""Every code, and what it means."""

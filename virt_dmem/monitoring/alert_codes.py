# SPDX-License-Identifier: GPL-2.0-or-later
"""Define the stable codes of alerts, with an explanation of each; those of errors are in ``errors``."""

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
    "HUGE_PAGES_LOWERED",
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
HUGE_PAGES_LOWERED = "huge-pages-lowered"
LEDGER_DAMAGED = "ledger-damaged"
RECONCILE_FAILED = "reconcile-failed"
APPLY_FIGHT = "apply-fight"
APPLY_PAUSED = "apply-paused"

EXPLANATIONS = {
    GUEST_OUTSIDE_POOL: (
        "A domain that asks for pool memory is running, and virt-dmemd did not see it start, so its memory is "
        "wherever libvirt put it, perhaps in a file on a disk. The usual cause is that libvirtd does not know of"
        " the hook."
    ),
    MEMORY_OUTSIDE_POOL: (
        "A memory device was attached to a domain with pool memory, bypassing virt-dmem. It is ordinary memory "
        "of the host, or a file on a disk; it was not accounted for, and its struct pages are not saved."
    ),
    DEVICE_ON_RAW_MEMORY: (
        "A device was attached, bypassing virt-dmem, to a domain whose memory has no struct pages (dmemfs), on "
        "which it cannot work. With VFIO it is worse: such a device does not pin the memory that it writes to, "
        "and could still write when that memory no longer belongs to the domain. dmemfs reuses a file's memory "
        "only after the file is gone, but a process to which the VFIO container was passed can outlive the "
        "domain."
    ),
    EXTENT_QUARANTINED: (
        "A domain has ended, but a process still maps its memory: a QEMU that does not exit, or a peer such as "
        "vhost-user. The memory counts as used, and is freed automatically once no process maps it."
    ),
    EXTENT_ENLARGED: (
        "A process that has the memory file of a domain open, its QEMU or one that QEMU passed it to, made it "
        "larger than the domain reserved, or allocated memory beyond its end. The file was truncated to its "
        "size. QEMU never does that by itself, so check which processes run as QEMU's user. The alert ends with "
        "the domain."
    ),
    MEMORY_PINNED: (
        "Guests gave memory back, and some of it is pinned by a process or a device: io_uring, direct I/O or "
        "RDMA that has not ended. The kernel keeps these pages until they are unpinned, and the pool is smaller "
        "by them until then. They are not given to other domains, and are freed automatically afterwards. "
        "'virt-dmem pool show' prints their size."
    ),
    MEMORY_FAILED: (
        "QEMU reported a hardware failure of a domain's memory. The domain keeps running if it does not need the"
        " memory that failed. QEMU does not report the address, so all memory of the domain is read and zeroed "
        "before any of it is given to another domain; what cannot be read stays quarantined."
    ),
    POOL_SHORT: (
        "A pool has less memory than domains hold of it: it was unmounted or shrunk, bypassing virt-dmem. "
        "Running guests keep their memory; nothing is allocated from the pool until it is complete again."
    ),
    HUGE_PAGES_LOWERED: (
        "A node has fewer huge pages than pools took there: somebody lowered vm.nr_hugepages (a file in sysctl.d, "
        "tuned, a hook of another tool). Those in use are surplus pages now, which the kernel takes as soon as "
        "they are freed, and a running guest that gave such a page back, as by free-page reporting, is killed "
        "when it needs it again. virt-dmemd raises the number again at once: to the pages that are in use, and "
        "those that pools lost. After 5 times within 10 minutes it leaves the number alone until it is right "
        "again. 'virt-dmem pool mount NAME' takes the pages again."
    ),
    LEDGER_DAMAGED: (
        "The ledger could not be read when virt-dmemd started, so it was set aside and a new one was created. "
        "Running domains were rediscovered from the files that their QEMUs map. Records of memory failures were "
        "in the old ledger only; the alert ends when you delete that file."
    ),
    RECONCILE_FAILED: (
        "One item could not be reconciled: a file, a domain, a row of the ledger or the record of a pool. All "
        "others were, and this one is retried every few seconds."
    ),
    APPLY_FIGHT: (
        "Another tool keeps reverting what virt-dmemd writes into the XML of a domain, so virt-dmemd stopped "
        "rewriting it. The domain does not start until it is applied."
    ),
    APPLY_PAUSED: (
        "'virt-dmem pause-apply' is in force: domains that are defined with virt-dmem's metadata are not "
        "rewritten, and do not start until they are. 'virt-dmem apply' works."
    ),
}
"""Explanations by code."""

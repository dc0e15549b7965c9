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
    "HVO_SWITCHED",
    "THP_OFF",
    "POOL_MOUNT_CHANGED",
    "HOST_MEMORY_OFFLINE",
    "INSTALLATION_CHANGED",
    "CONTROL_SOCKET_GONE",
    "PARKED_GUEST_LOST",
    "LIBVIRT_SETTINGS_CHANGED",
    "LIBVIRT_UNREACHABLE",
    "LEDGER_DAMAGED",
    "LEDGER_LOST",
    "RECONCILE_FAILED",
    "APPLY_FIGHT",
    "REQUEST_LOST",
    "REQUEST_UNFULFILLED",
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
HVO_SWITCHED = "hvo-switched-off"
THP_OFF = "thp-switched-off"
POOL_MOUNT_CHANGED = "pool-mount-changed"
HOST_MEMORY_OFFLINE = "host-memory-offline"
INSTALLATION_CHANGED = "installation-changed"
CONTROL_SOCKET_GONE = "control-socket-gone"
PARKED_GUEST_LOST = "parked-guest-lost"
LIBVIRT_SETTINGS_CHANGED = "libvirt-settings-changed"
LIBVIRT_UNREACHABLE = "libvirt-unreachable"
LEDGER_DAMAGED = "ledger-damaged"
LEDGER_LOST = "ledger-lost"
RECONCILE_FAILED = "reconcile-failed"
APPLY_FIGHT = "apply-fight"
REQUEST_LOST = "request-lost"
REQUEST_UNFULFILLED = "request-unfulfilled"
APPLY_PAUSED = "apply-paused"

EXPLANATIONS = {
    GUEST_OUTSIDE_POOL: (
        "A domain that asks for pool memory, or that a rule of [[adopt]] takes, is running, and virt-dmemd did "
        "not see it start, so its memory is wherever libvirt put it, perhaps in a file on a disk. The usual cause "
        "is that libvirtd does not know of the hook, or that the domain was started before there was that rule."
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
    HVO_SWITCHED: (
        "HVO (vm.hugetlb_optimize_vmemmap) was on when pools took their huge pages, and somebody switched it off. "
        "Pages that pools have keep their saving; those that are allocated from now on save nothing. virt-dmemd "
        "switches it on again, at most 5 times within 10 minutes. A pool created with --no-hvo does not ask for "
        "it."
    ),
    THP_OFF: (
        "Transparent huge pages are switched off (/sys/kernel/mm/transparent_hugepage/enabled is 'never', as some "
        "guides and profiles of tuned set it), and Linux then maps dmemfs's pages of 2 MiB and 1 GiB by 4 KiB. "
        "Guests run, and are slower; those that run already keep the mappings that they have. virt-dmemd does not "
        "switch them on: others on the host may need them off. 'madvise' is enough."
    ),
    POOL_MOUNT_CHANGED: (
        "The mount of a pool is not as virt-dmem made it: it is gone, covered by another mount, read-only, "
        "smaller, lacks options, has no record any more, or is below a directory that QEMU's user may not pass. "
        "Running guests keep the memory that they map; no domain gets memory at a mount point that is not the "
        "pool's. virt-dmemd cannot mount; it restores only owner and mode of the root directory, and opens its own "
        "directories above."
    ),
    HOST_MEMORY_OFFLINE: (
        "A NUMA node of a pool has no memory any more, or blocks of the host's memory went offline: somebody "
        "switched them off, or the firmware did. Free huge pages in a block that goes offline are lost; "
        "virt-dmemd takes others of the same node instead, if the kernel has some."
    ),
    INSTALLATION_CHANGED: (
        "The hook in /etc/libvirt/hooks, the program it runs, the AppArmor rule or a unit file of systemd is "
        "gone, or differs from what was installed. Without the hook domains start without pool memory, without "
        "its program or the rule they do not start."
    ),
    CONTROL_SOCKET_GONE: (
        "The file of a socket of virt-dmemd or virt-dmem-pages was removed, or another one put in its place: who "
        "connects does not reach the service, though it runs. While it is that of virt-dmemd no guest with pool "
        "memory starts; virt-dmemd replaces a file of its that is gone at once."
    ),
    PARKED_GUEST_LOST: (
        "A guest that is parked cannot go on: somebody removed its state file, or its memory went, with the mount "
        "of its pool. What is left of its memory is kept, and counts as used, until its state file is back and "
        "it is unparked, or it is given up."
    ),
    LIBVIRT_SETTINGS_CHANGED: (
        "A setting in qemu.conf that pools depend on, such as memory_backing_dir, was changed and libvirtd has "
        "not been restarted since: virt-dmemd reads the file, libvirtd uses what it read when it started. Or "
        "libvirtd was restarted with other settings while domains with pool memory run: they keep running with "
        "the earlier ones."
    ),
    LIBVIRT_UNREACHABLE: (
        "Domains hold pool memory, and virt-dmemd has had no connection to libvirt for a minute. Running guests go"
        " on. While libvirtd is down none starts or stops, and nothing is applied."
    ),
    LEDGER_DAMAGED: (
        "The ledger could not be read when virt-dmemd started, so it was set aside and a new one was created. "
        "Running domains were rediscovered from the files that their QEMUs map. Records of memory failures were "
        "in the old ledger only; the alert ends when you delete that file."
    ),
    LEDGER_LOST: (
        "The file of the ledger was removed under virt-dmemd, or another one put in its place. virt-dmemd goes on "
        "with the one that it has open, and writes it again to its place if nothing is there. Another file that "
        "is there is read when virt-dmemd is restarted."
    ),
    RECONCILE_FAILED: (
        "One item could not be reconciled: a file, a domain, a row of the ledger or the record of a pool. All "
        "others were, and this one is retried every few seconds."
    ),
    APPLY_FIGHT: (
        "Another tool keeps reverting what virt-dmemd writes into the XML of a domain, so virt-dmemd stopped "
        "rewriting it. The domain does not start until it is applied."
    ),
    REQUEST_LOST: (
        "A domain that was rewritten for memory from a pool was redefined without virt-dmem's metadata, or they "
        "were removed. If its memory would be a file in libvirt's memory_backing_dir it does not start. What was "
        "removed is remembered: 'virt-dmem apply' puts it back, and 'virt-dmem unapply' undoes the rewrite."
    ),
    REQUEST_UNFULFILLED: (
        "A domain is defined with a request for pool memory, or a rule of [[adopt]] takes it, and that cannot be "
        "fulfilled as it is: the pool does not exist or is not set up, none can be chosen, the domain cannot use "
        "its memory, or does not fit it even if nobody else has memory of it. The domain does not start; one whose "
        "request is misspelt starts on ordinary memory. It is tried again when the domain or a pool changes, and "
        "from time to time."
    ),
    APPLY_PAUSED: (
        "'virt-dmem pause-apply' is in force: domains that are defined with virt-dmem's metadata are not "
        "rewritten, and do not start until they are. 'virt-dmem apply' works."
    ),
}
"""Explanations by code."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``--help`` and the manual pages say of each command, after its first sentence, which is in ``parser``.

Paragraphs of plain text. The pages below docs/man are made from here by ``python docs/generate.py``.
"""

from __future__ import annotations

__all__ = ["ABOUT"]

ABOUT = {
    "check": """\
Kernel, pools, daemon, hook, libvirt, AppArmor: a line for each begins with
PASS, WARN (it works, with less than could be had, or we cannot tell) or FAIL
(domains with pool memory will not start as they should); below it stands what
to do. The exit status is 3 if something failed.""",
    "plan-host": """\
For each kind of memory: the struct pages that an ordinary host keeps for it,
those that are left, what is saved (net), what to add to the kernel command
line, and how to make the pool. One is recommended, with the reason. It may be
asked for more memory than this host has. Run by root it knows where the
memory lies and writes the ranges for dmemfs by their addresses: whole sections
of 128 MiB, from the upper end of each node, so that no struct page is left.

Nothing is changed but by --write-grub, which writes
/etc/default/grub.d/virt-dmem.cfg, and --remove-grub, which takes it away. Both
are in force after update-grub (or grub2-mkconfig) and a reboot.""",
    "savings": """\
Gross is what an ordinary host keeps in struct pages for so much memory, left
is what is still there, net is what is gone. Where the kernel cannot count it
(before Linux 6.11) it is an estimate, and says so.""",
    "pool create": """\
The pool is made whole or not at all. Without --node it is spread evenly over
the nodes that have memory; with it, --size may be left out. Memory is easiest
to have soon after boot. Needs root.

A dmemfs pool is made of memory that was reserved at boot ('virt-dmem
plan-host'), found on the kernel's command line and in its memory map, or named
by --region. Without a size it has all of it that has no pool yet; where the
command line has a dmem= parameter, as the original dmemfs reads it, it has what
that says.""",
    "pool resize": """\
What domains hold is never touched. Needs root.""",
    "pool destroy": """\
Refused while domains hold memory of it. What the kernel does not take back is
reported, and the command may be repeated. Needs root.""",
    "pool list": """\
Where virt-dmemd does not answer, the pools are read from their records (by
root), and what is reserved is shown as unknown.""",
    "pool mount": """\
What virt-dmem-pool@NAME.service does. A pool that was never finished, or half
destroyed, is undone. Needs root.""",
    "pool drain": """\
Domains that run keep what they hold, others are refused. It holds over
restarts of virt-dmemd. Needs root.""",
    "apply": """\
From the domain's next start on. What is replaced is kept in the domain's
metadata. A domain that is applied already is left as it is. What --print-xml
prints is for reading: with its masked passwords it must not be defined.

With --hotplug-max it gets slots, a maximum and, if it has none, a guest NUMA
cell, so that 'attach' can give it memory while it runs.

QEMU gets a second monitor, which tells virt-dmemd of memory failures and of
what became of an unplug; libvirt then calls the domain tainted (custom-argv).
--no-monitor, remembered until unapply, or [libvirt] monitor = false do without.""",
    "unapply": """\
It has then the XML that it had before apply. Its request for pool memory goes
as well, even if it was there before: otherwise virt-dmemd would apply it again.""",
    "rewrite": """\
It asks neither virt-dmemd nor libvirt. Where it can read the pool's record, it
refuses what cannot work on that pool; else it says what it could not judge.
Passwords are kept: feed it what 'virsh dumpxml --inactive --security-info'
prints.

A domain that moves to a host without virt-dmem goes by 'virsh migrate --xml
FILE --persistent-xml FILE': the first is what 'rewrite --undo --migratable'
makes of 'virsh dumpxml --migratable --security-info', the second what 'rewrite
--undo' makes of 'virsh dumpxml --inactive --security-info'. libvirt does not
let the kind of its memory change on the way: until its next start it is a file
in the other host's memory_backing_dir, which should be a tmpfs there.""",
    "list": """\
It asks virt-dmemd alone. With --applied it asks libvirt, and waits while
libvirt waits for a domain that is being started.""",
    "show": """\
Extent by extent: which pool, how much, on which nodes. Where the domain has a
monitor for us, also what QEMU says of each memory backend.""",
    "reconcile": """\
What differs is mended. virt-dmemd does so by itself when it starts and
whenever libvirt appears.""",
    "attach": """\
All of it is reserved, placed and touched before QEMU hears of it, so the guest
does not stand still; then the guest has to bring it into use, which most do by
themselves. The domain must have been prepared by 'apply --hotplug-max' before
it started. Ctrl-C undoes it, or lets it come to its end once libvirt was asked.
virtio-mem is attached whole, and may be resized. Needs root.""",
    "detach": """\
A guest may refuse, or not answer: the memory then stays charged, pending, and
is free as soon as the guest lets go, however long that takes. A device that is
in the domain's persistent XML goes from there at once. Needs root.""",
    "resize": """\
To plug more, all of the device is charged and touched first. What the guest
unplugs is the pool's again when it has unplugged all that was asked, unless the
device lies on several nodes. Needs root.""",
    "alerts": """\
What no command has failed to tell: a domain of ours that runs outside of any
pool, memory or a device attached past us, an extent whose domain is gone or
that somebody enlarged, memory that is pinned or failed, a pool smaller than its
reservations, a damaged ledger, what could not be reconciled, a fight over a
domain's XML, automatic apply that is paused. What to do stands below each.""",
    "pause-apply": """\
Over restarts of virt-dmemd, for so long or until --resume, which also applies
what was defined meanwhile. apply works all the time. Needs root.""",
    "report": """\
Into a new file that only root may read. Names and UUIDs of domains are in it;
guest memory and secrets are not. Needs root.""",
    "config show": """\
As TOML that can be read again. virt-dmem.toml(5) describes the keys.""",
    "completion": """\
For bash, write it to /usr/share/bash-completion/completions/virt-dmem, or read
it with 'eval "$(virt-dmem completion bash)"'; for zsh, write it to _virt-dmem
in a directory of $fpath. 'make install' has done so.""",
    "explain": """\
Every failure has such a code: --json prints it, and so does the hook.""",
}
"""By command, such as ``pool create``."""

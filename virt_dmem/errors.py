# SPDX-License-Identifier: GPL-2.0-or-later
"""Every failure a user can meet, in one tree.

::

    DmemError                    failed                1
     ├── UsageError              usage                 2
     ├── ConfigError             config                1
     ├── PermissionRefused       permission            1
     ├── DaemonUnreachable       daemon-unreachable    4
     ├── HypervisorError         hypervisor            1
     ├── DomainRefused           domain-refused        1
     │    ├── DomainXmlInvalid   domain-xml-invalid    1
     │    └── NotRewritten       not-rewritten         1
     ├── NotEnoughMemory         not-enough-memory     5
     ├── PoolError               pool                  1
     │    ├── PoolNotFound       pool-not-found        1
     │    ├── PoolExists         pool-exists           1
     │    ├── PoolBusy           pool-busy             1
     │    ├── PoolDraining       pool-draining         1
     │    └── PoolShort          pool-short            5
     ├── ExtentError             extent                1
     │    ├── PrefaultFailed     prefault              1
     │    ├── NotPermitted       not-permitted         1
     │    └── NotMapped          not-mapped            1
     ├── Delayed                 delayed               1
     └── LedgerError             ledger                1

The second column is the stable code (``virt-dmem explain CODE``), the third the exit status. A message is
one sentence with the numbers; the hint is one sentence of what to do.
"""

from __future__ import annotations

import enum

from virt_dmem.text import clipped

TYPE_CHECKING = False  # every command imports this, and typing takes 2 ms
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = [
    "DmemError",
    "ExitStatus",
    "UsageError",
    "ConfigError",
    "PermissionRefused",
    "DaemonUnreachable",
    "HypervisorError",
    "DomainRefused",
    "DomainXmlInvalid",
    "NotRewritten",
    "NotEnoughMemory",
    "PoolError",
    "PoolNotFound",
    "PoolExists",
    "PoolBusy",
    "PoolDraining",
    "PoolShort",
    "ExtentError",
    "PrefaultFailed",
    "NotPermitted",
    "NotMapped",
    "Delayed",
    "LedgerError",
    "error_from_code",
    "explain",
]


class ExitStatus(enum.IntEnum):
    """Exit statuses of the ``virt-dmem`` command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CHECK_FAILED = 3
    DAEMON_UNREACHABLE = 4
    NOT_ENOUGH_MEMORY = 5


MOST_TEXT = 4000
"""Characters of a message, and of a hint: what it repeats of a document may be megabytes, and goes to logs."""


class DmemError(Exception):
    """Something a user has to know about: what happened, and what to do about it."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILED
    explanation: ClassVar[str] = "Something failed that has no more precise code; the message says what."

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = clipped(message, MOST_TEXT)
        self.hint = clipped(hint, MOST_TEXT)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(DmemError):
    """The command line does not make sense."""

    code = "usage"
    exit_status = ExitStatus.USAGE
    explanation = "The command line or a value in it could not be understood; nothing was done."


class ConfigError(DmemError):
    """A configuration file or an XML template cannot be used."""

    code = "config"
    explanation = "A file under /etc/virt-dmem cannot be used as it is; the message names the file and the key."


class PermissionRefused(DmemError):
    """The caller may not do this."""

    code = "permission"
    explanation = "Changing pools and serving hooks needs root; reading needs membership in the group virt-dmem."


class DaemonUnreachable(DmemError):
    """Nobody answers on the control socket."""

    code = "daemon-unreachable"
    exit_status = ExitStatus.DAEMON_UNREACHABLE
    explanation = (
        "virt-dmemd did not answer on its control socket, or answers only root and members of its group, as the "
        "message then says. Running guests are not affected; where it does not run, guests that take their memory "
        "from a pool cannot be started until it does."
    )


class HypervisorError(DmemError):
    """libvirt refused or could not be reached."""

    code = "hypervisor"
    explanation = "A call to libvirt failed; the message repeats what libvirt said."


class DomainRefused(DmemError):
    """The memory of a domain cannot come from a pool."""

    code = "domain-refused"
    explanation = "The domain is configured in a way that its memory cannot come from a pool; nothing was changed."


class DomainXmlInvalid(DomainRefused):
    """The input is no domain XML."""

    code = "domain-xml-invalid"
    explanation = "The input is not a libvirt domain XML that can be read safely; nothing was changed."


class NotRewritten(DomainRefused):
    """The domain asks for pool memory, but its XML was not rewritten before the start."""

    code = "not-rewritten"
    explanation = (
        "libvirt lets no hook change the XML at start, so it has to be rewritten when the domain is defined: "
        "by virt-dmemd by itself, by 'virt-dmem apply', or by piping it through 'virt-dmem rewrite'."
    )


class NotEnoughMemory(DmemError):
    """The pool has not enough free memory, in all or on a node."""

    code = "not-enough-memory"
    exit_status = ExitStatus.NOT_ENOUGH_MEMORY
    explanation = (
        "A domain gets all its memory or none. Free memory is the capacity of the pool less everything "
        "reserved, also what a guest gave back through its balloon."
    )


class PoolError(DmemError):
    """A pool cannot do what was asked."""

    code = "pool"
    explanation = "A pool could not be made, read or given back; the message says which step failed."


class PoolNotFound(PoolError):
    """There is no such pool."""

    code = "pool-not-found"
    explanation = "No pool of this name exists on this host; 'virt-dmem pool list' shows those that do."


class PoolExists(PoolError):
    """There already is such a pool."""

    code = "pool-exists"
    explanation = "A pool of this name exists already; it was left as it is."


class PoolBusy(PoolError):
    """The pool is in use."""

    code = "pool-busy"
    explanation = "Domains hold memory of this pool, so it was left as it is; 'virt-dmem list' shows them."


class PoolDraining(PoolError):
    """The pool gives no memory any more."""

    code = "pool-draining"
    explanation = (
        "The pool is being emptied: domains that run keep what they hold, and no other gets memory of it until "
        "'virt-dmem pool drain NAME --undo'."
    )


class PoolShort(PoolError):
    """The host could not give the pool what was asked."""

    code = "pool-short"
    exit_status = ExitStatus.NOT_ENOUGH_MEMORY
    explanation = (
        "The kernel did not find enough free contiguous memory for the pool; what it gave was given back. "
        "Huge pages are best taken soon after boot."
    )


class ExtentError(DmemError):
    """A file of a pool cannot be made, placed or taken back."""

    code = "extent"
    explanation = "A file that backs guest memory could not be made, linked, checked or removed."


class PrefaultFailed(ExtentError):
    """The memory of an extent could not be brought in before the start."""

    code = "prefault"
    explanation = "The helper could not bring in every page of an extent, so the guest was not started."


class NotPermitted(ExtentError):
    """A security module keeps QEMU from its memory."""

    code = "not-permitted"
    explanation = (
        "AppArmor confines QEMU, and none of its rules lets QEMU reach the pools; QEMU itself would only say "
        "'Permission denied'."
    )


class NotMapped(ExtentError):
    """QEMU does not use the memory that was prepared for it."""

    code = "not-mapped"
    explanation = (
        "After QEMU started, its memory was looked up in /proc/PID/maps by device and inode, and was not "
        "wholly the memory that was prepared for it, so the start was failed."
    )


class Delayed(DmemError):
    """The kernel does not answer in time, for somebody keeps it from that."""

    code = "delayed"
    explanation = (
        "A call about a file or a process that others have a say in took too long: somebody may hold a lease on "
        "the file, or keep the process from being read. Nothing else waits for it; try again once that is over."
    )


class LedgerError(DmemError):
    """The ledger cannot be read or written."""

    code = "ledger"
    explanation = "The database of reservations under /var/lib/virt-dmem could not be used."


def _tree(root: type[DmemError]) -> dict[str, type[DmemError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def error_from_code(code: str, message: str, hint: str) -> DmemError:
    """Build again an error that came over the socket; an unknown ``code`` gives a plain ``DmemError``."""
    return _tree(DmemError).get(code, DmemError)(message, hint=hint)


def explain(code: str, others: dict[str, str]) -> str:
    """Return what ``code`` means in a few sentences.

    :param others: Codes that are not of errors, and what they mean.
    :raise UsageError: When there is no such code.
    """
    known = {name: kind.explanation for name, kind in _tree(DmemError).items()} | others
    if code not in known:
        raise UsageError(f"There is no code {code!r}.", hint=f"The codes are: {', '.join(sorted(known))}.")
    return known[code]

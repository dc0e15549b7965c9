# SPDX-License-Identifier: GPL-2.0-or-later
"""Define all errors that are shown to users, in one tree.

::

    DmemError                    failed                1
     ├── UsageError              usage                 2
     ├── ConfigError             config                1
     ├── Cancelled               cancelled             1
     ├── PermissionRefused       permission            1
     ├── DaemonUnreachable       daemon-unreachable    4
     │    └── DaemonDenied       daemon-denied         1
     ├── HypervisorError         hypervisor            1
     │    ├── HypervisorDenied   hypervisor-denied     1
     │    └── DomainNotFound     domain-not-found      1
     ├── DomainRefused           domain-refused        1
     │    ├── DomainXmlInvalid   domain-xml-invalid    1
     │    ├── NotRewritten       not-rewritten         1
     │    ├── AdoptionRefused    adoption-refused      1
     │    └── DomainParked       domain-parked         1
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

The second column is the stable code (``virt-dmem explain CODE``), the third the exit status. A message is one
sentence with the numbers; a hint is one sentence that says what to do.
"""

from __future__ import annotations

import enum

from virt_dmem.text import clipped, did_you_mean

TYPE_CHECKING = False  # every command imports this module, and importing typing takes 2 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import ClassVar

__all__ = [
    "DmemError",
    "ExitStatus",
    "UsageError",
    "ConfigError",
    "Cancelled",
    "PermissionRefused",
    "DaemonUnreachable",
    "DaemonDenied",
    "HypervisorError",
    "HypervisorDenied",
    "DomainNotFound",
    "DomainRefused",
    "DomainXmlInvalid",
    "NotRewritten",
    "AdoptionRefused",
    "DomainParked",
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
    """List the exit statuses of the ``virt-dmem`` command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CHECK_FAILED = 3
    DAEMON_UNREACHABLE = 4
    NOT_ENOUGH_MEMORY = 5


MOST_TEXT = 4000
"""Limit of a message and of a hint, in characters: an excerpt of a document may be megabytes, and is logged."""


class DmemError(Exception):
    """Report a failure to the user: what happened, and what to do about it."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILED
    explanation: ClassVar[str] = "An operation failed for which there is no more specific code; see the message."

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = clipped(message, MOST_TEXT)
        self.hint = clipped(hint, MOST_TEXT)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(DmemError):
    """Report a usage error."""

    code = "usage"
    exit_status = ExitStatus.USAGE
    explanation = "Usage error: the command line, or a value in it, is invalid. Nothing was changed."


class ConfigError(DmemError):
    """Report an invalid configuration file or XML template."""

    code = "config"
    explanation = "A file under /etc/virt-dmem is invalid; the message names the file and the key."


class Cancelled(DmemError):
    """Report a command that its user did not confirm."""

    code = "cancelled"
    explanation = (
        "The command asked on the terminal whether to go on, and the answer was not yes. Nothing was changed."
    )


class PermissionRefused(DmemError):
    """Report missing permissions of the caller."""

    code = "permission"
    explanation = (
        "Changing pools and running hooks requires root; reading requires membership of the group virt-dmem."
    )


class DaemonUnreachable(DmemError):
    """Report that the daemon does not answer on the control socket."""

    code = "daemon-unreachable"
    exit_status = ExitStatus.DAEMON_UNREACHABLE
    explanation = (
        "virt-dmemd did not answer on its control socket; see the message. Running guests are not affected. While "
        "virt-dmemd is down, guests whose memory comes from a pool cannot be started. A request that was under "
        "way when the connection broke may have been carried out."
    )


class DaemonDenied(DaemonUnreachable):
    """Report that this user may not connect to the daemon."""

    code = "daemon-denied"
    exit_status = ExitStatus.FAILED
    explanation = (
        "The control sockets of virt-dmemd are closed to this user: root may connect, and members of its group, "
        "who may read. Nothing was changed."
    )


class HypervisorError(DmemError):
    """Report that a libvirt call failed, or that libvirt cannot be reached."""

    code = "hypervisor"
    explanation = (
        "A libvirt call failed; the message contains libvirt's own error message. If the connection broke during "
        "the call, the change may have been made."
    )


class HypervisorDenied(HypervisorError):
    """Report that libvirt does not permit this user to do something."""

    code = "hypervisor-denied"
    explanation = (
        "libvirt runs, and does not permit this user to connect or to make the change: its socket, polkit or "
        "its access control says no; the message contains libvirt's own error message. Nothing was changed."
    )


class DomainNotFound(HypervisorError):
    """Report that libvirt has no such domain."""

    code = "domain-not-found"
    explanation = "libvirt has no domain with this name, UUID or id; 'virsh list --all' lists the domains."


class DomainRefused(DmemError):
    """Report a domain whose memory cannot come from a pool."""

    code = "domain-refused"
    explanation = (
        "The configuration of the domain does not allow its memory to come from a pool; nothing was changed."
    )


class DomainXmlInvalid(DomainRefused):
    """Report input that is not a domain XML."""

    code = "domain-xml-invalid"
    explanation = "The input is not a libvirt domain XML that can be parsed safely; nothing was changed."


class NotRewritten(DomainRefused):
    """Report a domain that requests pool memory and whose XML was not rewritten before its start."""

    code = "not-rewritten"
    explanation = (
        "A libvirt hook cannot change the XML at start, so it has to be rewritten when the domain is defined: "
        "automatically by virt-dmemd, by 'virt-dmem apply', or by piping it through 'virt-dmem rewrite'."
    )


class AdoptionRefused(DomainRefused):
    """Report a domain that a rule takes, and whose memory cannot come from a pool as its XML is."""

    code = "adoption-refused"
    explanation = (
        "A rule of [[adopt]] takes the domain, its memory is not of shared files (huge pages, memfd, ordinary "
        "memory) or cannot come from any pool, and the rule says to reject such domains. 'virt-dmem rules DOMAIN' "
        "shows the judgement of every rule."
    )


class DomainParked(DomainRefused):
    """Report a domain that is parked, where one that runs or is shut off is needed."""

    code = "domain-parked"
    explanation = (
        "The guest is saved in a state file, and its memory is kept in the pool; one is useless without the other. "
        "'virt-dmem unpark' lets it go on, and 'virt-dmem unpark --discard' gives it up. Until then it cannot be "
        "started anew, and its memory is never freed."
    )


class NotEnoughMemory(DmemError):
    """Report that a pool lacks free memory, in total or on a node."""

    code = "not-enough-memory"
    exit_status = ExitStatus.NOT_ENOUGH_MEMORY
    explanation = (
        "A domain gets all of its memory or none. The free memory is the capacity of the pool minus all "
        "reservations; memory that a guest returned through its balloon stays reserved."
    )


class PoolError(DmemError):
    """Report a failed operation on a pool."""

    code = "pool"
    explanation = "A pool could not be created, read or destroyed; the message names the step that failed."


class PoolNotFound(PoolError):
    """Report a pool that does not exist."""

    code = "pool-not-found"
    explanation = "This host has no pool of this name; 'virt-dmem pool list' lists the pools."


class PoolExists(PoolError):
    """Report a pool that already exists."""

    code = "pool-exists"
    explanation = "A pool of this name already exists; it was not changed."


class PoolBusy(PoolError):
    """Report a pool that is in use."""

    code = "pool-busy"
    explanation = (
        "Domains hold memory of this pool, or processes use it, so the change was not made; 'virt-dmem list' lists "
        "the domains. Earlier steps, such as the removal of other segments, stay: 'virt-dmem pool show' shows them."
    )

    @classmethod
    def held(cls, pool: str, size: str, domains: Iterable[str]) -> PoolBusy:
        """Return the error for a pool, or a segment of it, of which domains hold ``size``."""
        return cls(
            f"Domains hold {size} of pool {pool}: {', '.join(sorted(set(domains)))}.",
            hint="Stop these domains first ('virt-dmem unpark DOMAIN', with --discard to give up what is parked);"
            " 'virt-dmem show DOMAIN' shows the memory of each.",
        )


class PoolDraining(PoolError):
    """Report a pool that is draining."""

    code = "pool-draining"
    explanation = (
        "The pool is draining: running domains keep their memory, and no other domain gets memory from it until "
        "'virt-dmem pool drain NAME --undo'."
    )


class PoolShort(PoolError):
    """Report that the host lacks the memory for a pool."""

    code = "pool-short"
    exit_status = ExitStatus.NOT_ENOUGH_MEMORY
    explanation = (
        "The kernel did not find enough free contiguous memory for the pool; what was allocated was freed again, "
        "unless the message says otherwise. Huge pages are best allocated soon after boot, or set aside at boot "
        "(--existing-pages). Or a pool has lost pages, because somebody lowered vm.nr_hugepages, and the kernel "
        "cannot provide them again."
    )

    def __init__(self, message: str, *, hint: str, had: Mapping[int, int] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.had = dict(had or {})
        """The bytes by node that the host did provide before it fell short, where that is known."""


class ExtentError(DmemError):
    """Report a failed operation on a file of a pool."""

    code = "extent"
    explanation = "A file that backs guest memory could not be created, linked, verified or removed."


class PrefaultFailed(ExtentError):
    """Report memory of an extent that could not be populated before the start."""

    code = "prefault"
    explanation = "The helper could not populate every page of an extent, so the guest was not started."


class NotPermitted(ExtentError):
    """Report a security module that denies QEMU access to its memory."""

    code = "not-permitted"
    explanation = (
        "AppArmor confines QEMU, and no rule gives it access to the pools; QEMU itself would only report "
        "'Permission denied'."
    )


class NotMapped(ExtentError):
    """Report a QEMU that does not map the memory prepared for it."""

    code = "not-mapped"
    explanation = (
        "After QEMU started, its mappings were verified in /proc/PID/maps by device and inode, and its monitor or "
        "its command line was asked which of its memory is the guest's RAM. It does not map all of the memory that "
        "was prepared for it, or its guest has other RAM as well, so the start was aborted."
    )


class Delayed(DmemError):
    """Report a system call that another process delays beyond its deadline."""

    code = "delayed"
    explanation = (
        "A system call about a file or process that other users control took too long: a process may hold a lease "
        "on the file, or block access to its /proc entries. Nothing else waits for the call; try again later."
    )


class LedgerError(DmemError):
    """Report a ledger that cannot be read or written."""

    is_unavailable: bool = False
    """Nothing can be written now: the disk is full or fails, or another program has the file locked."""
    code = "ledger"
    explanation = "The database of reservations under /var/lib/virt-dmem could not be read or written."


def _tree(root: type[DmemError]) -> dict[str, type[DmemError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def error_from_code(code: str, message: str, hint: str) -> DmemError:
    """Return the error that came over the socket; a plain ``DmemError`` where ``code`` is unknown."""
    return _tree(DmemError).get(code, DmemError)(message, hint=hint)


def codes() -> list[str]:
    """Return the codes of all errors."""
    return [*_tree(DmemError)]


def explain(code: str, others: dict[str, str]) -> str:
    """Return the explanation of a code, a few sentences.

    :param others: Codes that are not errors, with their explanations.
    :raise UsageError: When the code does not exist.
    """
    known = {name: kind.explanation for name, kind in _tree(DmemError).items()} | others
    if code not in known:
        hint = f"{did_you_mean(code, known)}The codes are: {', '.join(sorted(known))}."
        raise UsageError(f"There is no code {clipped(code, 80)!r}.", hint=hint)
    return known[code]

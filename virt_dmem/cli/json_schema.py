# SPDX-License-Identifier: GPL-2.0-or-later
"""What each command prints with ``--json``, as types: docs/json.md and the JSON Schema are made from them.

Nothing here runs when a command does. Tests hold every answer of a real command against its type: every field is
here, and of that type. A field may be added at any time; ``SCHEMA_VERSION`` goes up when one goes away, or means
something else.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from virt_dmem.ipc.version import SCHEMA_VERSION

__all__ = ["ANSWERS", "SCHEMA_VERSION", "Failure"]


def _says(description: str) -> Meta:
    return Meta(description=description)


Uuid = Annotated[str, _says("libvirt's UUID of the domain")]
PageSize = Annotated[int, _says("bytes of one page")]
Code = Annotated[str, _says("stable; `virt-dmem explain CODE`")]
Happened = Annotated[str, _says("what happened, with the numbers")]
Hint = Annotated[str, _says("what to do")]
Since = Annotated[float, _says("seconds since the epoch")]


class Answer(Struct, kw_only=True):
    """What every answer has."""

    schema: Annotated[Literal[1], _says("version of the format")]


class Error(Struct):
    """Why a command failed; the same as on standard error."""

    code: Code
    message: Happened
    hint: Hint


class Failure(Answer):
    """Any command that failed; the exit status says so as well."""

    error: Error


class CheckResult(Struct):
    """One line of `check`."""

    name: Annotated[str, _says("stable name of the check")]
    status: Annotated[Literal["PASS", "WARN", "FAIL"], _says("FAIL: domains may not start as they should")]
    message: Annotated[str, _says("what was found")]
    hint: Hint


class CheckAnswer(Answer):
    """`check`; the exit status is 3 when something failed."""

    checks: list[CheckResult]


class HostNode(Struct):
    """A node of this host."""

    node: Annotated[int, _says("number of the host node")]
    total_bytes: Annotated[int, _says("its MemTotal")]


class HostOption(Struct):
    """One kind of memory for guests; `gross_bytes` = `metadata_left_bytes` + `net_bytes`."""

    backend: Annotated[str, _says("`tmpfs`, `hugetlbfs`, `device-dax` or `dmemfs`")]
    page_size: PageSize
    size_bytes: Annotated[int, _says("the guest memory in whole pages")]
    gross_bytes: Annotated[int, _says("struct pages that an ordinary host keeps for it")]
    metadata_left_bytes: Annotated[int, _says("struct pages that stay")]
    net_bytes: Annotated[int, _says("what is saved")]
    kernel_command_line: Annotated[str, _says("what to add to it; empty: nothing")]
    pool_create: Annotated[str, _says("the command that makes the pool; empty: this version cannot, here")]
    notes: Annotated[list[str], _says("what else there is to know")]
    recommended: Annotated[bool, _says("true of exactly one")]
    reason: Annotated[str, _says("why it is recommended here; else empty")]


class PlanHostAnswer(Answer):
    """`plan-host`."""

    guest_memory_bytes: Annotated[int | None, _says("as asked; null: it was not, with --remove-grub")]
    nodes: Annotated[list[HostNode], _says("those that have memory")]
    hvo: Annotated[
        Literal["on", "off", "absent"] | None, _says("HVO now; absent: the kernel has none; null: not looked at")
    ]
    options: list[HostOption]
    warnings: Annotated[list[str], _says("what does not fit together")]
    grub: Annotated[str | None, _says("GRUB's file that was written or removed; null: none was")]


class PoolSaving(Struct):
    """What one pool saves; `gross_bytes` = `metadata_left_bytes` + `net_bytes`."""

    pool: Annotated[str, _says("name of the pool")]
    backend: Annotated[str, _says("kind of its memory")]
    page_size: PageSize
    size_bytes: Annotated[int, _says("what it has taken from the host; 0 where it is not mounted")]
    gross_bytes: Annotated[int, _says("struct pages that an ordinary host keeps for so much memory")]
    metadata_left_bytes: Annotated[int, _says("struct pages that are still there")]
    net_bytes: Annotated[int, _says("struct pages that are gone")]
    measured: Annotated[bool, _says("the kernel counted it; else it is an estimate")]
    how: Annotated[Literal["measured", "estimated"], _says("the same in a word")]


class SavingsAnswer(Answer):
    """`savings`."""

    pools: list[PoolSaving]


class PoolNode(Struct):
    """A pool's share of one host node."""

    node: Annotated[int, _says("host node; -1 where the backend knows none")]
    capacity_bytes: Annotated[int, _says("what the pool really has there now")]
    reserved_bytes: Annotated[int | None, _says("what domains hold of it; null: virt-dmemd does not answer")]
    free_bytes: Annotated[int | None, _says("capacity less reserved, never negative; null likewise")]


class Pool(Struct):
    """One pool."""

    name: Annotated[str, _says("its name")]
    backend: Annotated[str, _says("kind of its memory")]
    page_size: PageSize
    mount: Annotated[str, _says("path where it is mounted")]
    state: Annotated[str, _says("creating, mounting, ready, draining or destroying")]
    capacity_bytes: Annotated[int, _says("what it really has now")]
    reserved_bytes: Annotated[int | None, _says("what domains hold of it; null: virt-dmemd does not answer")]
    free_bytes: Annotated[int | None, _says("capacity less reserved, never negative; null likewise")]
    ready_bytes: Annotated[int | None, _says("what of it is brought in and zeroed ahead; null likewise")]
    ready_goal_bytes: Annotated[int | None, _says("how much of it is to be; null likewise")]
    ready_most_bytes: Annotated[
        int | None, _says("how much of it virt-dmemd may make ready, by the configuration; null likewise")
    ]
    ready_policy: Annotated[
        str | None,
        _says("for which domains: all, recent or off; kernel where that zeroes ahead by itself; null likewise"),
    ]
    pinned_bytes: Annotated[
        int | None,
        _says("what guests gave back and is not known to have come back: pinned; not in capacity; null likewise"),
    ]
    nodes: list[PoolNode]


class PoolListAnswer(Answer):
    """`pool list`."""

    pools: list[Pool]


class PoolAnswer(Answer):
    """`pool create`, `show` and `drain`."""

    pool: Pool


class PoolMountAnswer(Answer):
    """`pool mount`."""

    pool: Annotated[Pool | None, _says("null: it was never finished, and what was left of it is gone")]


class PoolDestroyAnswer(Answer):
    """`pool destroy`."""

    pool: Annotated[str, _says("name of the pool that is gone")]


class SegmentChange(Struct):
    """What becomes of one segment of a pool that is resized."""

    segment: Annotated[str, _says("name of the segment")]
    before: Annotated[dict[str, int], _says("bytes by node; empty: it is new")]
    after: Annotated[dict[str, int], _says("bytes by node; empty: it goes")]


class PoolResizeAnswer(Answer):
    """`pool resize`."""

    pool: Annotated[Pool, _says("as it is after the change")]
    changes: Annotated[list[SegmentChange], _says("what was done, or would be (--dry-run)")]


class Extent(Struct):
    """One file in a pool that backs one memory backend."""

    alias: Annotated[str, _says("QEMU's name of the memory backend")]
    pool: Annotated[str, _says("the pool it lies in")]
    path: Annotated[str, _says("its path")]
    size_bytes: Annotated[int, _says("its size")]
    page_size: PageSize
    policy: Annotated[str, _says("how it is placed: none, bind, preferred or interleave")]
    nodes: Annotated[list[int], _says("host nodes it lies on; -1 where the backend knows none")]
    state: Annotated[str, _says("planned, attaching, ready, resizing, detaching or quarantined")]


class Step(Struct):
    """How long one step of a start took."""

    step: Annotated[str, _says("hook operation, or part of one")]
    at: Annotated[float, _says("when it ended, in seconds since the epoch")]
    seconds: Annotated[float, _says("how long it took")]


class Backend(Struct):
    """A memory backend as QEMU itself describes it."""

    id: Annotated[str, _says("QEMU's id; of a memory device `mem` and its alias")]
    kind: Annotated[str, _says("QEMU's type of it")]
    path: Annotated[str, _says("what QEMU was told to open; empty: nothing")]
    size_bytes: Annotated[int, _says("its size")]
    policy: Annotated[str, _says("QEMU's NUMA policy")]
    host_nodes: Annotated[list[int], _says("host nodes that QEMU was told")]
    preallocated: Annotated[bool, _says("QEMU touched all of it itself")]
    shared: Annotated[bool, _says("it is a shared mapping")]


class Domain(Struct):
    """A domain and what it holds; which fields are there depends on the command."""

    uuid: Uuid
    name: Annotated[str, _says("its name")]
    phase: Annotated[str | None, _says("how far its memory has come; null: it holds none")]
    reserved_bytes: Annotated[int | None, _says("what it holds in pools; null: virt-dmemd does not answer")]
    extents: list[Extent]
    since: Since | UnsetType = UNSET
    steps: Annotated[list[Step], _says("those of its last start; empty in a list")] | UnsetType = UNSET
    backends: (
        Annotated[list[Backend], _says("what QEMU says; empty: its monitor does not answer, or it has none")]
        | UnsetType
    ) = UNSET
    active: Annotated[bool, _says("libvirt runs it; with --applied")] | UnsetType = UNSET
    managed: Annotated[bool, _says("its XML carries our metadata; with --applied")] | UnsetType = UNSET
    applied: Annotated[bool, _says("its XML is rewritten; with --applied")] | UnsetType = UNSET


class ListAnswer(Answer):
    """`list`."""

    domains: list[Domain]


class ShowAnswer(Answer):
    """`show`."""

    domain: Domain


class AppliedDomain(Struct):
    """The domain that was rewritten."""

    uuid: Uuid
    name: Annotated[str, _says("its name")]
    active: Annotated[bool, _says("libvirt runs it now: the change counts from its next start on")]
    applied: Annotated[bool, _says("its memory will come from a pool")]


class ApplyAnswer(Answer):
    """`apply` and `unapply`."""

    domain: AppliedDomain
    changed: Annotated[bool, _says("libvirt has new XML; false with --dry-run")]
    diff: Annotated[str, _says("the difference, passwords masked; empty: there is none")]


class RewriteAnswer(Answer):
    """`rewrite`: either the XML or, with --print-diff, the difference."""

    changed: Annotated[bool, _says("the XML is another one now")]
    xml: Annotated[str, _says("the new XML, passwords and all")] | UnsetType = UNSET
    diff: Annotated[str, _says("the difference, passwords masked")] | UnsetType = UNSET


class ReconcileAnswer(Answer):
    """`reconcile`."""

    actions: Annotated[list[str], _says("what was mended, or would be (--dry-run): sentences")]


class MemoryChange(Struct):
    """What became of a memory device of a domain that runs."""

    uuid: Uuid
    name: Annotated[str, _says("the domain's name")]
    alias: Annotated[str, _says("of the memory device")]
    size_bytes: Annotated[int, _says("of the device; of virtio-mem what the guest has plugged of it")]
    state: Annotated[
        Literal["attached", "detached", "resized", "pending"],
        _says("pending: it comes to its end when the guest does what it was asked"),
    ]
    message: Annotated[str, _says("why it is pending; else empty")]


class ChangeAnswer(Answer):
    """`attach`, `detach` and `resize`."""

    change: MemoryChange


class Alert(Struct):
    """Something that is not as it should be."""

    code: Code
    subject: Annotated[str, _says("the domain, pool or file that it is about")]
    message: Happened
    hint: Hint
    since: Since


class AlertsAnswer(Answer):
    """`alerts`."""

    alerts: list[Alert]


class MetricsAnswer(Answer):
    """`metrics`."""

    text: Annotated[str, _says("Prometheus' text format")]


class PauseApplyAnswer(Answer):
    """`pause-apply`."""

    paused: Annotated[bool, _says("virt-dmemd rewrites no domain by itself now")]


class ReportAnswer(Answer):
    """`report`."""

    file: Annotated[str, _says("path of the archive")]
    names: Annotated[list[str], _says("the files in it")]


class ConfigKey(Struct):
    """One key of the configuration."""

    key: Annotated[str, _says("its name after that of its section, such as `daemon.run_dir`")]
    value: Annotated[Any, _says("what is in force")]
    default: Annotated[Any, _says("what it is where no file sets it")]
    origin: Annotated[str | None, _says("the file that set it; null: the default")]


class ConfigShowAnswer(Answer):
    """`config show`."""

    keys: list[ConfigKey]


class CompletionAnswer(Answer):
    """`completion`."""

    shell: Annotated[str, _says("bash or zsh")]
    script: Annotated[str, _says("what the shell reads")]


class ExplainAnswer(Answer):
    """`explain`."""

    code: Code
    explanation: Annotated[str, _says("a few sentences")]


ANSWERS: dict[str, type[Answer]] = {
    "check": CheckAnswer,
    "plan-host": PlanHostAnswer,
    "savings": SavingsAnswer,
    "pool create": PoolAnswer,
    "pool resize": PoolResizeAnswer,
    "pool destroy": PoolDestroyAnswer,
    "pool list": PoolListAnswer,
    "pool show": PoolAnswer,
    "pool mount": PoolMountAnswer,
    "pool drain": PoolAnswer,
    "apply": ApplyAnswer,
    "unapply": ApplyAnswer,
    "rewrite": RewriteAnswer,
    "list": ListAnswer,
    "show": ShowAnswer,
    "reconcile": ReconcileAnswer,
    "attach": ChangeAnswer,
    "detach": ChangeAnswer,
    "resize": ChangeAnswer,
    "alerts": AlertsAnswer,
    "metrics": MetricsAnswer,
    "pause-apply": PauseApplyAnswer,
    "report": ReportAnswer,
    "config show": ConfigShowAnswer,
    "completion": CompletionAnswer,
    "explain": ExplainAnswer,
}
"""By command, in the order of ``--help``."""

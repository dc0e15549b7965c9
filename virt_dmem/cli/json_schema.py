# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe the answers of ``--json`` as types: docs/reference/json.md and the JSON Schema are made from them.

A command's module declares the type of its answer as a plain class, so that importing it costs next to nothing.
Here are the types that several commands share, and ``answers``, which converts all of them for msgspec. No command
imports this module. Tests compare every answer of a real command with its type: every field is here, and of that
type. A field may be added at any time; ``SCHEMA_VERSION`` goes up when one is removed or changes its meaning.
"""

import typing
from functools import cache
from types import ModuleType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from virt_dmem.cli import registry
from virt_dmem.ipc.version import SCHEMA_VERSION

__all__ = ["answers", "says", "Answer", "Failure", "SCHEMA_VERSION"]


def says(description: str) -> Meta:
    """Return a field's description, for ``Annotated``."""
    return Meta(description=description)


@cache
def answers() -> dict[str, type[Any]]:
    """Import all commands, and return the types of their answers by command, in the order of ``--help``."""
    types = {}
    for name in registry.MODULES:
        answer = registry.load(name).answer
        types[name] = globals().get(answer) or _structs(registry.module_of(name))[answer]
    return types


@cache
def _structs(module: ModuleType) -> dict[str, type[Struct]]:
    """Return the plain classes of a command's module as msgspec's types, by name.

    Their annotations may use what this module has, and classes above them.
    """
    names = globals() | {"Annotated": Annotated, "Any": Any, "Literal": Literal}
    mine: dict[str, type[Struct]] = {}
    for name, declared in vars(module).items():
        if not isinstance(declared, type) or declared.__module__ != module.__name__:
            continue
        hints = typing.get_type_hints(declared, names, mine, include_extras=True)
        bases = (Answer,) if name in {command.answer for command in module.COMMANDS} else ()
        fields = [
            (field, hint, UNSET) if UnsetType in typing.get_args(hint) else (field, hint)
            for field, hint in hints.items()
        ]
        mine[name] = msgspec.defstruct(name, fields, bases=bases, namespace={"__doc__": declared.__doc__})
    return mine


Uuid = Annotated[str, says("libvirt's UUID of the domain")]
PageSize = Annotated[int, says("bytes of one page")]
Code = Annotated[str, says("stable; `virt-dmem explain CODE`")]
Happened = Annotated[str, says("what happened, with the numbers")]
Hint = Annotated[str, says("how to resolve it")]
Since = Annotated[float, says("seconds since the epoch")]


class Answer(Struct, kw_only=True):
    """The fields of every answer."""

    schema: Annotated[Literal[1], says("version of the format")]


class Error(Struct):
    """The reason of a failure; the same as on standard error."""

    code: Code
    message: Happened
    hint: Hint


class Failure(Answer):
    """Any command that fails; the exit status tells it as well."""

    error: Error


class PoolNode(Struct):
    """A pool's share of one host node."""

    node: Annotated[int, says("host node; -1 where the backend knows none")]
    capacity_bytes: Annotated[int, says("current size there")]
    reserved_bytes: Annotated[int | None, says("memory held by domains; null: virt-dmemd does not answer")]
    free_bytes: Annotated[int | None, says("capacity less reserved, never negative; null likewise")]
    ready_bytes: Annotated[int | None, says("free memory that is populated and pre-zeroed; null likewise")]


class PoolSegment(Struct):
    """One of a pool's mounts: it can shrink or be removed only while domains hold nothing of it."""

    name: Annotated[str, says("its name: that of the pool, later ones with `+` and a number")]
    capacity_bytes: Annotated[int, says("current size")]
    reserved_bytes: Annotated[int | None, says("memory held by domains; null: virt-dmemd does not answer")]


class PoolElastic(Struct):
    """The limits of an elastic pool."""

    max_bytes: Annotated[int, says("the most that it may have")]
    min_bytes: Annotated[int, says("what it always has")]
    keep_free_bytes: Annotated[int, says("available memory that it leaves to the host")]
    linger_seconds: Annotated[int, says("how long it keeps memory that no domain holds")]
    room_bytes: Annotated[int, says("how much it may take now, beyond its capacity")]


class Pool(Struct):
    """One pool."""

    name: Annotated[str, says("its name")]
    backend: Annotated[str, says("kind of memory")]
    page_size: PageSize
    mount: Annotated[str, says("mount point")]
    state: Annotated[str, says("creating, mounting, ready, resizing, draining or destroying")]
    capacity_bytes: Annotated[int, says("current size; of an elastic pool what it has taken")]
    reserved_bytes: Annotated[int | None, says("memory held by domains; null: virt-dmemd does not answer")]
    free_bytes: Annotated[int | None, says("capacity less reserved, never negative; null likewise")]
    ready_bytes: Annotated[int | None, says("free memory that is populated and pre-zeroed; null likewise")]
    ready_goal_bytes: Annotated[int | None, says("current target of pre-zeroing; null likewise")]
    ready_most_bytes: Annotated[int | None, says("configured limit of pre-zeroing; null likewise")]
    ready_policy: Annotated[
        str | None,
        says("domains it is pre-zeroed for: all, recent or off; kernel where the kernel pre-zeroes; null likewise"),
    ]
    pinned_bytes: Annotated[
        int | None,
        says("memory returned by guests that is still pinned; not in capacity; null likewise"),
    ]
    nodes: list[PoolNode]
    segments: list[PoolSegment]
    ready_note: Annotated[
        str | None, says("why no more is pre-zeroed; empty: all that is to be is; null: virt-dmemd does not answer")
    ]
    elastic: Annotated[PoolElastic | None, says("limits of an elastic pool; null: it is a fixed one")]
    on_boot: Annotated[
        bool | None, says("its systemd unit is enabled, which restores it at each boot; null: there is no systemd")
    ]


class Alert(Struct):
    """A condition that needs attention."""

    code: Code
    subject: Annotated[str, says("the domain, pool or file that it is about")]
    message: Happened
    hint: Hint
    since: Since


class CheckResult(Struct):
    """The result of one check."""

    name: Annotated[str, says("stable name of the check")]
    status: Annotated[Literal["PASS", "WARN", "FAIL"], says("FAIL: domains may not start as configured")]
    message: Annotated[str, says("what was found")]
    hint: Hint


class PoolAnswer(Answer):
    """`pool create`, `show` and `drain`."""

    pool: Pool


class Extent(Struct):
    """One file in a pool that backs one memory backend."""

    alias: Annotated[str, says("QEMU's name of the memory backend")]
    pool: Annotated[str, says("the pool it lies in")]
    path: Annotated[str, says("its path")]
    size_bytes: Annotated[int, says("its size")]
    page_size: PageSize
    policy: Annotated[str, says("NUMA policy: none, bind, preferred or interleave")]
    nodes: Annotated[list[int], says("host nodes it lies on; -1 where the backend knows none")]
    state: Annotated[str, says("planned, attaching, ready, resizing, detaching or quarantined")]


class Step(Struct):
    """The duration of one step of a start."""

    step: Annotated[str, says("hook operation, or part of one")]
    at: Annotated[float, says("end of the step, in seconds since the epoch")]
    seconds: Annotated[float, says("its duration")]


class Backend(Struct):
    """A memory backend as QEMU itself describes it."""

    id: Annotated[str, says("QEMU's id; of a memory device `mem` and its alias")]
    kind: Annotated[str, says("QEMU's object type")]
    path: Annotated[str, says("path that QEMU was given; empty: none")]
    size_bytes: Annotated[int, says("its size")]
    policy: Annotated[str, says("QEMU's NUMA policy")]
    host_nodes: Annotated[list[int], says("host nodes that QEMU was given")]
    preallocated: Annotated[bool, says("QEMU populated it itself")]
    shared: Annotated[bool, says("it is a shared mapping")]
    in_pool: Annotated[
        bool, says("it is one of the domain's extents; false: another device's own, or unknown to us")
    ]


class Domain(Struct):
    """A domain and its pool memory; which fields are present depends on the command."""

    uuid: Uuid
    name: Annotated[str, says("its name")]
    phase: Annotated[
        str | None, says("reserved, prepared, linked, running, stopped or parked; null: it holds none")
    ]
    reserved_bytes: Annotated[int | None, says("memory it holds in pools; null: virt-dmemd does not answer")]
    extents: list[Extent]
    since: Since | UnsetType = UNSET
    steps: Annotated[list[Step], says("those of its last start; empty in a list")] | UnsetType = UNSET
    state_file: Annotated[str, says("of a parked domain; else empty")] | UnsetType = UNSET
    backends: (
        Annotated[list[Backend], says("as reported by QEMU; empty: its monitor does not answer, or it has none")]
        | UnsetType
    ) = UNSET
    active: Annotated[bool, says("it is running; with --applied")] | UnsetType = UNSET
    managed: Annotated[bool, says("its XML has a request for pool memory; with --applied")] | UnsetType = UNSET
    applied: Annotated[bool, says("its XML is rewritten; with --applied")] | UnsetType = UNSET
    pool: (
        Annotated[
            str | None, says("pool of its next start; null: none is chosen, or it is not known; with --applied")
        ]
        | UnsetType
    ) = UNSET
    size_bytes: Annotated[int, says("memory that its next start takes; with --applied")] | UnsetType = UNSET
    hotplug_max_bytes: (
        Annotated[int, says("most memory with memory attached later; 0: none can be; with --applied")] | UnsetType
    ) = UNSET

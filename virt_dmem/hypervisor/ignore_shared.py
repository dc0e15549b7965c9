# SPDX-License-Identifier: GPL-2.0-or-later
"""Have a QEMU save, or restore, its guest without the memory that is in files: migration's ``x-ignore-shared``.

A QEMU that has it switched on writes no RAM of shared files to any migration stream, and both sides have to agree:
``configuration_validate_capabilities`` in QEMU's migration/savevm.c refuses a stream of the other kind. So whoever
leaves it on would make the next ``virsh save`` one without memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from virt_dmem.errors import DomainRefused, HypervisorError
from virt_dmem.text import clipped, printable

__all__ = ["Command", "CAPABILITY", "is_on", "require_kept", "require_waiting", "switch"]

CAPABILITY = "x-ignore-shared"

Command = Callable[[str, Mapping[str, Any] | None], Awaitable[Any]]
"""Executes a command of QEMU's monitor, and returns what it returns.

:raise HypervisorError: When it fails, or the monitor does not answer."""


async def is_on(command: Command) -> bool | None:
    """Return whether it is switched on; ``None`` where this QEMU does not have it."""
    for item in _list(await command("query-migrate-capabilities", None)):
        if item.get("capability") == CAPABILITY:
            return item.get("state") is True
    return None


async def switch(command: Command, *, on: bool) -> None:
    """Switch it, and verify that.

    :raise HypervisorError: When QEMU refuses, as it does during a migration, or does not do it.
    """
    if not on and not await is_on(command):
        return
    await command("migrate-set-capabilities", {"capabilities": [{"capability": CAPABILITY, "state": on}]})
    if await is_on(command) is not on:
        raise HypervisorError(
            f"QEMU did not switch {CAPABILITY} {'on' if on else 'off'}.", hint="Update QEMU, and try again."
        )


async def require_waiting(command: Command) -> None:
    """Require that a QEMU waits for a guest to be restored.

    :raise HypervisorError: When it does not.
    """
    status = await command("query-status", None)
    if not isinstance(status, dict) or status.get("status") != "inmigrate":
        raise HypervisorError(
            "QEMU does not wait for a guest to be restored.", hint="Look into libvirt's log of the domain."
        )


async def require_kept(command: Command, name: str, ours: Collection[str]) -> None:
    """Require that all memory of a QEMU that is in shared files outlives it.

    :param ours: The ids of the memory backends whose files are extents.
    :raise DomainRefused: When some of it is elsewhere, private, or discarded when QEMU ends.
    """
    if await is_on(command) is None:
        raise DomainRefused(
            f"The QEMU of domain {name} cannot save a guest without its memory ({CAPABILITY}).",
            hint="Run it with QEMU 4.0 or later.",
        )
    for item in _list(await command("query-memdev", None)):
        known = clipped(printable(str(item.get("id"))), 80)
        if item.get("id") not in ours:
            raise DomainRefused(
                f"Domain {name} has memory outside of any pool, in its memory backend {known!r}.",
                hint="Detach that memory device; its content would be lost with QEMU.",
            )
        if item.get("share") is not True:
            raise DomainRefused(
                f"Memory backend {known!r} of domain {name} is private: its content is not in the pool's file.",
                hint="Apply the domain again with 'virt-dmem apply', and start it anew.",
            )
        found = {"path": f"/objects/{item['id']}", "property": "discard-data"}
        if await command("qom-get", found) is not False:
            raise DomainRefused(
                f"QEMU discards the memory of {known!r} when it ends, so domain {name} cannot be parked.",
                hint="Remove <discard/> from its <memoryBacking>, and start it anew.",
            )


def _list(answer: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 -- what a QEMU sent
    return [item for item in answer if isinstance(item, dict)] if isinstance(answer, list) else []

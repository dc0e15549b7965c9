#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuse the start of a KubeVirt VM on a node whose huge pages others have taken: a node hook, on a unix socket.

Kubernetes counts all huge pages of a node, once, when kubelet starts. It does not see that others have some, such
as a pool of virt-dmem: it places VMs for pages that are not there, and their QEMU fails or is killed. This hook
compares what a VM needs with what the kernel has free, before the VM starts, and says what is missing.

    node_hook.py [--socket /var/run/kubevirt/plugins/virt-dmem.sock] [--root /host]

virt-handler calls ``NodeHookService.ExecuteNodeHook`` there, of ``pkg/hooks/plugins/v1alpha1/api.proto`` in
KubeVirt (1.9, feature gate ``Plugins``); ``plugin.yaml`` announces the hook. It needs Python 3.11 and grpcio.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

SOCKET = Path("/var/run/kubevirt/plugins/virt-dmem.sock")
SERVICE = "kubevirt.hooks.plugins.v1alpha1.NodeHookService"
STARTS = {"PreVMStart", "PreMigrationTarget"}
HAS_ITS_PAGES_OR_NEEDS_NONE = {"PostVMStart", "PostMigrationTarget", "PostVMStop"}
PROMISED_FOR = 300.0
"""Seconds: virt-handler calls again and again until a VM runs, but says nothing of one that is deleted before."""

_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)}
_FACTORS |= {prefix: Decimal(1000) ** power for power, prefix in enumerate("MGTPE", 2)}
_FACTORS |= {f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", 1)}


class Refused(Exception):
    """The VM's pages are not there."""


@dataclass
class Promise:
    """Pages of a VM that may start, and has not taken them yet as far as we know."""

    page_bytes: int
    pages: int
    expires: float


def quantity(text: str | float) -> int:
    """Return the bytes of a quantity as Kubernetes writes it: ``"4Gi"``, ``"512M"``, ``1073741824``, ``"1e9"``.

    :raise ValueError: When it is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?)([mkMGTPE]|[KMGTPE]i|)", str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity of memory")
    return math.ceil(Decimal(found[1]) * _FACTORS[found[2]])


def needs(vmi: dict[str, Any]) -> tuple[int, int] | None:
    """Return the bytes of a page and the number of pages of a VirtualMachineInstance; ``None``: no huge pages.

    Its memory is ``memory.guest``, else what it requests, else its limit (KubeVirt's ``vcpu.GetVirtualMemory``).

    :raise ValueError: When its memory is not said, or is no quantity.
    """
    domain = vmi["spec"]["domain"]
    memory, resources = domain.get("memory") or {}, domain.get("resources") or {}
    page = (memory.get("hugepages") or {}).get("pageSize")
    if not page:
        return None
    said = [memory.get("guest"), *((resources.get(kind) or {}).get("memory") for kind in ("requests", "limits"))]
    size = next((size for size in said if size), None)
    if size is None or quantity(page) == 0:
        raise ValueError("the VM has huge pages, but no size of its memory")
    return quantity(page), math.ceil(quantity(size) / quantity(page))


class Gate:
    """Decide for one node which VMs may start.

    ``root`` and ``now`` stand for ``/`` and the monotonic clock.
    """

    def __init__(self, root: Path = Path("/"), now: Callable[[], float] = time.monotonic) -> None:
        self._root, self._now = root, now
        self._promised: dict[str, Promise] = {}
        self._lock = threading.Lock()

    def call(self, point: str, vmi: dict[str, Any]) -> None:
        """Handle what happens to a VM; calls may be repeated.

        :raise Refused: When it is about to start, and fewer pages are free than it needs.
        :raise ValueError: When its memory cannot be told.
        """
        uid = vmi["metadata"]["uid"]
        with self._lock:
            if point in HAS_ITS_PAGES_OR_NEEDS_NONE:
                self._promised.pop(uid, None)
            elif point in STARTS and (needed := needs(vmi)):
                self._promise(uid, f"{vmi['metadata']['namespace']}/{vmi['metadata']['name']}", *needed)

    def _promise(self, uid: str, name: str, page_bytes: int, pages: int) -> None:
        now = self._now()
        self._promised = {uid: promise for uid, promise in self._promised.items() if promise.expires > now}
        if uid not in self._promised:
            others = sum(other.pages for other in self._promised.values() if other.page_bytes == page_bytes)
            all_pages, free = self._pages(page_bytes)
            if pages > free - others:
                raise Refused(
                    f"{name} needs {pages} huge pages of {page_bytes >> 10} KiB. Of the {all_pages} on this node "
                    f"{free} are free, and {others} of these are promised to VMs that are starting. "
                    "If a pool has too many: 'virt-dmem pool list' there."
                )
        self._promised[uid] = Promise(page_bytes, pages, now + PROMISED_FOR)

    def _pages(self, page_bytes: int) -> tuple[int, int]:
        """Return how many pages of a size there are, and how many of them are free and not reserved by a mapping.

        Pages of pools are reserved by their mounts (Documentation/admin-guide/mm/hugetlbpage.rst).
        """
        directory = self._root / f"sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB"
        if not directory.is_dir():
            return 0, 0
        every, free, reserved = (
            int((directory / name).read_text()) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages")
        )
        return every, max(free - reserved, 0)


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each field of a protobuf message of strings, bytes and messages only.

    :raise ValueError: When it is not such a message.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(message):
            value |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 0x80:
                return value
        raise ValueError("the message ends within a field")

    while at < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type != 2:
            raise ValueError(f"field {number} is of wire type {wire_type}")
        length = varint()
        if length > len(message) - at:
            raise ValueError("the message ends within a field")
        yield number, message[at : at + length]
        at += length


def serve(socket: Path, gate: Gate) -> None:
    """Answer virt-handler until SIGTERM or SIGINT. Where the socket is, the plugin is ready."""
    import grpc  # noqa: PLC0415 # all else works without, and is tested so

    def execute(request: dict[int, bytes], context: grpc.ServicerContext) -> bytes:
        try:
            gate.call(request.get(1, b"").decode(), json.loads(request.get(2, b"")))
        except Refused as refused:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{type(error).__name__}: {error}")
        return b""

    handler = grpc.unary_unary_rpc_method_handler(execute, lambda message: dict(fields(message)))
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ExecuteNodeHook": handler}),))
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{socket}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    stop.wait()
    server.stop(grace=5).wait()
    socket.unlink(missing_ok=True)


def main() -> None:
    """Run the hook."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--socket", type=Path, default=SOCKET, help=f"default: {SOCKET}")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the node's /sys is; default: /")
    arguments = parser.parse_args()
    serve(arguments.socket, Gate(arguments.root))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the node hook for KubeVirt decides, on a tree in the place of a node's /sys.

That KubeVirt's own protocol reaches it is tested by ``kubevirt_protocol.py`` (``make fleet``), which needs gRPC.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rig.fake_tree import put
from tests.rig.repository import REPOSITORY

HOOKS = REPOSITORY / "hooks/kubevirt"


def load() -> Any:
    spec = spec_from_loader("node_hook", SourceFileLoader("node_hook", str(HOOKS / "node_hook.py")))
    assert spec is not None
    module = sys.modules["node_hook"] = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


node_hook = load()


def vmi(uid: str, memory: str = "1Gi", page: str = "2Mi", **more: Any) -> dict[str, Any]:
    """Return what virt-handler sends of a VirtualMachineInstance, as far as the hook reads it."""
    domain = {"memory": {"guest": memory, "hugepages": {"pageSize": page}}, **more}
    return {"metadata": {"uid": uid, "namespace": "default", "name": f"vm-{uid}"}, "spec": {"domain": domain}}


def set_pages(root: Path, every: int, free: int, reserved: int, page_kib: int = 2048) -> None:
    directory = root / f"sys/kernel/mm/hugepages/hugepages-{page_kib}kB"
    for name, pages in {"nr": every, "free": free, "resv": reserved}.items():
        put(directory / f"{name}_hugepages", f"{pages}\n")


class Clock:
    """The time that a gate sees."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(tmp_path: Path, clock: Clock) -> Any:
    """A node of 1000 pages, of which a pool holds 400: 300 are mapped by domains, 100 reserved by its mount."""
    set_pages(tmp_path, 1000, 700, 100)
    return node_hook.Gate(tmp_path, clock)


def test_a_vm_whose_pages_a_pool_has_is_refused_with_the_numbers(gate: Any) -> None:
    with pytest.raises(
        node_hook.Refused, match=r"^default/vm-1 needs 601 .* of 2048 KiB.* 1000 .* 600 are free, and 0 "
    ):
        gate.call("PreVMStart", vmi("1", "1202Mi"))
    gate.call("PreVMStart", vmi("1", "1200Mi"))


def test_pages_that_a_starting_vm_will_take_are_not_promised_twice(gate: Any) -> None:
    gate.call("PreVMStart", vmi("1"))
    with pytest.raises(node_hook.Refused, match="512 of these are promised"):
        gate.call("PreVMStart", vmi("2"))


def test_a_refused_vm_is_promised_nothing(gate: Any) -> None:
    with pytest.raises(node_hook.Refused):
        gate.call("PreVMStart", vmi("1", "2Gi"))
    gate.call("PreVMStart", vmi("2"))


def test_calls_may_be_repeated_also_when_the_vm_has_its_pages_already(gate: Any, tmp_path: Path) -> None:
    gate.call("PreVMStart", vmi("1"))
    gate.call("PreVMStart", vmi("1"))
    set_pages(tmp_path, 1000, 188, 100)
    gate.call("PreVMStart", vmi("1"))


@pytest.mark.parametrize("point", ["PostVMStart", "PostVMStop", "PostMigrationTarget"])
def test_what_has_its_pages_or_has_ended_is_promised_none(gate: Any, point: str) -> None:
    gate.call("PreVMStart", vmi("1"))
    gate.call(point, vmi("1"))
    gate.call(point, vmi("1"))
    gate.call("PreVMStart", vmi("2"))


def test_a_vm_that_is_deleted_before_it_starts_keeps_its_promise_for_minutes_only(gate: Any, clock: Clock) -> None:
    gate.call("PreVMStart", vmi("1"))
    clock.now += node_hook.PROMISED_FOR + 1
    gate.call("PreVMStart", vmi("2"))


def test_each_page_size_is_counted_for_itself(gate: Any, tmp_path: Path) -> None:
    set_pages(tmp_path, 4, 4, 0, page_kib=1 << 20)
    gate.call("PreVMStart", vmi("1"))
    gate.call("PreMigrationTarget", vmi("2", "4Gi", "1Gi"))
    with pytest.raises(node_hook.Refused, match="1048576 KiB"):
        gate.call("PreMigrationTarget", vmi("3", "1Gi", "1Gi"))


def test_a_page_size_that_the_node_has_not_is_refused(gate: Any) -> None:
    with pytest.raises(node_hook.Refused, match="Of the 0 on this node 0 are free"):
        gate.call("PreVMStart", vmi("1", "1Gi", "1Gi"))


@pytest.mark.parametrize(
    "domain", [{}, {"memory": None}, {"memory": {"guest": "900Gi"}}, {"memory": {"hugepages": {}}}]
)
def test_a_vm_without_huge_pages_starts_whatever_is_free(gate: Any, domain: dict[str, Any]) -> None:
    gate.call("PreVMStart", vmi("1") | {"spec": {"domain": domain}})


def test_points_that_it_did_not_ask_for_change_nothing(gate: Any) -> None:
    gate.call("PreMigrationSource", vmi("1", "900Gi"))
    gate.call("SomethingOfAnotherVersion", vmi("1", "900Gi"))


@pytest.mark.parametrize(
    ("resources", "pages"),
    [
        ({"requests": {"memory": "64Mi"}, "limits": {"memory": "1Gi"}}, 32),
        ({"limits": {"memory": "66000001"}}, 32),
    ],
)
def test_memory_may_be_said_by_requests_and_limits(resources: dict[str, Any], pages: int) -> None:
    domain = {"memory": {"hugepages": {"pageSize": "2Mi"}}, "resources": resources}
    assert node_hook.needs({"spec": {"domain": domain}}) == (2 << 20, pages)


def test_huge_pages_without_a_size_are_an_error() -> None:
    with pytest.raises(ValueError, match="no size"):
        node_hook.needs({"spec": {"domain": {"memory": {"hugepages": {"pageSize": "2Mi"}}}}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1073741824", 1 << 30),
        (4096, 4096),
        ("4Gi", 4 << 30),
        ("1.5Mi", 3 << 19),
        ("512M", 512_000_000),
        ("1k", 1000),
        ("2e6", 2_000_000),
        ("1E", 10**18),
        ("2Ti", 2 << 40),
        ("1500m", 2),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str | int, expected: int) -> None:
    assert node_hook.quantity(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1gi", "1e999", "0x10", None])
def test_what_is_no_quantity_is_rejected(text: Any) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        node_hook.quantity(text)


def test_a_message_is_taken_apart_by_its_fields() -> None:
    long = b"x" * 300
    assert dict(node_hook.fields(b"\x0a\x03abc\x12\xac\x02" + long + b"\x1a\x00")) == {1: b"abc", 2: long, 3: b""}


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05abc", b"\x08\x01", b"\xff", b"\x12\xff\xff"])
def test_a_message_that_is_cut_off_or_of_another_kind_is_rejected(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"ends within|wire type"):
        dict(node_hook.fields(message))


def test_the_plugin_announces_what_the_hook_handles_and_no_end_of_a_vm_waits_for_it() -> None:
    hooks = yaml.safe_load((HOOKS / "plugin.yaml").read_text())["spec"]["nodeHooks"]
    assert {hook["socket"] for hook in hooks} == {str(node_hook.SOCKET)}
    assert {hook["failureStrategy"]: set(hook["permittedHooks"]) for hook in hooks} == {
        "Fail": node_hook.STARTS,
        "Ignore": node_hook.HAS_ITS_PAGES_OR_NEEDS_NONE,
    }

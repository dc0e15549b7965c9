# SPDX-License-Identifier: GPL-2.0-or-later
"""Call the node hook for KubeVirt as virt-handler does: by a gRPC client generated from the protocol it publishes.

``make fleet`` runs it, which installs what it needs: grpcio and grpcio-tools. virt-handler itself is not here.
The messages are those of KubeVirt's ``pkg/hooks/plugins/v1alpha1/api.proto``; authority, timeout and content those
of ``client.go`` beside it, and of ``pkg/util/net/grpc``.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_tools import protoc

from tests.rig.processes import wait_for
from tests.unit.test_kubevirt_hook import HOOKS, set_pages, vmi

_PROTOCOL = """
syntax = "proto3";
package kubevirt.hooks.plugins.v1alpha1;
service NodeHookService { rpc ExecuteNodeHook(ExecuteNodeHookRequest) returns (ExecuteNodeHookResponse); }
message NodeContext { string node_name = 1; }
message ExecuteNodeHookRequest { string hookPoint = 1; bytes vmi = 2; NodeContext node_context = 3; }
message ExecuteNodeHookResponse {}
"""
Call = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Provide the modules that protoc generates."""
    directory = tmp_path_factory.mktemp("protocol")
    (directory / "api.proto").write_text(_PROTOCOL)
    out = [f"-I{directory}", f"--python_out={directory}", f"--grpc_python_out={directory}"]
    assert protoc.main(["protoc", *out, str(directory / "api.proto")]) == 0
    sys.path.insert(0, str(directory))
    return importlib.import_module("api_pb2"), importlib.import_module("api_pb2_grpc")


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Provide a running hook, on a node with 600 free pages, and its socket."""
    set_pages(tmp_path, 1000, 700, 100)
    socket = tmp_path / "plugins/virt-dmem.sock"
    process = subprocess.Popen([sys.executable, HOOKS / "node_hook.py", "--socket", socket, "--root", tmp_path])
    wait_for("its socket", socket.exists)
    yield process, socket
    process.kill()
    process.wait()


@pytest.fixture
def call(protocol: Any, hook: tuple[Any, Path]) -> Iterator[Call]:
    """Provide the call of virt-handler's client."""
    messages, services = protocol
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{hook[1]}", options) as channel:
        grpc.channel_ready_future(channel).result(2)
        client = services.NodeHookServiceStub(channel)

        def execute(point: str, about: Any) -> Any:
            sent = about if isinstance(about, bytes) else json.dumps(about).encode()
            context = messages.NodeContext(node_name="node1")
            request = messages.ExecuteNodeHookRequest(hookPoint=point, vmi=sent, node_context=context)
            return client.ExecuteNodeHook(request, timeout=30)

        yield execute


def test_a_vm_without_pages_is_refused_with_a_status_that_has_the_numbers(call: Call) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call("PreVMStart", vmi("1", "2Gi"))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "default/vm-1 needs 1024 huge pages of 2048 KiB" in refused.value.details()


def test_a_vm_is_promised_its_pages_until_it_has_ended(call: Call, protocol: Any) -> None:
    assert call("PreVMStart", vmi("1")) == protocol[0].ExecuteNodeHookResponse()
    with pytest.raises(grpc.RpcError, match="512 of these are promised"):
        call("PreVMStart", vmi("2"))
    call("PostVMStop", vmi("1"))
    call("PreVMStart", vmi("2"))


def test_a_vm_is_read_whose_description_is_as_large_as_kubernetes_stores(call: Call) -> None:
    call("PreVMStart", vmi("1") | {"status": {"text": "x" * 1_500_000}})


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b"{}", b"\xff"], ids=repr)
def test_what_is_no_vm_is_an_error_and_the_hook_goes_on(call: Call, about: bytes) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call("PreVMStart", about)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    call("PreVMStart", vmi("1"))


def test_a_hook_that_is_ended_leaves_no_socket_and_one_that_was_killed_is_followed_by_another(
    hook: tuple[subprocess.Popen[bytes], Path], tmp_path: Path
) -> None:
    process, socket = hook
    process.kill()
    process.wait()
    assert socket.exists()
    another = subprocess.Popen([sys.executable, HOOKS / "node_hook.py", "--socket", socket, "--root", tmp_path])
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        grpc.channel_ready_future(channel).result(10)
    another.terminate()
    assert another.wait(10) == 0
    assert not socket.exists()

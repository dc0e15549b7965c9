# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains are found as a person names them, and who may not is told so."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.rig.test_driver import OURS, THEIRS, define, domain_named_as_a_uuid
from virt_dmem.errors import HypervisorDenied, HypervisorError, UsageError
from virt_dmem.hypervisor.session import Session

OTHER = "5b7e6f3c-0000-4000-8000-000000000002"


@pytest.fixture
def session() -> Iterator[Session]:
    with Session("test:///default") as found, domain_named_as_a_uuid(found):
        yield found


def test_a_person_s_word_is_a_uuid_first_then_an_id_or_a_name(session: Session) -> None:
    connection = session._connection
    default = connection.lookupByName("test")
    assert session.find("test") == default.UUIDString()
    assert session.find(str(default.ID())) == default.UUIDString()
    assert session.find(THEIRS) == OURS
    theirs = define(connection, THEIRS, "theirs")
    try:
        assert session.find(THEIRS) == THEIRS
        assert session.find(THEIRS.upper()) == THEIRS
    finally:
        theirs.undefine()
    with pytest.raises(HypervisorError, match=r"has no domain '9{30}'"):
        session.find("9" * 30)


def test_a_number_that_is_the_id_of_one_and_the_name_of_another_is_refused(session: Session) -> None:
    connection = session._connection
    default = connection.lookupByName("test")
    named = define(connection, OTHER, str(default.ID()))
    try:
        with pytest.raises(UsageError, match="is ambiguous") as caught:
            session.find(str(default.ID()))
        assert OTHER in str(caught.value)
        assert default.UUIDString() in str(caught.value)
    finally:
        named.undefine()


def test_a_user_whom_libvirt_s_socket_keeps_out_is_not_told_to_look_whether_it_runs() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to become another user")
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        Path(directory).chmod(0o711)
        listener.bind(path := f"{directory}/libvirt-sock")
        Path(path).chmod(0o600)
        listener.listen()
        if not (child := os.fork()):
            os.setgroups([])
            os.setuid(65534)
            try:
                Session(f"qemu+unix:///system?socket={path}")
            except HypervisorDenied as error:
                os._exit(0 if "running" not in error.hint and "sudo" in error.hint else 1)
            except HypervisorError:
                os._exit(2)
            os._exit(3)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_AUTH_UNAVAILABLE, libvirt.VIR_ERR_ACCESS_DENIED])
def test_a_user_to_whom_polkit_gives_no_leave_is_told_so(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """libvirt's answer is a fake: there is no polkit where the tests run."""
    said = "authentication unavailable: no polkit agent available to authenticate action 'org.libvirt.unix.manage'"

    def refuse(_uri: str) -> None:
        error = libvirt.libvirtError("")
        error.err = (code, libvirt.VIR_FROM_RPC, said, 2, "", None, None, -1, -1)
        raise error

    monkeypatch.setattr(libvirt, "open", refuse)
    with pytest.raises(HypervisorDenied, match="denies access: authentication unavailable") as caught:
        Session("qemu:///system")
    assert "group libvirt" in caught.value.hint

# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the kernel's log: this machine's, as far as it may be read, and files of its form."""

from __future__ import annotations

from pathlib import Path

from tests.rig.fake_tree import put
from virt_dmem.host import kernel_log

LOG = "6,1,0,-;Booting Linux\n SUBSYSTEM=cpu\n3,2,10,-;dmemfs: a; b\n"


def test_a_log_that_may_not_be_read_has_no_messages(tmp_path: Path) -> None:
    assert kernel_log.messages(root=tmp_path) == []
    with kernel_log.following(root=tmp_path) as said:
        assert said() == []


def test_a_message_is_all_behind_its_numbers_and_has_no_details(tmp_path: Path) -> None:
    put(tmp_path / "dev/kmsg", LOG)
    assert kernel_log.messages(root=tmp_path) == ["Booting Linux", "dmemfs: a; b"]


def test_what_was_said_before_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "dev/kmsg", LOG)
    with kernel_log.following(root=tmp_path) as said, (tmp_path / "dev/kmsg").open("a") as log:
        print("3,3,20,-;dmemfs: c", file=log, flush=True)
        assert said() == ["dmemfs: c"]


def test_the_log_of_this_machine_is_read_to_its_end() -> None:
    assert all(isinstance(message, str) for message in kernel_log.messages())

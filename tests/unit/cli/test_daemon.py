# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to virt-dmemd."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from virt_dmem.cli.daemon import connect
from virt_dmem.errors import DaemonDenied, DaemonUnreachable, PermissionRefused


def test_the_socket_is_where_the_configuration_says(nowhere: str, tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match=str(tmp_path / "run")):
        connect(argparse.Namespace(config=Path(nowhere)))


def test_who_may_not_connect_is_not_sent_to_the_group_for_what_only_root_may(
    monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    """The daemon's denial is a stand-in; ``ipc/test_client`` has a real socket that is closed."""

    def deny(_path: object) -> None:
        raise DaemonDenied("You may not connect.", hint="Join its group.")

    monkeypatch.setattr("virt_dmem.cli.daemon.Client", deny)
    args = argparse.Namespace(config=Path(nowhere))
    with pytest.raises(DaemonDenied):
        connect(args)
    with pytest.raises(PermissionRefused, match="Draining a pool needs root") as caught:
        connect(args, root_for="Draining a pool")
    assert "group" not in caught.value.hint

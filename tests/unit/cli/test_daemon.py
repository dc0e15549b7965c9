# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to virt-dmemd."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from virt_dmem.cli.daemon import connect
from virt_dmem.errors import DaemonUnreachable


def test_the_socket_is_where_the_configuration_says(nowhere: str, tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match=str(tmp_path / "run")):
        connect(argparse.Namespace(config=Path(nowhere)))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify that the messages of the control socket, with all their fields, stay as they are."""

from __future__ import annotations

from collections.abc import Callable

from virt_dmem.daemon.views import ControlInterface


def test_the_interface_is_that_of_earlier_versions(require_golden: Callable[[bytes, str], None]) -> None:
    require_golden(
        ControlInterface.render_interface_description(comments=False).encode(), "control-interface.varlink"
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors."""

from __future__ import annotations

from virt_dmem.errors import DmemError


def test_of_a_document_that_an_error_repeats_no_more_is_told_than_can_be_read() -> None:
    error = DmemError("x" * 5_000_000, hint="y" * 5_000_000)
    assert len(str(error)) < 10_000
    assert error.message.startswith("xxx")

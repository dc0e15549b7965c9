# SPDX-License-Identifier: GPL-2.0-or-later
"""Name the varlink interface, and the version of the schema of ``--json``."""

__all__ = ["INTERFACE", "SCHEMA_VERSION"]

INTERFACE = "dev.virt-dmem"
SCHEMA_VERSION = 1
"""Of the output of ``--json``: raised when a field is removed or changes its meaning, not when one is added."""

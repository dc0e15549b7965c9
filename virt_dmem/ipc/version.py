# SPDX-License-Identifier: GPL-2.0-or-later
"""The name of the varlink interface, and the version of what ``--json`` prints."""

__all__ = ["INTERFACE", "SCHEMA_VERSION"]

INTERFACE = "dev.virt-dmem"
SCHEMA_VERSION = 1
"""Of what ``--json`` prints: goes up when a field goes away or changes its meaning, not when one is added."""

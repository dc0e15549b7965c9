# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket between ``virt-dmemd`` and those who ask it: hook and command line."""

INTERFACE = "dev.virt-dmem"
SCHEMA_VERSION = 1
"""Of what ``--json`` prints: goes up when a field goes away or changes its meaning, not when one is added."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket between ``virt-dmemd`` and its callers: the wire only."""

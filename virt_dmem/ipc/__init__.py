# SPDX-License-Identifier: GPL-2.0-or-later
"""Talk over the control socket between ``virt-dmemd`` and its callers: the wire only."""

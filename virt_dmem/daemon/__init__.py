# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmemd``: event loop, service, and the events that it follows."""

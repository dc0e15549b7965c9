# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``virt-dmemd``: the event loop, the service, and the events it follows."""

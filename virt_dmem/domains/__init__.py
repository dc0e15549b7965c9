# SPDX-License-Identifier: GPL-2.0-or-later
"""Manage the memory of domains from start to stop: hooks, hotplug, migration, reconcile."""

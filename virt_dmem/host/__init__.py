# SPDX-License-Identifier: GPL-2.0-or-later
"""The host as its kernel shows it: nodes, huge pages, mounts, processes, physical memory."""

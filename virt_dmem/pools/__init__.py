# SPDX-License-Identifier: GPL-2.0-or-later
"""Pools of guest memory on this host: their records, segments and files."""

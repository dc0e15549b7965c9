# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks, run by hand on a rig of their own."""

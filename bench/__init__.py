# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurements and the demo: what is run by hand, on a rig of its own."""

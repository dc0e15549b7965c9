# SPDX-License-Identifier: GPL-2.0-or-later
"""The two programs of ours that are not Python, and how they are built."""

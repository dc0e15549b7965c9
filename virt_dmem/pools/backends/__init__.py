# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of memory that a pool can consist of."""

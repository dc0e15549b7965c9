# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocate memory of pools to domains: placement, ledger, inventory, reclaim."""

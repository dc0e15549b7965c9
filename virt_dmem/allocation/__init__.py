# SPDX-License-Identifier: GPL-2.0-or-later
"""Which domain has which memory: placement, ledger, inventory."""

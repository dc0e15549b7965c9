# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of pools and domains, as alerts, metrics, checks and a report."""

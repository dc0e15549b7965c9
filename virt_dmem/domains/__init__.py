# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of one domain, through all events of its life."""

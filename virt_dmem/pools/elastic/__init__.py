# SPDX-License-Identifier: GPL-2.0-or-later
"""Elastic pools of huge pages: segments that are taken when a domain starts, and given back after it."""

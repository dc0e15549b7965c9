# SPDX-License-Identifier: GPL-2.0-or-later
"""Adopt domains by rule: those whose XML another program generates, and that do not ask for pool memory."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Use the Cockpit page as an operator does, with a real Cockpit and Debian's Chromium."""

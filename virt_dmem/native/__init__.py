# SPDX-License-Identifier: GPL-2.0-or-later
"""The two C programs, and their build."""

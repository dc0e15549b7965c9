# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: its keys, and the files that it is read from."""

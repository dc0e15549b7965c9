# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file: what may stand in it, and the files that it is read from."""

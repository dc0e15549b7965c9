# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep memory populated and zeroed ahead of the next start."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is populated and zeroed ahead of the next start."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's physical memory: where it is, what the kernel does not use of it, and what to reserve at boot."""

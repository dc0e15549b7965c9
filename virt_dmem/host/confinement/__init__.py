# SPDX-License-Identifier: GPL-2.0-or-later
"""Let QEMU, where it is confined by a security module, use its own memory."""

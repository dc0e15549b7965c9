# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what QEMU is told of memory beside libvirt's own elements: its arguments, and the names of its memory."""

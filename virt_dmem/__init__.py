# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory for libvirt/QEMU from pools that cost the host nothing beyond themselves."""

__version__ = "0.1.0"

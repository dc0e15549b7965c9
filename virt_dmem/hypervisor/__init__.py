# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt and QEMU: the only package that talks to either."""

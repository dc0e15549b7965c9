# SPDX-License-Identifier: GPL-2.0-or-later
"""Talk to libvirt and QEMU; the only package that does."""

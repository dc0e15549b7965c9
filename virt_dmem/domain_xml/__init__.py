# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's domain XML: read, checked, rewritten. Pure: no file, no libvirt."""

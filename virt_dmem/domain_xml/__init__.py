# SPDX-License-Identifier: GPL-2.0-or-later
"""Read, check and rewrite libvirt's domain XML. Pure: no file but the templates, no libvirt."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Run OpenStack's own services from Debian's packages on a host with a pool."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory that outlives its QEMU: park a domain, unpark it, refresh its QEMU."""

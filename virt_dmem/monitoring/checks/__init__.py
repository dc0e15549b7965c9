# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem check``: verify installation and host setup."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""``virt-dmem-pages``: takes huge pages for elastic pools, and gives them back, for the sandboxed virt-dmemd."""

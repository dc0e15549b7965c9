# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of ``virt-dmem``: a module each."""

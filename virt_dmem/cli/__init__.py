# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``virt-dmem`` command: ``parser`` knows the words, a module per noun does the work, ``output`` prints."""

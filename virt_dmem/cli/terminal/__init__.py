# SPDX-License-Identifier: GPL-2.0-or-later
"""What needs a person at a terminal: progress, questions, colours."""

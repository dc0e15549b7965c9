# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that are neither part of the product nor a benchmark."""

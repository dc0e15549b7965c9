# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that belong to neither the product nor the benchmarks."""

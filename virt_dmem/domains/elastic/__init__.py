# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of elastic pools: taken when a domain needs it, given back when none has needed it for a while."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare the host with what is recorded of it, and put right what others changed, within limits."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Run work: off the event loop, within deadlines, again after a failure, and logged at a limited rate."""

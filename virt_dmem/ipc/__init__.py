# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: messages, server and client. The wire format is varlink's (https://varlink.org)."""

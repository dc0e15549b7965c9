# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages of ``make deb``, installed from the repository of ``make repo`` in roots of Debian releases.

``make test-packages`` builds them first. Nothing boots here; tests/lab has a whole host.
"""

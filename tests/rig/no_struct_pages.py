# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``python -m tests.rig.no_struct_pages``: a fake virt-dmemd that treats tmpfs as memory without struct pages.

It stands in for one with dmemfs pools, which no kernel of a distribution supports.
"""

from __future__ import annotations

import sys

from virt_dmem.daemon import main as daemon
from virt_dmem.pools.backends.tmpfs import Tmpfs


def main() -> int:
    """Run that daemon."""
    Tmpfs.has_struct_pages = False
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())

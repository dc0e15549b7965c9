# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.rig.no_struct_pages``: a fake virt-dmemd, to which tmpfs has no struct pages.

It stands for one with pools of dmemfs, of which no kernel of a distribution has any.
"""

from __future__ import annotations

import sys

from virt_dmem.daemon import main as daemon
from virt_dmem.pools.backends.tmpfs import Tmpfs


def main() -> int:
    """Be it."""
    Tmpfs.has_struct_pages = False
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())

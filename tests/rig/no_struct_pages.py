# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``python -m tests.rig.no_struct_pages``: a fake virt-dmemd that treats tmpfs as memory without struct pages.

It stands in for one with dmemfs pools, which no kernel of a distribution supports.
"""

from __future__ import annotations

import sys

from virt_dmem.daemon import main
from virt_dmem.pools.backends.tmpfs import Tmpfs

if __name__ == "__main__":
    Tmpfs.has_struct_pages = False
    sys.exit(main.main())

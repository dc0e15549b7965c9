# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m tests.rig.no_struct_pages``: a fake virt-dmemd, to which tmpfs has no struct pages.

It stands for one with pools of dmemfs, of which no kernel of a distribution has any.
"""

from __future__ import annotations

import sys

from virt_dmem.daemon import main
from virt_dmem.pools.backends.tmpfs import Tmpfs

if __name__ == "__main__":
    Tmpfs.has_struct_pages = False
    sys.exit(main.main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Make one root in which packages can be built and installed: the lab's own, with what debian/control names.

``python -m tests.packages.shared_root RELEASE`` prints its path, for ``PACKAGES_ROOT``. It is for a short test,
where the lab's root is there already; packaging/deb.sh otherwise builds in a root that has nothing else.
"""

from __future__ import annotations

import re
import sys

from tests.lab.image import the_root_with
from tests.rig.processes import RigError
from tests.rig.repository import REPOSITORY

_TOOLS = {"apt-utils", "build-essential", "gnupg", "lintian"}


def named_packages(control: str) -> set[str]:
    """Return the names of the packages that a control file depends on, of alternatives the first."""
    fields = re.findall(r"^(?:Build-)?Depends[-\w]*:(.*(?:\n .*)*)", control, re.MULTILINE)
    wanted = (one.strip().partition(" ")[0] for field in fields for one in field.split(","))
    return {name for name in wanted if name and not name.startswith(("$", "virt-dmem", "debhelper-compat"))}


def main() -> int:
    """Print the path of the root for the release that the command line names."""
    control = (REPOSITORY / "packaging/debian/control").read_text("utf-8")
    try:
        print(the_root_with(sys.argv[1], named_packages(control) | _TOOLS | {"debhelper"}))
    except RigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

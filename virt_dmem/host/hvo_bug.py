# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell by its release whether a kernel loses huge pages that HVO optimized when it frees them.

Linux 6.12.114 took "mm/hugetlb_vmemmap: fix incorrect vmemmap restore in rollback" with its base, "refactor code
around vmemmap_walk". Both presume that all tail pages share one pristine page, which 6.12 does not have: there each
restored page of struct pages gets the content of the first, and freeing the huge page finds "corrupted mapping in
tail page". docs/development/hvo-report.md has it whole.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["Verdict", "verdict"]


class Verdict(Enum):
    """What is known of a kernel."""

    GOOD = "good"
    SUSPECT = "suspect"
    """It may have taken the change, and was not looked at."""
    BAD = "bad"


_SERIES = re.compile(r"(\d+)\.(\d+)\.(\d+)(?!\d)")
_FIRST_BAD, _LAST_BAD = 114, 118
"""Of 6.12; 6.12.107 to .113 were looked at and are good, later ones than .118 were not looked at."""
_FIRST_SUSPECT_OF_6_18 = 51


def verdict(release: str) -> Verdict:
    """Return what is known of a kernel by its release (``uname -r``), such as ``6.12.117+deb13-amd64``."""
    found = _SERIES.match(release)
    if found is None:
        return Verdict.GOOD
    major, minor, patch = map(int, found.groups())
    match major, minor:
        case 6, 12 if patch >= _FIRST_BAD:
            return Verdict.BAD if patch <= _LAST_BAD else Verdict.SUSPECT
        case 6, 18 if patch >= _FIRST_SUSPECT_OF_6_18:
            return Verdict.SUSPECT
        case _:
            return Verdict.GOOD

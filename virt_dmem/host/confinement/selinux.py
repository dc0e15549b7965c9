# SPDX-License-Identifier: GPL-2.0-or-later
"""Label files for SELinux, where it is on.

The daemon needs no libselinux for that: a label is an extended attribute, ``security.selinux`` in xattr(7), and
SELinux is on where its file system is mounted.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from virt_dmem.host.kernel import ROOT
from virt_dmem.runtime.rate_limit import RateLimitedLog

__all__ = ["label_file", "label_of"]

log = RateLimitedLog(logging.getLogger(__name__))

_LABEL = "security.selinux"


def label_of(path: Path | str) -> str | None:
    """Return the label of a file; ``None`` where it has none, or cannot be read."""
    try:
        return os.fsdecode(os.getxattr(path, _LABEL)).rstrip("\0")
    except OSError:
        return None


def label_file(path: Path | str, label: str | None, *, root: Path = ROOT) -> None:
    """Give a file a label, where SELinux is on and there is one.

    A label that is rejected is logged: the policy decides whether QEMU may use the file as it is.
    """
    if label is None or not (root / "sys/fs/selinux/enforce").exists() or label_of(path) == label:
        return
    try:
        os.setxattr(path, _LABEL, os.fsencode(label) + b"\0")
    except (OSError, ValueError) as error:
        log(
            logging.WARNING,
            "label",
            "%s cannot be labelled %s for SELinux: %s",
            os.path.realpath(path),
            label,
            error,
        )

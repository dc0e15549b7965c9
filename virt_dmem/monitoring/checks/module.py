# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that the dmemfs module was built for each installed kernel: one without it finds out at its first boot."""

from __future__ import annotations

from virt_dmem.monitoring.checks.base import Machine, text_of
from virt_dmem.pools.backends.checks import Result, passed, warned
from virt_dmem.text import counted

__all__ = ["module_built"]

_BUILD = "/usr/lib/virt-dmem/module build"


def module_built(machine: Machine) -> Result:
    """Check each kernel with headers, and with a pool on dmemfs also those without.

    DKMS keeps the modules of other kernels when a build fails, and its error is lost in the output of an upgrade.
    """
    sources = machine.path("/usr/src").glob("virt-dmem-*/dkms.conf")
    versions = sorted(path.parent.name.removeprefix("virt-dmem-") for path in sources)
    if not versions:
        return passed("The sources of the module dmemfs are not installed.")
    kernels = sorted(path.parent.name for path in machine.path("/lib/modules").glob("*/modules.dep"))
    lacking = [kernel for kernel in kernels if not _has_module(machine, kernel)]
    failed = [kernel for kernel in lacking if machine.path(f"/lib/modules/{kernel}/build/Makefile").exists()]
    if failed:
        logs = [
            f"/var/lib/dkms/virt-dmem/{versions[-1]}/build/make.log",  # of DKMS, until a build succeeds
            "/var/log/virt-dmem-module.log",
        ]
        log = next((path for path in logs if machine.path(path).exists()), logs[0])
        return warned(
            f"There is no module dmemfs for kernel {', '.join(failed)}, whose headers are installed: building it"
            " failed. After a boot into it no pool on dmemfs can be mounted.",
            f"See {log}, then run '{_BUILD} {failed[0]}'. Until then boot another kernel, if pools are on dmemfs.",
        )
    if lacking and any(record.backend == "dmemfs" for record in machine.records()):
        return warned(
            f"There is no module dmemfs for kernel {', '.join(lacking)}, whose headers are not installed. After a"
            " boot into it no pool on dmemfs can be mounted.",
            f"Install its headers (Debian: linux-headers-{lacking[0]}).",
        )
    have = len(kernels) - len(lacking)
    return passed(f"The module dmemfs is there for {have} of {counted(len(kernels), 'installed kernel')}.")


def _has_module(machine: Machine, kernel: str) -> bool:
    lines = text_of(machine.path(f"/lib/modules/{kernel}/modules.dep")).splitlines()
    return any(line.partition(":")[0].rpartition("/")[2].startswith("dmemfs.ko") for line in lines)

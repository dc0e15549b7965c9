# SPDX-License-Identifier: GPL-2.0-or-later
"""Run tests with real mounts in a private mount namespace, invisible to the host."""

from __future__ import annotations

import faulthandler
import functools
import os
import traceback
from collections.abc import Callable
from typing import ParamSpec

import pytest

from tests.rig.private_mounts import leave_mount_namespace

__all__ = ["in_own_mount_namespace"]

P = ParamSpec("P")
HANGS_SECONDS = 600
"""Timeout after which the child dumps its stack: below pytest's, which would only show the waiting parent."""


def in_own_mount_namespace(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a child process outside the host's mount namespace; its failure is the test's."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root to mount")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reading)
                faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True, file=writing)
                leave_mount_namespace()
                test(*args, **kwargs)
                status = 0
            except BaseException:  # noqa: BLE001 - recorded as the test's failure
                os.write(writing, traceback.format_exc().encode()[-60000:])
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            complaint = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            pytest.fail(complaint or f"the child ended with wait status {status}", pytrace=False)

    return run

# SPDX-License-Identifier: GPL-2.0-or-later
"""Find, check and put aside the state files of parked domains, ``parked/UUID.state`` below the state directory."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from virt_dmem.allocation.models import Parked, Reservation
from virt_dmem.config.schema import Config
from virt_dmem.errors import DomainParked, DomainRefused, ExtentError
from virt_dmem.hypervisor.saved_state import SavedState, read_saved_state
from virt_dmem.os_errors import explained
from virt_dmem.pools import extent_files
from virt_dmem.units import MIB, format_size

__all__ = ["file_of", "past_of", "put_back", "require_room", "require_state", "secure"]

ROOM_BYTES = 128 * MIB
"""Free space that a state file must find: device state, and memory that is not RAM, such as a display's."""


def file_of(config: Config, uuid: str) -> Path:
    """Return the path of a domain's state file."""
    return Path(config.daemon.state_dir) / "parked" / f"{uuid}.state"


def past_of(state_file: Path) -> Path:
    """Return the name of a state file whose guest goes on: nobody takes it for that of a parked one."""
    return state_file.with_suffix(".past")


def put_back(state_file: Path) -> None:
    """Give a state file its name back: its guest did not go on after all."""
    if not state_file.exists():
        with suppress(FileNotFoundError):
            past_of(state_file).rename(state_file)


def require_room(directory: Path) -> None:
    """Create the directory of state files, for root alone, and require free space in it.

    :raise DomainRefused: When there is too little.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise explained(error) from error
    if free < ROOM_BYTES:
        raise DomainRefused(
            f"{directory} has {format_size(free)} left, and the state of a guest without its memory may need"
            f" {format_size(ROOM_BYTES)}.",
            hint="Free space on that file system.",
        )


def secure(path: Path) -> None:
    """Let only root read a state file, and have it on the disk."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)


def require_state(reservation: Reservation, parked: Parked) -> SavedState:
    """Return what the state file of a parked domain says, after looking that all its memory is there.

    :raise DomainParked: When it is not, or the file is not complete.
    """
    state = read_saved_state(parked.state_file)
    if state is None:
        raise DomainParked(
            f"The state file {parked.state_file} of domain {reservation.name} does not exist, or is not complete;"
            f" its memory of {format_size(reservation.size_bytes)} is kept.",
            hint="If another tool saved the domain at that moment, its file belongs to this memory: copy it there,"
            f" and try again. Otherwise 'virt-dmem unpark --discard {parked.uuid}' gives the memory back.",
        )
    for extent in reservation.extents:
        try:
            extent_files.file_id(extent.path)
            lost = "is smaller than it was" if extent.path.stat().st_size < extent.size_bytes else ""
        except (ExtentError, FileNotFoundError):
            lost = "is gone"
        if lost:
            raise DomainParked(
                f"The extent {extent.path} of domain {reservation.name}, which is parked, {lost}: its memory is"
                " lost.",
                hint="Look for who unmounted or changed the pool. 'virt-dmem unpark --discard"
                f" {reservation.uuid}' gives the guest up; after that it can be started anew.",
            )
    return state

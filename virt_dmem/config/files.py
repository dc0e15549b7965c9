# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the configuration files, each by itself and unchecked; ``schema`` defines their keys.

Apart from ``schema`` because ``virt-dmem list --json`` needs only the socket's path, and must be quick: no pathlib
and no typing here, and TOML is parsed only where it can matter.
"""

from __future__ import annotations

import os

from virt_dmem.errors import ConfigError

TYPE_CHECKING = False  # typing itself takes 2 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_RUN_DIR",
    "PAGES_SOCKET_NAME",
    "READERS_SOCKET_NAME",
    "SOCKET_NAME",
    "mentions",
    "read_files",
]

DEFAULT_FILE = "/etc/virt-dmem/virt-dmem.toml"
DEFAULT_RUN_DIR = "/run/virt-dmem"
SOCKET_NAME = "sock"
READERS_SOCKET_NAME = f"{SOCKET_NAME}-ro"
PAGES_SOCKET_NAME = f"{SOCKET_NAME}-pages"


def read_files(path: Path | str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of ``path``, then of each ``conf.d/*.toml`` beside it, in order of their names.

    Without ``path`` it is the default file, which may be missing.

    :raise ConfigError: When a file cannot be read, or is no TOML; the message names the file.
    """
    import tomllib  # noqa: PLC0415 -- 9 ms

    for file, text in _texts(path):
        try:
            yield file, tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise _unusable(file, error) from error


def mentions(name: str, path: Path | str | None = None) -> bool:
    """Return whether one of these files may set a key of this name, without a parser; comments are ignored.

    :raise ConfigError: When a file cannot be read; the message names the file.
    """
    lines = (line for _, text in _texts(path) for line in text.splitlines() if not line.startswith("#"))
    return any(name in line or "\\" in line for line in lines)  # TOML may write any letter of a key as an escape


def _texts(path: Path | str | None) -> Iterator[tuple[str, str]]:
    main = os.fspath(path or DEFAULT_FILE)
    drop_ins = os.path.join(os.path.dirname(main), "conf.d")  # noqa: PTH118, PTH120
    if path is not None or os.path.exists(main):  # noqa: PTH110
        yield main, _text(main)
    try:
        names = sorted(name for name in os.listdir(drop_ins) if name.endswith(".toml"))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unusable(drop_ins, error.strerror, error) from error
    for name in names:
        file = os.path.join(drop_ins, name)  # noqa: PTH118
        yield file, _text(file)


def _text(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123
            return opened.read()
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no configuration file {file}.", hint="Name an existing one with --config."
        ) from error
    except OSError as error:
        raise _unusable(file, error.strerror, error) from error
    except UnicodeDecodeError as error:
        raise _unusable(file, f"it is not UTF-8 (byte {error.start})") from error


def _unusable(file: str, reason: object, error: OSError | None = None) -> ConfigError:
    from virt_dmem.os_errors import remedy  # noqa: PLC0415 -- needed by few, and this is imported by all

    return ConfigError(
        f"The configuration file {file} cannot be used: {reason}.",
        hint=(remedy(error, file) if error else "")
        or "Correct it; virt-dmem.toml(5) describes the format and every key.",
    )

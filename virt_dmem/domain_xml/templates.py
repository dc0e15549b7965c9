# SPDX-License-Identifier: GPL-2.0-or-later
"""Load the XML fragments that are merged into domains: the shipped ones, or the administrator's instead."""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from virt_dmem.domain_xml.parse import XmlRefused, parse_xml
from virt_dmem.errors import ConfigError

__all__ = ["memory_backing"]

_REQUIRED = {"source": ("type", "file"), "access": ("mode", "shared"), "allocation": ("mode", "ondemand")}
_ALLOWED = {*_REQUIRED, "nosharepages", "locked", "discard"}


def _shipped_dir() -> Path:
    """Return the directory of the shipped templates: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "xml-templates"
    return inside if inside.is_dir() else package.parent / "xml-templates"


def memory_backing(templates_dir: Path | None = None) -> list[etree._Element]:
    """Return the elements for ``<memoryBacking>``, from ``memory-backing.xml``.

    ``templates_dir`` is the administrator's directory; a file there replaces the shipped one.

    :raise ConfigError: When the file cannot be read, or would make guest memory anything but a shared file without
        prefaulting; names the file.
    """
    file = _shipped_dir() / "memory-backing.xml"
    if templates_dir is not None and (templates_dir / file.name).exists():
        file = templates_dir / file.name
    try:
        root = parse_xml(file.read_bytes()).getroot()
    except (OSError, XmlRefused) as error:
        raise _broken(file, str(error)) from error
    if root.tag != "memoryBacking":
        raise _broken(file, f"its root element is {str(root.tag)!r}, not 'memoryBacking'")
    elements = [element for element in root if isinstance(element.tag, str)]
    names = [str(element.tag) for element in elements]
    if unknown := sorted(set(names) - _ALLOWED):
        raise _broken(file, f"it may not contain {unknown[0]!r}")
    if len(set(names)) != len(names):
        raise _broken(file, "it contains an element twice")
    for name, (attribute, value) in _REQUIRED.items():
        if not any(element.tag == name and element.get(attribute) == value for element in elements):
            raise _broken(file, f"it lacks <{name} {attribute}='{value}'/>")
    for element in elements:
        element.tail = None
    return elements


def _broken(file: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The template {file} cannot be used: {why}.", hint="Fix it, or remove it to use the one of the package."
    )

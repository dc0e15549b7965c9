# SPDX-License-Identifier: GPL-2.0-or-later
"""The linters, and the rules of this code base that no linter knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON_CODE = ("virt_dmem", "tests", "bench", "docs", "hatch_build.py")
HOOK = REPOSITORY / "hooks/qemu.d/50-virt-dmem"
SHELL_CODE = ("hooks/*/*", "systemd/*.sh", "tests/**/*.sh", "bench/**/*.sh", ".ci/run", ".ci/*.sh")

LAYERS = (
    {"", "text"},
    {"errors"},
    {"overdue"},
    {"patience", "beneath"},
    {"host", "native", "native.build", "sdnotify", "udev", "ipc", "ipc.messages", "cli", "cli.texts"}
    | {"tasks", "alert_codes", "xml_layout", "ram_ids", "seldom", "turns", "peer"},
    {"tries", "units", "config_files", "apparmor", "cli.answers", "ipc.connection"},
    {"ranges", "ipc.readers"},
    {"config", "secure_xml", "prefault", "placement", "ipc.client", "cli.output"},
    {"xml_fields", "memory_map", "dmem_parameter", "definitions"},
    {"memory_xml", "monitor_xml", "pinning", "boot_reserve"},
    {"qmp"},
    {"domain_xml", "templates", "libvirt_dirs", "extents", "backends.base", "cli.columns", "cli.progress"},
    {"hotplug_xml", "memory_devices", "qemu_user"},
    {"rewrite", "plan", "hypervisor", "guests", "backends.hugetlbfs", "backends.tmpfs", "cli.parser"}
    | {"backends.dmemfs_original"},
    {"backends.dmemfs"},
    {"records", "backends"},
    {"ledger_file", "pool_records"},
    {"ledger"},
    {"listing"},
    {"ballast", "ready"},
    {"pools", "alerts", "checks_dmemfs"},
    {"incoming", "inventory", "savings", "checks", "resize", "plan_host"},
    {"chunks", "segment_files", "stock", "wishes"},
    {"holding", "passthrough", "postcopy"},
    {"accounts"},
    {"lifecycle", "readying", "watch", "report"},
    {"changes"},
    {"virtio_mem"},
    {"hotplug", "mending"},
    {"reconcile", "autoapply", "metrics"},
    {"service", "follow"},
    {"ipc.server"},
    {"cli.apply", "cli.check", "cli.domain", "cli.explain", "cli.pool", "cli.rewrite"}
    | {
        "cli.completion",
        "cli.config",
        "cli.drain",
        "cli.hotplug",
        "cli.listing",
        "cli.plan_host",
        "cli.report",
        "cli.watch",
    },
    {"daemon", "cli.main"},
)
"""The modules of virt_dmem, from the ground to the top: each imports only from rows above its own here."""

ONLY_IN = {"libvirt": "hypervisor", "qemu": "qmp", "pyudev": "udev"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module by its name below virt_dmem; the package itself is the empty name."""
    package = REPOSITORY / "virt_dmem"
    for path in sorted(package.rglob("*.py")):
        yield ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip("."), path


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, by its full name, the name imported from it included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_has_nothing_to_say() -> None:
    run(sys.executable, "-m", "ruff", "check", *PYTHON_CODE)


def test_the_code_is_formatted() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", *PYTHON_CODE)


def test_the_types_fit() -> None:
    run(sys.executable, "-m", "mypy")


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = sorted(chain.from_iterable(REPOSITORY.glob(pattern) for pattern in SHELL_CODE))
    assert scripts
    run("shellcheck", *(str(path.relative_to(REPOSITORY)) for path in scripts if path.is_file()))


def test_every_module_has_its_layer() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == sorted(name for name, _ in modules())


@pytest.mark.parametrize(("name", "path"), [pytest.param(name, path, id=name) for name, path in modules()])
def test_imports_go_downwards_only(name: str, path: Path) -> None:
    rank = {module: row for row, layer in enumerate(LAYERS) for module in layer}
    for full in imported(path):
        package, _, module = full.partition(".")
        # a package is imported with each of its modules, and loads none of them
        if package == "virt_dmem" and module in rank and not name.startswith(f"{module}."):
            assert rank[module] < rank[name] or module == "", f"{name} imports {module}, which is not below it"


@pytest.mark.parametrize(("library", "owner"), ONLY_IN.items())
def test_a_library_that_talks_to_others_is_imported_in_one_place(library: str, owner: str) -> None:
    importers = {name for name, path in modules() if any(full.split(".")[0] == library for full in imported(path))}
    assert importers <= {owner}


def test_every_source_file_names_its_license() -> None:
    files = [*(path for _, path in modules()), HOOK]
    files += [*REPOSITORY.glob("tests/**/*.py"), *REPOSITORY.glob("bench/**/*.py"), REPOSITORY / "Makefile"]
    files += [*REPOSITORY.glob("virt_dmem/native/*.c"), *REPOSITORY.glob("systemd/*")]
    unlicensed = [
        str(path) for path in files if path.is_file() and "SPDX-License-Identifier: GPL-2.0" not in head(path)
    ]
    assert unlicensed == []


def head(path: Path) -> str:
    return path.read_text("utf-8")[:300]

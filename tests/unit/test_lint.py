# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the linters, and check the rules of this code base that no linter knows."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import virt_dmem
from tests.rig.repository import REPOSITORY

PYTHON_CODE = ("virt_dmem", "tests", "bench", "tools", "docs", "hatch_build.py", "hooks/kubevirt")
HOOK = REPOSITORY / "hooks/qemu.d/50-virt-dmem"
SHELL_CODE = ("hooks/*/[0-9]*", "hooks/**/*.sh", "packaging/*.sh", "tests/**/*.sh", "bench/**/*.sh", ".ci/*")

PACKAGES = (
    "runtime",
    "config",
    "native",
    "ipc",
    "host",
    "domain_xml",
    "hypervisor",
    "pools",
    "allocation",
    "domains",
    "monitoring",
    "daemon",
    "page_service",
    "cli",
)
"""The packages of virt_dmem, from the bottom to the top: each imports from those before it, and from what stands
beside them. Modules beside them import only each other."""

MOST_MODULES = 15
"""In one package, its ``__init__`` and its subpackages not counted; the commands are all of one kind."""

WITHOUT_TESTS = {
    "cli.command": "declares a command; the tests of registry and parser go through all of them",
    "ipc.version": "two constants, which the tests of messages and of the JSON schema compare",
    "monitoring.watch.base": "declares what a watch is; the tests of each watch look at its fields",
    "monitoring.watch.table": "lists the watches; the tests of host_watch and of the check go through them",
    "native.programs": "two paths, which every test of the programs runs",
    "pools.backends.checks": "declares the result of a check; the tests of each check look at its fields",
}
"""Modules of declarations, which have no behaviour to test, and where their content is tested."""

WITHOUT_MODULE = {
    "allocation.ledger_scale": "the cost of ledger and inventory with thousands of domains",
    "ansible": "packaging/ansible",
    "bench": "bench/, which is not part of virt_dmem",
    "bounds": "hostile numbers and sizes, in every module that reads some",
    "clock": "a clock that is set, in every module that reads one",
    "cloudstack_hook": "hooks/cloudstack",
    "cockpit": "packaging/cockpit",
    "dmemfs_table": "kernel/table.c",
    "docs": "docs/",
    "domain_xml.aarch64": "all that reads domains of arm64",
    "domain_xml.namespace_schema": "docs/reference/dmem-1.0.rng",
    "domain_xml.rewrite_schema": "rewrite, with random domains and libvirt's schema",
    "host.ram.memory_map_arm64": "memory_map and what it asks, on fakes of arm64 hosts",
    "install": "packaging/",
    "installed_documents": "docs/installed.py, and what is installed that names files",
    "kubevirt_hook": "hooks/kubevirt",
    "lint": "all source code",
    "one_bad_item": "one item that fails, in every part of the daemon that handles several",
    "packaging": "packaging/root.sh and the scripts that build packages with it",
    "pools.elastic.change_real": "change, on this machine's huge pages",
    "pools.lowered": "page_counts, hugetlbfs, manage and resize, on this machine's huge pages",
    "pools.manage_real": "manage, on this machine's huge pages",
    "run_record": "tests/rig/run_record.py, and what README makes of it",
    "vdsm_hook": "hooks/vdsm",
    "words": "all text that people read",
    "workers": "tests/rig",
}
"""Files of tests that are about something else than the module of their name, and what that is."""

ONLY_IN = {
    "libvirt": {"hypervisor.session", "hypervisor.saving", "hypervisor.connection"},
    "qemu": {"hypervisor.qmp"},
    "pyudev": {"host.uevents"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module by its name below virt_dmem; the package itself is the empty name."""
    package = REPOSITORY / "virt_dmem"
    for path in sorted(package.rglob("*.py")):
        yield ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip("."), path


def imported(path: Path) -> set[str]:
    """Return every module that a file imports anywhere, by full name, including the imported names."""
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


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", *PYTHON_CODE)


def test_the_code_is_formatted() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", *PYTHON_CODE)


def test_the_types_fit() -> None:
    run(sys.executable, "-m", "mypy")


def test_shellcheck_finds_nothing() -> None:
    scripts = sorted(chain.from_iterable(REPOSITORY.glob(pattern) for pattern in SHELL_CODE))
    assert scripts
    run("shellcheck", *(str(path.relative_to(REPOSITORY)) for path in scripts if path.is_file()))


MODULES = dict(modules())


def own_imports(path: Path) -> set[str]:
    """Return the modules of virt_dmem that a file imports, by their names below it, without packages."""
    below = {full.removeprefix("virt_dmem.") for full in imported(path)}
    return {name for name in below if name in MODULES and MODULES[name].name != "__init__.py"}


def rank(name: str) -> int:
    package = name.partition(".")[0]
    return PACKAGES.index(package) if package in PACKAGES else -1


PLURALS = "alerts|checks|connections|devices|domains|extents|files|pages|pools|processes|segments|times"
ALWAYS_MANY = {"{len(pools)} pools": "of which none is the default", "{len(some)} domains": "of the same name"}
"""What is said of two or more only."""


def test_a_number_that_may_be_one_is_counted_with_its_noun() -> None:
    """'1 domains' comes from a plural behind a number; ``text.counted`` knows both forms. Constants are many."""
    found = [
        f"{name}: {match[0]}"
        for name, path in MODULES.items()
        for match in re.finditer(
            rf"(?:\{{[^{{}}]*[a-z()][^{{}}]*\}}|%d) (?:huge )?(?:{PLURALS})\b", path.read_text("utf-8")
        )
        if not re.match(r"\{[A-Z_]+[:}]", match[0])
        and not re.match(r"\{format_size", match[0])
        and match[0] not in ALWAYS_MANY
    ]
    assert found == []


def test_the_package_says_what_it_consists_of() -> None:
    listed = re.findall(r"^\* ``(\w+)``", virt_dmem.__doc__ or "", re.MULTILINE)
    assert tuple(listed) == PACKAGES
    assert {path.parent.name for path in (REPOSITORY / "virt_dmem").glob("*/__init__.py")} == set(PACKAGES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_from_package_to_package_downwards_only(name: str) -> None:
    for other in own_imports(MODULES[name]):
        same = other.partition(".")[0] == name.partition(".")[0] or rank(other) == rank(name) == -1
        assert same or rank(other) < rank(name), f"{name} imports {other}, which is not below it"


def test_imports_form_no_cycle() -> None:
    graphlib.TopologicalSorter({name: own_imports(path) for name, path in MODULES.items()}).prepare()


def test_a_package_holds_no_code_and_no_more_modules_than_one_can_survey() -> None:
    packages = {path.parent: path for path in MODULES.values() if path.name == "__init__.py"}
    for directory, path in packages.items():
        assert not imported(path) - {"__future__", "__future__.annotations"}, f"{path} imports"
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
        if directory.name != "commands":
            assert len([*directory.glob("[!_]*.py")]) <= MOST_MODULES, directory


def test_the_tests_mirror_the_modules() -> None:
    programs = {f"native.{path.stem}" for path in (REPOSITORY / "virt_dmem/native").glob("*.c")}
    tested = programs | {name for name, path in MODULES.items() if path.name != "__init__.py"}
    tests = REPOSITORY / "tests/unit"
    found = {
        ".".join([*path.relative_to(tests).parent.parts, path.stem.removeprefix("test_")])
        for path in tests.rglob("test_*.py")
    }
    assert tested - found == WITHOUT_TESTS.keys(), (
        "each module has its file of tests, or stands there with the reason"
    )
    assert found - tested == WITHOUT_MODULE.keys(), (
        "each file of tests has its module, or stands there with the reason"
    )


def test_the_daemon_neither_creates_nor_resizes_pools() -> None:
    seen: set[str] = set()
    left = ["daemon.main"]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += own_imports(MODULES[name])
    assert not seen & {"pools.manage", "pools.resize"}


def test_only_the_daemons_views_know_the_messages_of_the_wire() -> None:
    importers = {name for name, path in MODULES.items() if "ipc.messages" in own_imports(path)}
    assert {name for name in importers if not name.startswith("ipc.")} == {"daemon.views"}


@pytest.mark.parametrize(("library", "owners"), ONLY_IN.items())
def test_a_library_that_talks_to_others_is_imported_in_one_place(library: str, owners: set[str]) -> None:
    importers = {name for name, path in modules() if any(full.split(".")[0] == library for full in imported(path))}
    assert importers <= owners


def test_every_source_file_names_its_license() -> None:
    files = [*(path for _, path in modules()), HOOK]
    files += [*REPOSITORY.glob("tests/**/*.py"), *REPOSITORY.glob("bench/**/*.py"), REPOSITORY / "Makefile"]
    files += [*REPOSITORY.glob("tools/**/*.py"), *REPOSITORY.glob("virt_dmem/native/*.c")]
    files += [*REPOSITORY.glob("systemd/*"), *REPOSITORY.glob("packaging/*")]
    files += [*REPOSITORY.glob("packaging/ansible/**/*.yml"), REPOSITORY / "packaging/ansible/.ansible-lint"]
    unlicensed = [
        str(path) for path in files if path.is_file() and "SPDX-License-Identifier: GPL-2.0" not in head(path)
    ]
    assert unlicensed == []


def head(path: Path) -> str:
    return path.read_text("utf-8")[:300]

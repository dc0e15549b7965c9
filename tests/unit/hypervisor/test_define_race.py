# SPDX-License-Identifier: GPL-2.0-or-later
"""Definitions are gathered while a file is replaced, and those of another tool are found among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from virt_dmem.hypervisor.define_race import Definitions, same, watch


def xml(title: str) -> bytes:
    return f"<domain type='kvm'><name>a</name><title>{title}</title></domain>".encode()


def replace(directory: Path, content: bytes) -> None:
    """Replace a file as libvirt's virFileRewrite() does."""
    fresh = directory / "a.xml.new"
    fresh.write_bytes(content)
    fresh.rename(directory / "a.xml")


def written(*titles: str, count: int | None = None) -> Definitions:
    found = Definitions()
    found.documents = [xml(title) for title in titles]
    found.count = len(titles) - 1 if count is None else count
    return found


def test_what_replaces_the_file_is_gathered_and_counted(tmp_path: Path) -> None:
    replace(tmp_path, xml("before"))
    with watch(tmp_path, "a") as found:
        replace(tmp_path, xml("one"))
        (tmp_path / "b.xml").write_bytes(b"another domain")
        replace(tmp_path, xml("two"))
        replace(tmp_path, xml("three"))
    assert found.count == 3
    assert set(found.documents) <= {xml("before"), xml("one"), xml("two"), xml("three")}
    assert found.documents[-1] == xml("three")


def test_where_nothing_can_be_read_nothing_is_gathered(tmp_path: Path) -> None:
    with watch(tmp_path / "not-there", "a") as found:
        pass
    assert (found.documents, found.count) == ([], 0)


@pytest.mark.parametrize(
    ("titles", "theirs"),
    [
        (["before", "ours"], None),
        (["before", "theirs", "ours"], "theirs"),
        (["theirs", "ours"], "theirs"),
        (["before", "ours", "later"], None),
        (["before", "theirs", "ours", "later"], "theirs"),
        (["before", "theirs", "before", "theirs too", "ours"], "theirs too"),
        (["before", "before", "ours"], None),
        (["before", "theirs"], None),
    ],
)
def test_only_what_came_before_ours_and_is_news_was_overwritten(titles: list[str], theirs: str | None) -> None:
    found = written(*titles).overwritten(xml("before"), xml("ours"))
    assert (found and same(found, xml(theirs or ""))) == (theirs and True)


def test_what_could_not_be_read_is_known_to_be_missing() -> None:
    assert written("before", "ours", count=2).may_miss_some(xml("ours"))
    assert written("before", "x", "y", count=2).may_miss_some(xml("ours"))
    assert not written("before", "x", "ours").may_miss_some(xml("ours"))
    assert not written("before", "ours").may_miss_some(xml("ours"))
    assert not written().may_miss_some(xml("ours"))


def test_comments_blanks_and_the_order_in_memory_backing_mean_nothing_to_libvirt() -> None:
    one = b"<domain>\n<!-- x --><memoryBacking><a/>\n <b/></memoryBacking></domain>"
    assert same(one, b"<domain><memoryBacking><b/><a/></memoryBacking></domain>")
    assert not same(one, b"<domain><memoryBacking><b/></memoryBacking></domain>")

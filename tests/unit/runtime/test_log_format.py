# SPDX-License-Identifier: GPL-2.0-or-later
"""Names that users choose can neither control a terminal nor forge lines of the log."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.rig.repository import REPOSITORY


@pytest.mark.parametrize("journal", [False, True], ids=["terminal", "journal"])
def test_a_name_controls_no_terminal_that_shows_the_log_and_writes_no_lines_of_its_own(journal: bool) -> None:
    program = f"""
        import logging, os, sys
        os.environ.pop("JOURNAL_STREAM", None)
        if {journal}:
            os.environ["JOURNAL_STREAM"] = "1:1"
        from virt_dmem.runtime.log_format import set_up_logging
        set_up_logging("info")
        name = "a\\x9b2J\\u202eb\\n<0>all is lost\\r\\x1b[2Jé" + "n" * 1_000_000
        logging.getLogger("x").warning("%s: prepared", name)
        try:
            raise ValueError(name[:50])
        except ValueError:
            logging.getLogger("x").exception("failed")
        raise ValueError(name[:50])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False, cwd=REPOSITORY
    )
    said = done.stderr.decode()
    assert [c for c in said if not c.isprintable() and c != "\n"] == []
    assert len(said) < 50_000
    assert "é" in said
    lines = said.splitlines()
    assert "prepared" not in lines[0]  # it is cut
    if journal:
        assert {line[:3] for line in lines} == {"<4>", "<3>", "<2>"}
    assert not any(line.startswith(("<0>", "all is lost")) for line in lines)

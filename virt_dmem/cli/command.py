# SPDX-License-Identifier: GPL-2.0-or-later
"""Declare commands."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from virt_dmem.cli.columns import Table
    from virt_dmem.cli.output import Output
    from virt_dmem.errors import ExitStatus

__all__ = ["Command"]


class Command:
    """One command: parser, help, manual page, completion and JSON Schema are all made from this.

    ``name`` is what is typed, such as ``pool create``; ``summary`` begins with a verb and has no full stop.
    ``about`` holds the paragraphs below it in ``--help`` and the manual page. ``arguments`` adds to the command's
    own parser. ``columns`` is the table that ``--output`` chooses from; with ``selects`` its rows can
    be filtered and ordered. ``answer`` names the type of the ``--json``
    output: a class of the command's own module, or of ``json_schema``.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        run: Callable[[argparse.Namespace, Output], ExitStatus],
        *,
        answer: str,
        about: str = "",
        arguments: Callable[[argparse.ArgumentParser], None] | None = None,
        columns: Table | None = None,
        selects: bool = False,
    ) -> None:
        self.name = name
        self.summary = summary
        self.run = run
        self.answer = answer
        self.about = about
        self.arguments = arguments
        self.columns = columns
        self.selects = selects

# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect Ansible with a container of the tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: container
short_description: run tasks in a container of the tests
description: As root, by a command that enters it.
author: the virt-dmem developers
options:
  enter:
    description: That command, which a program and its arguments follow.
    type: list
    elements: str
    required: true
    vars:
      - name: container_enter
"""
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


class Connection(ConnectionBase):
    """A connection, which lasts for one command."""

    transport = "container"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run("/bin/sh", "-c", cmd, stdin=in_data)

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        self._require("/usr/bin/dd", "status=none", f"of={out_path}", stdin=Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        Path(out_path).write_bytes(self._require("/usr/bin/cat", in_path))

    def close(self) -> None:
        self._connected = False

    def _require(self, *command: str, stdin: bytes | None = None) -> bytes:
        status, said, complaint = self._run(*command, stdin=stdin)
        if status:
            raise AnsibleError(f"{' '.join(command)}: status {status}: {complaint.decode(errors='replace')}")
        return said

    def _run(self, *command: str, stdin: bytes | None) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [*self.get_option("enter"), *command], input=stdin or b"", capture_output=True, env=_ENVIRONMENT,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

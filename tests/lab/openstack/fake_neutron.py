# SPDX-License-Identifier: GPL-2.0-or-later
"""Fake neutron, the network service, for nova: a network service that has no networks, ports or groups at all.

nova asks it for the ports of each server, also of those that were created without a network.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ADDRESS = ("", 9696)


class NoNetworks(BaseHTTPRequestHandler):
    """Answer every list with an empty one, and offer no extension."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer ``/v2.0/ports.json`` with ``{"ports": []}``, and so on; ``/`` with the only version."""
        path = urlsplit(self.path).path.rstrip("/").removesuffix(".json")
        what = path.rpartition("/")[2].replace("-", "_")
        if path in {"", "/v2.0"}:
            answer: object = {
                "versions": [
                    {
                        "id": "v2.0",
                        "status": "CURRENT",
                        "links": [{"rel": "self", "href": f"http://{self.headers['Host']}/v2.0/"}],
                    }
                ]
            }
        else:
            answer = {what: []}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(_ADDRESS, NoNetworks).serve_forever()

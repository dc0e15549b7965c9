# SPDX-License-Identifier: GPL-2.0-or-later
"""See the page of a host with four NUMA nodes, an elastic pool and a parked guest. ``make test-cockpit`` runs it.

No machine of the tests has both Cockpit and several nodes. So this machine's Chromium shows the page, with
stand-ins for Cockpit and for virt-dmem: the answers in ``several_nodes.json`` are of no real host, and
``tests/unit/test_cockpit`` holds them against the schema.
``story.py`` has a real virt-dmemd and Cockpit, on one node.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tests.lab.cockpit.browser import Browser
from tests.lab.container import Container
from tests.rig.repository import REPOSITORY

BUILT = REPOSITORY / "build/cockpit"
PICTURES = REPOSITORY / os.environ.get("COCKPIT_PICTURES", "build/cockpit-pictures")
ANSWERS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
STAND_IN = """
const answers = ANSWERS;
function later(argv) {
    const said = answers[argv.join(" ")];
    return {
        then(done, failed) {
            if (said !== undefined)
                setTimeout(() => done(JSON.stringify(said), ""), 0);
            else if (argv[1] !== "events")
                setTimeout(() => failed({ problem: null, message: argv.join(" "), exit_status: 1 }, ""), 0);
        },
        stream() { return this; },
        close() {},
    };
}
window.cockpit = { spawn: later, permission: () => Object.assign(new EventTarget(), { allowed: true }) };
"""


class ThisMachine:
    """This machine, as far as a browser needs it."""

    def begin(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program with pipes to its input and from its output."""
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of that host."""
    if not (BUILT / "index.js").exists():
        pytest.skip("needs the page: 'make cockpit' builds it")
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(BUILT, site / "virt-dmem")
    (site / "base1").mkdir()
    (site / "base1/cockpit.js").write_text(STAND_IN.replace("ANSWERS", json.dumps(ANSWERS)))
    PICTURES.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Browser(cast("Container", ThisMachine())) as browser:
            browser.go(f"http://127.0.0.1:{server.server_address[1]}/virt-dmem/index.html")
            browser.wait("page.querySelector('.dmem-domain') && true", timeout=60)
            yield browser
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve files without a log."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def pool(name: str) -> dict[str, Any]:
    (found,) = [pool for pool in ANSWERS["virt-dmem pool list --json"]["pools"] if pool["name"] == name]
    return dict(found)


def bars(browser: Browser, name: str) -> list[list[str]]:
    """Return what the bars of a pool say: title and words of each."""
    card = f"page.querySelector('[aria-label=\"Pool {name}\"]')"
    found: list[str] = browser.ask(
        f"[...{card}.querySelectorAll('.dmem-bar')].map(bar => bar.getAttribute('aria-label'))"
    )
    return [label.split(": ", 1) for label in found]


def test_each_node_has_a_bar_of_its_own(browser: Browser) -> None:
    nodes = pool("guests")["nodes"]
    assert len(nodes) == 4
    found = bars(browser, "guests")
    assert [title for title, _ in found] == [f"node {node['node']}" for node in nodes]
    assert len({words for _, words in found}) > 1, "they differ"
    for node, (_, words) in zip(nodes, found, strict=True):
        assert ("used" in words) == bool(node["reserved_bytes"])


def test_an_elastic_pool_shows_what_it_has_taken_of_what_it_may_have(browser: Browser) -> None:
    first, *others = bars(browser, "burst")
    assert first[0] == "in all"
    assert "not taken from the host" in first[1]
    assert len(others) == len(pool("burst")["nodes"])
    text = browser.ask("page.querySelector('[aria-label=\"Pool burst\"]').innerText")
    assert "24 GiB taken, at most 96 GiB" in text
    assert "more now, when domains start" in text
    assert browser.ask("!page.querySelector('[aria-label=\"Resize burst\"]')"), "its size follows its domains"
    assert browser.ask("!!page.querySelector('[aria-label=\"Resize guests\"]')")


def test_a_parked_guest_is_shown_as_such_with_the_memory_that_it_keeps(browser: Browser) -> None:
    (parked,) = [one for one in ANSWERS["virt-dmem list --json"]["domains"] if one["phase"] == "parked"]
    line = browser.ask(
        "[...page.querySelectorAll('.dmem-domain')].map(one => one.innerText.split('\\n').join(' '))"
        f".find(text => text.includes({json.dumps(parked['name'])}))"
    )
    assert "parked" in line
    assert "of guests" in line


def test_everything_was_answered(browser: Browser) -> None:
    assert "gave no answer" not in browser.text()
    assert "shop" in browser.text()


def test_pictures_are_taken_and_nothing_went_wrong(browser: Browser) -> None:
    height = 100 + browser.ask("Math.ceil(page.querySelector('main').getBoundingClientRect().bottom)")
    browser.picture(PICTURES / "nodes.png", width=1280, height=height)
    assert (PICTURES / "nodes.png").stat().st_size < 150_000
    assert [said for said in browser.complaints if "/static/fonts/" not in said and "favicon" not in said] == []

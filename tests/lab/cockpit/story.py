# SPDX-License-Identifier: GPL-2.0-or-later
"""Log in to Cockpit and use the page, with a real virt-dmemd and libvirt; one story. ``make test-cockpit`` runs it.

The host is a container with Debian 13's Cockpit and Chromium, where virt-dmem and the page are installed
as packages from the repository of ``make repo``; guests run under TCG. Pictures go to
``build/cockpit-pictures``, or, with COCKPIT_PICTURES=docs/guide/cockpit, to the documents.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cockpit.browser import Browser
from tests.lab.conftest import HOST
from tests.lab.container import Container
from tests.packages.host_root import APT_REPOSITORY, host_root
from tests.rig.domains import domain_xml
from tests.rig.hugepages_lock import hugepages_lent
from tests.rig.private_libvirt import CONSOLES
from tests.rig.repository import REPOSITORY

COCKPIT = (
    *("cockpit-bridge", "cockpit-system", "cockpit-ws", "chromium"),
    *("fonts-dejavu-core", "libpam-systemd", "sudo"),
)
PICTURES = REPOSITORY / os.environ.get("COCKPIT_PICTURES", "build/cockpit-pictures")
MIB = 1 << 20
PAGE = "http://localhost:9090/virt-dmem"
HOSTILE = "--all <b onmouseover='alert(1)'>\u202e"
"""The name of a domain: it looks like an option and like HTML, and turns the direction of text."""
COCKPITS_OWN = re.compile(r" http://localhost:9090/cockpit/(login|@localhost/shell/\S+)$")
"""What Chromium complains about without our page as well: a first visit is not logged in, and a font is missing."""


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[Container]:
    """Provide a host with Cockpit and the page, an administrator, and three domains in libvirt."""
    root = host_root("trixie", COCKPIT, name="cockpit")
    with hugepages_lent(), Container(root) as host:
        request.node.stash[HOST] = host
        host.run(["/usr/bin/tar", "-xP"], stdin=packed(APT_REPOSITORY))
        host.run(f"cp {APT_REPOSITORY}/trixie.sources /etc/apt/sources.list.d/virt-dmem.sources")
        host.run("apt-get -q update")
        host.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y install cockpit-virt-dmem", timeout=400)
        host.write("/etc/virt-dmem/conf.d/lab.toml", "[prefault]\nready_pressure = 100.0\n")  # however busy it is
        host.run("systemctl restart virt-dmemd.service && systemctl start libvirtd.service")
        host.run("useradd -m -s /bin/bash -G sudo admin && echo admin:foobar | chpasswd")
        host.run(f"mkdir -p {CONSOLES}")
        define(host, "web1")
        define(host, "web2")
        define(host, HOSTILE)
        host.run("systemctl start cockpit.socket")
        yield host


@pytest.fixture(scope="module")
def browser(host: Container) -> Iterator[Browser]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with Browser(host) as browser:
        yield browser


def packed(directory: Path) -> bytes:
    return subprocess.run(["tar", "-cP", directory], capture_output=True, check=True).stdout


def define(host: Container, name: str) -> None:
    xml = domain_xml(name, memory="64MiB", uuid=str(uuids.uuid5(uuids.NAMESPACE_DNS, name)), kind="qemu")
    host.run("cat >/tmp/domain.xml && virsh -q define /tmp/domain.xml", stdin=xml)


def log_in(browser: Browser, *, superuser: bool) -> None:
    """Log in as a person does who had administrative access the last time, or had not."""
    browser.new_tab()  # a page that is logged in would ask whether to leave it
    browser.forget_cookies()
    browser.go(PAGE)
    browser.wait("shown(document.getElementById('login-user-input')) && true", timeout=60)
    kept = "any" if superuser else "none"
    browser.ask(f"localStorage.setItem('superuser:admin', '{kept}') ?? true")
    for field, value in (("login-user-input", "admin"), ("login-password-input", "foobar")):
        browser.ask(f"(document.getElementById('{field}').value = '{value}', true)")
    browser.ask("(document.getElementById('login-button').click(), true)")
    browser.wait("page !== document && page.querySelector('h1') && true", timeout=60)


def shown(browser: Browser, words: str, *, timeout: float = 20.0) -> None:
    browser.wait(f"page.body.innerText.includes({json.dumps(words)})", timeout=timeout)


def pool(host: Container) -> dict[str, Any]:
    (found,) = host.json("virt-dmem pool list --json")["pools"]
    return dict(found)


def refused(host: Container, command: str) -> dict[str, str]:
    error = json.loads(host.run(f"{command} --json", check=False).stdout)["error"]
    return {key: str(value) for key, value in error.items()}


def difference_shown(host: Container, browser: Browser, name: str) -> None:
    """Have the page show what applying a domain changes, which changes nothing yet."""
    browser.click("Apply to a domain")
    browser.choose("Domain", name.rstrip("\u202e"))
    browser.click("Show the difference")
    browser.wait("page.querySelectorAll('.dmem-line-added').length > 0")
    assert "<access mode=" in browser.text()
    assert "virt-dmem" not in persistent_xml(host, name)


def applied(host: Container, browser: Browser, name: str) -> None:
    """Confirm that, and look at the domain's XML."""
    browser.click("Apply")
    browser.wait("!page.querySelector('.dmem-diff')")
    assert "<access mode='shared'/>" in persistent_xml(host, name)


def persistent_xml(host: Container, name: str) -> str:
    return host.run(f"virsh dumpxml --inactive {uuids.uuid5(uuids.NAMESPACE_DNS, name)}").stdout


def test_without_administrative_access_the_page_says_what_the_command_says(
    host: Container, browser: Browser
) -> None:
    log_in(browser, superuser=False)
    error = refused(host, "runuser -u admin -- virt-dmem pool list")
    shown(browser, error["message"])
    shown(browser, error["hint"])
    browser.click(f"What does {error['code']} mean?")
    shown(browser, host.json(f"virt-dmem explain {error['code']} --json")["explanation"])
    assert browser.ask("named('button', 'Create pool').disabled")


def test_a_host_without_a_pool_offers_to_create_one(browser: Browser) -> None:
    log_in(browser, superuser=True)
    shown(browser, "This host has no pool yet", timeout=40)
    browser.click("Create the first pool")
    browser.fill("Name", "guests")
    browser.fill("Size", "256M")
    browser.picture(PICTURES / "create.png", width=1280, height=900)
    browser.click("Create")
    shown(browser, "Pool guests is created, with 256 MiB.", timeout=60)


def test_the_pool_is_there(host: Container, browser: Browser) -> None:
    found = pool(host)
    assert (found["name"], found["capacity_bytes"], found["backend"]) == ("guests", 256 * MIB, "hugetlbfs")
    assert found["on_boot"] is True
    browser.wait("page.querySelector('[aria-label=\"Pool guests\"] .dmem-bar') && true")


def test_a_pool_that_cannot_be_created_is_refused_in_the_commands_own_words(
    host: Container, browser: Browser
) -> None:
    browser.click("Create pool")
    browser.fill("Name", "guests")
    browser.fill("Size", "2M")
    browser.click("Create")
    error = refused(host, "virt-dmem pool create guests --size 2M")
    shown(browser, error["message"])
    shown(browser, error["hint"])
    browser.fill("Size", "much")
    browser.click("Create")
    shown(browser, refused(host, "virt-dmem pool create guests --size much")["message"])
    browser.click("Cancel")


@pytest.mark.parametrize("name", ["web1", "web2"])
def test_a_domain_is_applied_once_its_difference_was_shown(host: Container, browser: Browser, name: str) -> None:
    difference_shown(host, browser, name)
    if name == "web1":
        browser.picture(PICTURES / "apply.png", width=1280, height=900)
        browser.picture(PICTURES / "apply-narrow.png", width=400, height=800)
    applied(host, browser, name)


def test_a_domain_that_starts_is_shown_with_its_memory_and_time_line(host: Container, browser: Browser) -> None:
    host.run("virsh -q start web1", timeout=120)
    shown(browser, "64 MiB of guests")
    browser.wait("page.querySelector('.dmem-used') && page.querySelector('.dmem-ready') && true", timeout=60)
    browser.click("Last start of web1")
    browser.wait("page.querySelectorAll('.dmem-step').length > 3")
    assert "pool memory added" in browser.text()


def test_an_alert_is_shown_with_what_to_do(host: Container, browser: Browser) -> None:
    host.run("virt-dmem pause-apply")
    alerts = host.json("virt-dmem alerts --json")["alerts"]
    (alert,) = [alert for alert in alerts if alert["code"] == "apply-paused"]
    shown(browser, alert["message"])
    shown(browser, alert["hint"])
    browser.picture(PICTURES / "overview.png", width=1280, height=1300)
    browser.picture(PICTURES / "overview-narrow.png", width=400, height=1500)
    browser.click(f"What does {alert['code']} mean?")
    shown(browser, host.json(f"virt-dmem explain {alert['code']} --json")["explanation"][:60])
    host.run("virt-dmem pause-apply --resume")
    browser.wait(f"!page.body.innerText.includes({json.dumps(alert['message'])})")


def test_a_name_that_looks_like_html_and_like_an_option_is_only_text(host: Container, browser: Browser) -> None:
    difference_shown(host, browser, HOSTILE)
    applied(host, browser, HOSTILE)
    shown(browser, HOSTILE.replace("\u202e", "\\u{202e}"))
    assert browser.ask("page.querySelector('b') === null")
    assert browser.ask("!page.body.innerText.includes('\\u202e')")


def test_a_resize_first_shows_what_it_does(host: Container, browser: Browser) -> None:
    browser.click("Resize guests")
    browser.fill("New size", "320M")
    browser.click("Show what it does")
    shown(browser, "Segment guests+1 is added, with 64 MiB")
    assert pool(host)["capacity_bytes"] == 256 * MIB
    browser.click("Resize")
    shown(browser, "Pool guests has 320 MiB.", timeout=60)
    assert pool(host)["capacity_bytes"] == 320 * MIB


def test_a_resize_that_is_refused_says_why(host: Container, browser: Browser) -> None:
    browser.click("Resize guests")
    browser.fill("New size", "7=64M")
    browser.click("Show what it does")
    error = refused(host, "virt-dmem pool resize guests --dry-run --node 7=64M")
    shown(browser, error["message"])
    browser.click("Cancel")


def test_without_virt_dmemd_the_page_says_so_and_shows_what_is_known(host: Container, browser: Browser) -> None:
    host.run("systemctl stop virt-dmemd.socket virt-dmemd.service")
    browser.wait("page.querySelector('.dmem-unknown') && true", timeout=40)
    host.run("systemctl start virt-dmemd.socket virt-dmemd.service")
    browser.wait("!page.querySelector('.dmem-unknown')", timeout=40)


def test_nothing_went_wrong_in_the_browser(browser: Browser) -> None:
    ours = [said for said in browser.complaints if not COCKPITS_OWN.search(said)]
    assert ours == [], "\n".join(browser.complaints)


def test_the_pictures_are_small() -> None:
    assert {path.name for path in PICTURES.glob("*.png") if path.stat().st_size > 150_000} == set()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive a Chromium in a container, by the Chrome DevTools protocol over pipes: no driver, no port.

With ``--remote-debugging-pipe`` Chromium reads messages from file descriptor 3 and writes them to 4; each is JSON
and ends with a null byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import time
from pathlib import Path
from typing import Any, Self

from tests.lab.container import Container
from tests.lab.host import PATIENCE
from tests.rig.processes import RigError

__all__ = ["Browser"]

_START = 'exec 3<&0 4>&1 </dev/null >/dev/null 2>/tmp/chromium.log; exec chromium "$@" about:blank'
_OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--user-data-dir=/tmp/chromium"),
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
)
"""Its sandbox refuses root; the container is one."""
_IN_PAGE = """
const page = [...document.querySelectorAll("iframe")].map(frame => frame.contentDocument)
    .find(inner => inner && inner.getElementById("app")) ?? document;
const shown = element => element && element.getClientRects().length > 0 ? element : undefined;
const dialog = page.querySelector("[role=dialog]");
const named = (selector, text) => [...(dialog ?? page).querySelectorAll(selector)]
    .find(one => shown(one) && (one.innerText.trim() === text || one.getAttribute("aria-label") === text));
const field = label => shown([...page.querySelectorAll("label")]
    .find(one => one.innerText.replace("*", "").trim() === label)?.control);
"""
"""``page``: the document of Cockpit's frame with ours; the helpers find visible elements there or in its dialog."""


class Browser:
    """A Chromium with one tab. Use it as a context manager.

    ``complaints``: what the page's scripts threw, and errors on the console, such as of its security policy.
    """

    def __init__(self, host: Container) -> None:
        self.complaints: list[str] = []
        self._process = host.begin(["/bin/sh", "-c", _START, "sh", *_OPTIONS])
        self._received = b""
        self._sent = 0
        self._target = self._session = ""
        self.new_tab()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def new_tab(self) -> None:
        """Open an empty tab in place of the one that there is."""
        old, self._session = self._target, ""
        self._target = self._call("Target.createTarget", url="about:blank")["targetId"]
        if old:
            self._call("Target.closeTarget", targetId=old)
        self._session = self._call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.resize(1280, 900)

    def go(self, url: str) -> None:
        """Load a page; what it shows is to be waited for."""
        self._call("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """Give the page this size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def forget_cookies(self) -> None:
        """Log out of everything."""
        self._call("Network.clearBrowserCookies")

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which may use the helpers above.

        :raise RigError: When it throws.
        """
        source = f"(() => {{ {_IN_PAGE} return ({expression}); }})()"
        answer = self._call("Runtime.evaluate", expression=source, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RigError(f"{expression}: {answer['exceptionDetails']['exception'].get('description', '')}")
        return answer["result"].get("value")

    def wait(self, expression: str, *, timeout: float = 20.0) -> Any:
        """Return the value of an expression as soon as it is true.

        :raise RigError: After ``timeout`` seconds; with the text that is shown.
        """
        ends = time.monotonic() + timeout * PATIENCE
        while True:
            try:
                found = self.ask(expression)
            except RigError as error:  # the page is being loaded
                found, said = None, str(error)
            else:
                said = ""
            if found:
                return found
            if time.monotonic() > ends:
                raise RigError(f"waited {timeout:g} s in vain for {expression}. {said}\n{self.text()}")
            time.sleep(0.2)

    def text(self) -> str:
        """Return the text that is shown, without the rest of Cockpit."""
        return str(self.ask("page.body.innerText"))

    def click(self, text: str, selector: str = "button") -> None:
        """Click on the visible element with this text or label, once it can be."""
        find = f"named({json.dumps(selector)}, {json.dumps(text)})"
        self.wait(f"{find} && !{find}.disabled && ({find}.click(), true)")

    def fill(self, label: str, value: str) -> None:
        """Replace what is in the field of a label."""
        change = f"""(() => {{
            const input = field({json.dumps(label)});
            const kind = input.ownerDocument.defaultView.HTMLInputElement.prototype;
            Object.getOwnPropertyDescriptor(kind, "value").set.call(input, {json.dumps(value)});
            input.dispatchEvent(new Event("input", {{ bubbles: true }}));
            return true;
        }})()"""  # React has a setter of its own in between, which hides the change from it
        self.wait(f"Boolean(field({json.dumps(label)}))")
        self.ask(change)

    def choose(self, label: str, option: str) -> None:
        """Choose the option that begins with this text."""
        options = f"[...(field({json.dumps(label)})?.options ?? [])]"
        find = f"{options}.find(one => one.text.startsWith({json.dumps(option)}))"
        self.wait(f"{find} && true")
        change = f"""(() => {{
            const select = field({json.dumps(label)});
            select.value = {find}.value;
            select.dispatchEvent(new Event("change", {{ bubbles: true }}));
            return true;
        }})()"""
        self.ask(change)

    def picture(self, path: Path, *, width: int, height: int) -> None:
        """Write a picture of what is shown in a window of this size, as PNG."""
        self.resize(width, height)
        time.sleep(1)  # what moves comes to rest
        data = self._call("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"]
        path.write_bytes(base64.b64decode(data))
        self.resize(1280, 900)

    def _call(self, method: str, **arguments: Any) -> Any:
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._read(method)).get("id") != self._sent:
            self._note(answer)
        if "error" in answer:
            raise RigError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self, method: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while b"\0" not in self._received:
            if not select.select([output], [], [], 30 * PATIENCE)[0]:
                raise RigError(f"Chromium does not answer to {method}.")
            if not (data := os.read(output, 1 << 16)):
                raise RigError(f"Chromium ended at {method}; see its /tmp/chromium.log.")
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        """Remember what went wrong in the page."""
        of = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(of["exceptionDetails"].get("exception", of["exceptionDetails"])))
            case "Runtime.consoleAPICalled" if of["type"] == "error":
                self.complaints.append(" ".join(str(one.get("value", "")) for one in of["args"]))
            case "Log.entryAdded" if of["entry"]["level"] == "error":
                self.complaints.append(f"{of['entry']['text']} {of['entry'].get('url', '')}")

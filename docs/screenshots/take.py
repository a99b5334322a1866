"""Take the pictures of this folder: a real Chromium, headless, on a running Dagster (`flashlake demo --keep`, then a backfill).

    python docs/screenshots/take.py http://127.0.0.1:3000 [chromium]

A picture is taken when the page's text has what it is about, not after a while.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1500, 950
SECONDS_MAX = 60.0
SIGHTS_MAX = 8

GRAPH = "/asset-groups"
TABLE = "/assets/dws/store_hour_wide"
# No newsletter over the picture; the graph from top to bottom.
PREPARE = "localStorage.setItem('communityNux', '1'); localStorage.setItem('asset-graph-direction', JSON.stringify('vertical'))"
EXPAND = "Alt+E"  # expands the groups of the graph
# name, path, text that must be there, key to press then, size
PAGES: tuple[tuple[str, str, str, str, tuple[int, int]], ...] = (
    ("asset_graph", GRAPH, "Materialize all", EXPAND, (3600, 1350)),
    ("materialization", f"{TABLE}?view=events", "rows_compared", "", (WIDTH, 1150)),
    ("check", f"{TABLE}?view=checks", "rows compared at version", "", (WIDTH, HEIGHT)),
    (
        "partitions",
        f"{TABLE}?view=partitions&default_range=[2017-01-01...2017-01-31]&partition=2017-01-03",
        "2017-01-03",
        "",
        (WIDTH, HEIGHT),
    ),
    ("lineage", f"{TABLE}?view=lineage&lineageScope=neighbors", "order_line", "", (WIDTH, HEIGHT)),
    ("overview", TABLE, "Store metrics by hour", "", (WIDTH, 1150)),
    ("backfills", "/runs?view=backfills", "lane: backfill", "", (WIDTH, 700)),
    ("automation", "/automation", "journal", "", (WIDTH, 700)),
)


class Browser:
    """One page of a headless Chromium, driven over its debugging socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._next = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        await self._socket.send(json.dumps({"id": self._next, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("id") == self._next:
                return message.get("result", {})

    async def value(self, script: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return result.get("result", {}).get("value")

    async def press_alt(self, letter: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, modifiers=1, key=letter, code=f"Key{letter}", windowsVirtualKeyCode=ord(letter)
            )

    async def picture(self, url: str, awaited: str, key: str, size: tuple[int, int]) -> bytes:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=min(1.0, 2400 / size[0]), mobile=False
        )
        await self.call("Page.navigate", url=url)
        deadline = time.monotonic() + SECONDS_MAX
        previous, n_seen = "", 0
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            text = await self.value("document.body ? document.body.innerText : ''") or ""
            n_seen += awaited in text
            if n_seen and (text == previous or n_seen > SIGHTS_MAX):  # there, and nothing moves any more, or only clocks do
                if not key:
                    break
                await self.press_alt(key[-1])
                key, text = "", ""
            previous = text
        else:
            raise TimeoutError(f"{url}: no {awaited!r} in the page after {SECONDS_MAX} s; it has: {previous[:600]}")
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


async def take(dagster: str, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as response:
        target = next(page for page in json.load(response) if page["type"] == "page")
    async with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
        browser = Browser(socket)
        await browser.call("Page.enable")
        await browser.call("Page.addScriptToEvaluateOnNewDocument", source=PREPARE)
        for name, path, awaited, key, size in PAGES:
            (HERE / f"{name}.png").write_bytes(await browser.picture(dagster + path, awaited, key, size))
            sys.stderr.write(f"{name}.png\n")


def main() -> None:
    dagster = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
    program = sys.argv[2] if len(sys.argv) > 2 else shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory(prefix="flashlake-browser-") as profile:
        browser = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
             f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + SECONDS_MAX
            announced = Path(profile) / "DevToolsActivePort"
            while not announced.exists() or not announced.read_text():
                if time.monotonic() > deadline or browser.poll() is not None:
                    raise TimeoutError(f"{program} does not start")
                time.sleep(0.2)
            asyncio.run(take(dagster, int(announced.read_text().split()[0])))
        finally:
            browser.terminate()
            browser.wait(20)


if __name__ == "__main__":
    main()

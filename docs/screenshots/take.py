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

GRAPH = "/asset-groups"
TABLE = "/assets/dws/store_hour_wide"
PREPARE = "localStorage.setItem('communityNux', '1')"  # no newsletter over the picture
# name, path, text that must be there, script to run first, size
PAGES: tuple[tuple[str, str, str, str, tuple[int, int]], ...] = (
    ("asset_graph", GRAPH, "Materialize all", "", (2000, 1150)),
    ("materialization", f"{TABLE}?view=events", "rows_compared", "", (WIDTH, 1150)),
    ("check", f"{TABLE}?view=checks", "rows compared at version", "", (WIDTH, HEIGHT)),
    ("partitions", f"{TABLE}?view=partitions&partition=2017-01-03", "2017-01-03", "", (WIDTH, HEIGHT)),
    ("lineage", f"{TABLE}?view=lineage&lineageScope=neighbors", "order_line", "", (WIDTH, HEIGHT)),
    ("overview", TABLE, "Store metrics by hour", "", (WIDTH, 1150)),
    ("backfills", "/runs?view=backfills", "dws.store_hour_wide", "", (WIDTH, 700)),
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

    async def picture(self, url: str, awaited: str, script: str, size: tuple[int, int]) -> bytes:
        await self.call("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        await self.call("Page.navigate", url=url)
        deadline = time.monotonic() + SECONDS_MAX
        previous = ""
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            text = await self.value("document.body ? document.body.innerText : ''") or ""
            if awaited in text and text == previous:  # there, and nothing moves any more
                if not script:
                    break
                await self.value(script)
                script = ""
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
        for name, path, awaited, script, size in PAGES:
            (HERE / f"{name}.png").write_bytes(await browser.picture(dagster + path, awaited, script, size))
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

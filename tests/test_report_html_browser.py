"""report.html in Chromium: no console message, no request, nothing clipped or overlapping, on a desk and on a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import sample_runs
from test_report_html import CORPUS, rows, sweep

from tokenswarm.record import Outcome
from tokenswarm.reports.html import page as html

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=2000",
)  # fmt: skip

MEASURE = """
<script>
addEventListener("load", () => {
  const bad = [];
  const wide = document.documentElement.scrollWidth, room = document.documentElement.clientWidth;
  if (wide > room) bad.push(`the page is ${wide} px wide, the window ${room}`);
  const boxes = [...document.querySelectorAll("#engine .scroll, #kv-cache .scroll, #gpus .scroll, #sources .scroll")];
  const scrolled = boxes.filter((box) => box.scrollWidth > box.clientWidth)
    .map((box) => `${box.closest("section").id}: ${box.querySelector("tr").textContent}`);
  let texts = 0;
  for (const chart of document.querySelectorAll("svg.chart")) {
    const frame = chart.getBoundingClientRect();
    if (!frame.width) continue;
    const boxes = [];
    for (const text of chart.querySelectorAll("text")) {
      const box = text.getBoundingClientRect(), name = `${chart.parentNode.id}: ${text.textContent}`;
      texts += 1;
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) bad.push(`${name} leaves its chart`);
      for (const [other, place] of boxes)
        if (box.left < place.right - 1 && place.left < box.right - 1 && box.top < place.bottom - 3
            && place.top < box.bottom - 3) bad.push(`${name} overlaps ${other}`);
      boxes.push([text.textContent, box]);
      if (parseFloat(getComputedStyle(text).fontSize) * frame.width / chart.viewBox.baseVal.width < 8.5)
        bad.push(`${name} is too small to read`);
    }
  }
  document.title = JSON.stringify({bad, texts, scrolled});
});
</script>
"""


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        sentence = "no Chromium is installed (Debian package chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def opened(page: str, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """(the document after loading, what the console said)."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [chromium(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def evil_page() -> str:
    summary = sweep(ends={Outcome.HTTP_5XX: 3})
    summary.requests.by_error = dict.fromkeys(CORPUS, 1)
    summary.run_id = CORPUS[1]
    return html.render(summary, {"command": list(CORPUS)}, rows(failed=3))


class Proxy:
    """Every request of a browser that uses it as its proxy ends here, and is counted."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"--proxy-server=http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.asked.append(connection.recv(4096).partition(b"\r\n")[0])


def to_evil(asked: list[bytes]) -> list[bytes]:
    return [line for line in asked if b"evil.example" in line]


def test_nothing_is_asked_for_and_the_console_is_silent(tmp_path: Path) -> None:
    proxy = Proxy()
    with proxy as flag:
        document, console = opened(evil_page(), tmp_path, flag)
    assert 'id="throughput-over-concurrency"' in document
    assert console == []
    assert to_evil(proxy.asked) == []


def test_a_page_that_asks_is_noticed(tmp_path: Path) -> None:
    """The test above can fail."""
    proxy = Proxy()
    with proxy as flag:
        page = "<img src='http://evil.example/x.png'><script>console.error('heard')</script>"
        _, console = opened(page, tmp_path, flag)
    assert to_evil(proxy.asked) == [b"GET http://evil.example/x.png HTTP/1.1"]
    assert "heard" in console[0]


@pytest.mark.parametrize("theme", [0, 1], ids=["dark", "light"])
def test_the_theme_follows_the_system(theme: int, tmp_path: Path) -> None:
    page = html.render(sweep(), {}, rows()).replace("default-src", "script-src 'unsafe-inline'; default-src")
    script = "<script>document.title = getComputedStyle(document.body).backgroundColor</script></body>"
    document, _ = opened(page.replace("</body>", script), tmp_path, f"--blink-settings=preferredColorScheme={theme}")
    found = re.search(r"<title>rgb\((\d+),", document)
    assert found is not None
    assert (int(found[1]) > 128) == bool(theme)


@pytest.mark.parametrize("width", [1280, 800, 390])
@pytest.mark.parametrize("stages", [1, 4])
def test_no_text_is_clipped_or_covered(width: int, stages: int, tmp_path: Path) -> None:
    summary = sample_runs.watched(sweep(stages, ends={Outcome.HTTP_5XX: 3}))
    page = html.render(summary, {}, rows(200, stages, failed=3))
    measured = page.replace("default-src", "script-src 'unsafe-inline'; default-src").replace(
        "</head>", f"{MEASURE}</head>"
    )
    document, console = opened(measured, tmp_path, f"--window-size={width},900")
    assert console == []
    found = re.search(r"<title>(.*?)</title>", document)
    assert found is not None
    result = json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert result["texts"] > 40
    assert result["bad"] == []
    assert bool(result["scrolled"]) == (width < 1000), result["scrolled"]

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a headless Chromium shows of a page, and what goes wrong in it; the fixture `measure` opens one."""

import contextlib
import shutil
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
MEASURE = """
async () => {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  const width = document.documentElement.clientWidth;
  const scrolls = (node) => node && node !== document.body &&
    (/auto|scroll|hidden|clip/.test(getComputedStyle(node).overflowX) || scrolls(node.parentElement));
  const name = (node) => node.tagName.toLowerCase() + [...node.classList].map((one) => "." + one).join("");
  const outside = [...document.body.querySelectorAll("*")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width && (box.right > width + 0.5 || box.left < -0.5) && !scrolls(node.parentElement);
  });
  return {
    width, scroll_width: document.documentElement.scrollWidth, overflow: outside.map(name),
    pictures: images.map((image) => image.naturalWidth), title: document.title,
  };
}
"""


@contextlib.contextmanager
def launched():
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)) as browser,
    ):
        yield browser


def measure(browser, page, width, dark=False, script=None):
    """Open an HTML file or an address and return what is seen there.

    Returns:
        ``width`` and ``scroll_width`` of the document, ``overflow``: the elements that reach out of the page and are in
        nothing that scrolls, ``pictures``: the width of each, 0 where one is not loaded, ``title``, ``errors``: those
        of scripts and the console, ``requests``: addresses asked for but the page itself and what is inside of it, and
        ``result`` of the script.
    """
    url = page if "://" in str(page) else Path(page).resolve().as_uri()
    size, scheme = {"width": width, "height": 900}, "dark" if dark else "light"
    with contextlib.closing(browser.new_page(viewport=size, color_scheme=scheme, is_mobile=width < 500)) as tab:
        errors, requests = [], []
        tab.on("pageerror", lambda error: errors.append(str(error.stack)))
        tab.on("console", lambda said: errors.append(said.text) if said.type in ("error", "assert") else None)
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(url)
        seen = tab.evaluate(MEASURE)
        result = None if script is None else tab.evaluate(script)
    requests = [address for address in requests if address != url and not address.startswith("data:")]
    return {**seen, "errors": errors, "requests": requests, "result": result}

"""The page in headless Chromium, for tests: a browser, a data set with hostile titles, and how a person uses the page."""

import contextlib
import json
import os
import shutil
import time

import polars as pl
import pytest

from fakes import planted_log
from genre.data.interactions import Interactions

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
IMAGE = "<img src=x onerror='window.pwned = 1'>"
HOSTILE = {
    "i0": IMAGE,
    "i1": '"><script>window.pwned = 1</script>',
    "i2": "javascript:window.pwned=1//",
    "i3": "W" * 300,
    "i4": "{{7*7}} ${7*7} </li></ol><b>x",
    "i5": "\u202egnp.exe & &lt;b&gt;",
}
VILLAIN = "u0<b onclick=window.pwned=1>"
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const one = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * one(r) + 0.7152 * one(g) + 0.0722 * one(b);
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(one).backgroundColor);
      if (a === 1 && r !== undefined) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest('.hidden, .skip, script')) continue;
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(parse(ink)), light(ground(element))].sort((x, y) => y - x);
    const name = `${element.tagName} ${element.getAttribute('class') ?? ''}`;
    found.push([(a + 0.05) / (b + 0.05), name, walker.currentNode.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""
"""Every text that is seen with its contrast, least first: [ratio, element, text]."""


def crowd():
    """10,000 users; six items have titles that a careless page would run, one user a hostile id."""
    log = planted_log(users=10_000, events=4)
    titles = dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True)) | HOSTILE
    items = {"item_id": list(titles), "title": list(titles.values())}
    rename = {"u7777": VILLAIN}
    frame, users = log.frame.drop("row"), log.users
    changed = [one.with_columns(one["user_id"].replace(rename)) for one in (frame, users)]
    return Interactions.from_frame(changed[0], items=pl.DataFrame(items), users=changed[1], name="crowd")


@contextlib.contextmanager
def launched():
    """Debian's Chromium; where that, or the package that drives it, is missing the test fails in CI and is skipped elsewhere."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        _missing("no chromium on this machine (Debian: apt-get install chromium)")
    try:
        from playwright import sync_api
    except ModuleNotFoundError:
        _missing("the page is tested through the package playwright, which is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def _missing(reason):
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def opened(browser, client, path="/", **options):
    """A fresh page; whatever it says on its console, throws, or asks of another host fails the test."""
    base, wrong = str(client.base_url).rstrip("/"), []
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("console", lambda message: "Failed to load resource" in message.text or wrong.append(message.text))
    page.on("request", lambda request: request.url.startswith((base, "data:")) or wrong.append(request.url))
    try:
        page.goto(base + path)
        yield page
        assert page.evaluate("window.pwned === undefined")
    finally:
        context.close()
    assert not wrong


def until(page, expression, seconds=30):
    """Wait for something to become true; Playwright's own way would need eval, which the policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def field(page, name="User"):
    return page.get_by_role("combobox", name=name)


def choose(page, user):
    """Choose a user by keyboard and wait for every column."""
    field(page).fill(user)
    page.locator("[role=option] .main", has_text=user).first.wait_for()
    page.keyboard.press("Enter")
    settled(page)


def settled(page):
    page.wait_for_selector(".column")
    until(page, "document.querySelectorAll('.column[aria-busy], .skeleton').length === 0")


def column(page, name):
    return page.locator(".column", has=page.get_by_role("heading", name=name, exact=True))


def titles(page, name):
    return column(page, name).locator(".item .title").all_text_contents()


def refuse(page, path, *answers):
    """Answer the first calls to a path with these, then let the service answer."""
    left = list(answers)

    def handle(route):
        if not left:
            route.continue_()
            return
        status, headers, body = left.pop(0)
        route.fulfill(status=status, headers=headers, body=body)

    page.route(path, handle)
    return left


def trouble(status, headers=None, error="what the server says of itself"):
    return (
        status,
        {"content-type": "application/json", **(headers or {})},
        json.dumps({"error": error, "code": "x", "request_id": "1"}),
    )

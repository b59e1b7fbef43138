"""Pictures of the page of a running service: desktop and phone, light and dark.

    genre serve --registry build/demo/registry --data ml-100k &
    python benchmarks/pictures.py --user 71 --out build/pictures
    python benchmarks/pictures.py --user 71 --out docs --readme      # the two of the README, as WebP

Needs Chromium and the package playwright.
"""

import argparse
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
SCREENS = {"desktop": DESKTOP, "phone": PHONE}
SCHEMES = ("light", "dark")
README = {"page-desktop.webp": ("desktop-light-recommend", 1000), "page-phone.webp": ("phone-dark-recommend", 390)}
"""The pictures of the README, and how many pixels wide they are."""


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service answers")
    parser.add_argument("--user", help="whose recommendations are shown; by default the first sample user's")
    parser.add_argument("--out", type=Path, default=Path("build/pictures"))
    parser.add_argument("--readme", action="store_true", help="only the README's two, small and as WebP")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        pictures = take(browser, options.url, options.user)
        options.out.mkdir(parents=True, exist_ok=True)
        for path in write_small(pictures, options.out) if options.readme else write(pictures, options.out):
            print(path)
        browser.close()


def take(browser: Any, url: str, user: str | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield (SCREEN-SCHEME-VIEW, PNG) of the views: first, recommend, reasons, adapters, api."""
    for screen, options in SCREENS.items():
        for scheme in SCHEMES:
            context = browser.new_context(**options, color_scheme=scheme, reduced_motion="reduce")
            page = context.new_page()
            for view, picture in _views(page, url.rstrip("/"), user):
                yield f"{screen}-{scheme}-{view}", picture
            context.close()


def _views(page: Any, url: str, user: str | None) -> Iterator[tuple[str, bytes]]:
    page.goto(url + "/")
    page.wait_for_selector(".sample")
    yield "first", page.screenshot()
    if user is None:
        page.locator(".sample").first.click()
    else:
        page.goto(f"{url}/#recommend/{user}")
    page.wait_for_selector(".items")
    page.wait_for_selector(".column[aria-busy], .skeleton", state="detached")
    page.wait_for_selector(".about summary")
    yield "recommend", page.screenshot()
    page.locator(".item").first.click()
    page.wait_for_selector(".because")
    page.locator(".why").first.scroll_into_view_if_needed()
    yield "reasons", page.screenshot()
    page.goto(url + "/#adapters")
    page.wait_for_selector(".card")
    yield "adapters", page.screenshot()
    page.goto(url + "/docs")
    page.wait_for_selector(".try")
    yield "api", page.screenshot()


def write(pictures: Iterator[tuple[str, bytes]], folder: Path) -> Iterator[Path]:
    """Write pictures as they come; yield their paths."""
    for name, picture in pictures:
        path = folder / f"{name}.png"
        path.write_bytes(picture)
        yield path


def write_small(pictures: Iterator[tuple[str, bytes]], folder: Path) -> Iterator[Path]:
    """Write the pictures of `README`; yield their paths."""
    from PIL import Image

    wanted = {name: (file, width) for file, (name, width) in README.items()}
    for name, picture in pictures:
        if name in wanted:
            file, width = wanted[name]
            image = Image.open(io.BytesIO(picture)).convert("RGB")
            image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS).save(
                folder / file, quality=80
            )
            yield folder / file


if __name__ == "__main__":
    main()

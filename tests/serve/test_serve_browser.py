"""The page in a real headless browser: upload a clip, ask, read the answer, move the slider.

Not in the default run, as a fresh machine has no browser: `pip install '.[browser]'`, a Chromium on the path (or its
name in JVIDPRUNE_BROWSER, or `playwright install chromium`), and `python -m pytest -m browser`.
"""

import math
import os
import re
import shutil

import pytest

from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.serve.examples import write_examples
from jvidprune.serve.server import running

pytestmark = pytest.mark.browser
PATIENCE = 180_000
"""Milliseconds: the first answer compiles."""


def browser_path():
    """A browser of this machine, None for the one that playwright brought."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")]
    return os.environ.get("JVIDPRUNE_BROWSER") or next(filter(None, found), None)


@pytest.fixture(scope="module")
def llm():
    return VideoLLM.load(EMBEDDED)


@pytest.fixture(scope="module")
def served(llm):
    with running(llm, port=0, upload_mb=0.5, max_new_tokens=6) as at:
        yield at


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request, served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1000}, color_scheme=request.param)
        page.set_default_timeout(PATIENCE)
        requested: list[str] = []
        page.on("request", lambda asked: requested.append(asked.url))
        page.goto(served.url)
        page.wait_for_selector("#jv-ask")
        yield page
        # Nothing that the page loaded, in all of the above, came from anywhere but this server.
        others = [url for url in requested if not url.startswith((served.url, "data:", "blob:"))]
        assert others == []
        browser.close()


def upload(page, path):
    page.set_input_files("#jv-video input[type=file]", str(path))


def test_a_clip_is_uploaded_asked_about_and_scrubbed_through(page, llm, tmp_path):
    example = write_examples(tmp_path, llm, embedded=True, count=1)[0]
    frames = len(llm.sample(example.path).frames)
    total = frames * math.prod(llm.loaded.config.grid)
    upload(page, example.path)
    page.wait_for_selector("#jv-video video")
    page.fill("#jv-question textarea", example.prompt)
    page.click("#jv-ask")
    page.wait_for_selector(".jv-card")
    cards = page.locator(".jv-card")
    assert cards.count() == 4
    for number in range(cards.count()):
        card = cards.nth(number)
        assert card.locator(".jv-answer").inner_text().strip() not in ("", "(no words)")
        assert re.search(rf"\d+ of {total:,} tokens", card.inner_text())
        assert "prefill" in card.inner_text()
    pictures = page.locator("#jv-frames img")
    assert pictures.count() == 4
    first = pictures.nth(1).get_attribute("src")
    page.locator("#jv-frame input[type=range]").fill("6")
    page.wait_for_function(f"document.querySelector('#jv-frames figcaption').innerText.includes('frame 6 of {frames}')")
    assert page.locator("#jv-frames img").nth(1).get_attribute("src") != first
    # The background follows the reader's setting.
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (min(light) > 200) == (page.evaluate("matchMedia('(prefers-color-scheme: light)').matches"))


def test_an_example_is_one_click_and_errors_are_one_sentence(page, tmp_path):
    page.locator("#jv-examples tbody tr").nth(1).click()
    page.wait_for_function("document.querySelector('#jv-question textarea').value.length > 5")
    page.fill("#jv-question textarea", "")
    page.click("#jv-ask")
    page.wait_for_selector(".jv-error")
    assert page.locator(".jv-error").inner_text() == "type a question about the video first."
    assert page.locator("#jv-frames img").count() == 0

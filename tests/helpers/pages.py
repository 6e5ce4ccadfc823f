"""What a page has to be: whole, readable by itself, in light and dark, on narrow screens."""

import re
from html.parser import HTMLParser

VOID = ("meta", "br", "img", "path", "use", "rect", "input", "link", "circle", "line", "stop")


class Outline(HTMLParser):
    """Elements not closed where they were opened, ids, tables outside of boxes that scroll or crushed in them."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.ids, self.loose, self.fetched = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.ids += [known["id"]] if "id" in known else []
        self.fetched += [url for name in ("src", "href") if re.match("https?:|//", url := known.get(name) or "")]
        if tag == "table" and not any("scroll" in classes for _, classes in self.open):
            self.loose.append(self.getpos())
        if "grid" in (known.get("class") or "").split() and "min-width" not in (known.get("style") or ""):
            self.loose.append(self.getpos())
        if tag not in VOID:
            self.open.append((tag, (known.get("class") or "").split()))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop()[0] != tag:
            self.wrong.append((tag, self.getpos()))


def check_page(page):
    """Asserts that a report is whole and reads well wherever it is opened."""
    outline = Outline()
    outline.feed(page)
    assert (outline.wrong, [tag for tag, _ in outline.open]) == ([], [])
    assert len(outline.ids) == len(set(outline.ids)), "two elements have one id"
    assert outline.loose == [], "a wide table would push the page out of a narrow screen"
    assert outline.fetched == [], "the page would ask a network"
    assert page.lstrip().startswith("<!doctype html>")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert re.search(r"\.scroll \{[^}]*overflow-x:\s*auto", page)
    # Paths of files are longer than a narrow screen is wide.
    assert re.search(r"\.note \{[^}]*overflow-wrap:\s*anywhere", page)
    # Every colour that the page names has a value in both schemes.
    styles = page[page.index("<style>") : page.index("</style>")]
    named = set(re.findall(r"var\((--[\w-]+)", page))
    nights = re.findall(r"@media \(prefers-color-scheme:\s*dark\)\s*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", styles)
    days = styles
    for night in nights:
        days = days.replace(night, "")
    assert [name for name in sorted(named) if f"{name}:" not in days] == []
    assert [name for name in sorted(named) if f"{name}:" not in "".join(nights)] == []

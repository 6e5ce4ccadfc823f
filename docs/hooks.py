"""Links from pages to files outside docs/, such as code and tables: on the site they go to the repository."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page with `](../file)` as a link to that file in the repository."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({up}\.\./([^)]*)\)", rf"]({config['repo_url']}/blob/main/\1)", markdown)

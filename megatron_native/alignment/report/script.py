"""What the page does with JavaScript: unpack pairs, filter them by the address, compare words, show a page of them.

Texts reach the page by textContent alone, so none can be markup. Filters stand in the address (`#state=refused&q=…`), so a
view can be linked to. The code is in `diff.js` and `browse.js`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def script() -> str:
    """Both files as one function that leaves no names behind."""
    folder = resources.files("megatron_native.alignment.report")
    parts = [folder.joinpath(name).read_text(encoding="utf-8") for name in ("diff.js", "browse.js")]
    return '"use strict";\n(function () {\n' + "\n".join(parts) + "})();"

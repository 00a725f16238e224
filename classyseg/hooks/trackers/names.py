"""Names of numbers that a tracker takes: each its own, whatever the classes are called."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from classyseg.hooks.trackers.entries import Name

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/\\]")
"""What no part of a name may have: characters that move a cursor, halves of characters, what separates parts."""


class Names:
    """Gives each name a text of at most `limit` characters that no other one has, always the same.

    `clean` changes a part of a name to what the tracker takes. Texts that differ only in case or in their form of
    Unicode count as equal, as some stores see no difference; the second of them gets `_2` at its end.
    """

    def __init__(self, clean: Callable[[str], str], limit: int = 200) -> None:
        self._clean, self._limit = clean, limit
        self._texts: dict[Name, str] = {}
        self._taken: set[str] = set()

    def of(self, name: Name) -> str:
        found = self._texts.get(name)
        return found if found is not None else self._new(name)

    def _new(self, name: Name) -> str:
        whole = "/".join(self._clean(CONTROL.sub("_", part)) or "_" for part in name)
        text, number = whole[: self._limit].rstrip(), 1
        while _key(text) in self._taken:
            number += 1
            ending = f"_{number}"
            text = whole[: self._limit - len(ending)].rstrip() + ending
        self._taken.add(_key(text))
        self._texts[name] = text
        return text


def _key(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def plain_part(part: str, others: str = r"[^\w .:-]") -> str:
    """A part of letters, digits, `_`, `-`, `.`, `:` and spaces; `others` matches what else there may be."""
    text = re.sub(others, "_", part).strip()
    return text if text.strip(".") else "_" * len(text)  # `.` and `..` are paths

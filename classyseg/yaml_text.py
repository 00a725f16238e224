"""What only the text of a YAML or JSON file shows, not its values: colours that `#` turned into comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

HEX = r"#[0-9a-fA-F]"
COLOR = re.compile(rf"{HEX}{{6}}(?:[0-9a-fA-F]{{2}})?(?![\w-])")
PAIR = re.compile(rf"{HEX}{{3,8}}\s*:(?:\s|$)")
"""A colour as the key of a mapping: a colon follows it."""
SHORT = re.compile(rf"{HEX}{{3,4}}(?![\w-])")
"""A colour only where one is expected: many a comment begins with such as `#add`."""
OF_COLORS = re.compile(r"colou?r|palette", re.IGNORECASE)
QUOTED = re.compile(r"(?:(?<=[\s\[{,:])|^)(?:\"(?:[^\"\\]|\\.)*+(?:\"|$)|'(?:[^']|'')*+(?:'|$))")
"""Matches to its closing quote or the end of the line. No character is read twice, however many quotes a line has."""
COMMENT = re.compile(r"(?:(?<=[\s\[{,])|^)#.*")
BREAKS = re.compile("[\u2028\u2029\x85]")
NEXT_LINE = re.compile("\x85")
"""YAML reads it as a space, even in quotes."""
HINT = "YAML takes `#` for the beginning of a comment: put colours in quotes, such as"


def eaten_color(node: yaml.Node, path: str) -> str | None:
    """What is wrong with an empty value at `path` that is followed by a colour without quotes."""
    text, start, end = node.start_mark.buffer or "", node.start_mark.pointer, node.end_mark.pointer
    if node.value:
        return None
    if isinstance(node, yaml.ScalarNode):
        comments = _comments_after(text, end) if start == end else iter(())  # without quotes: it is null
        expected = path.endswith("]") or bool(OF_COLORS.search(path.rpartition(".")[2]))
    else:
        comments, expected = _comments_within(text[start + 1 : end - 1]), True
    found = next(_colors(comments, expected=expected), None)
    return f"found nothing, as `{found}` is not read: {HINT} '{found}'" if found else None


def wrong_line(text: str) -> str | None:
    """The first line of YAML that means something else than it shows, and why.

    Such a line has a colour without quotes within brackets, or an invisible character that breaks the line.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        plain = QUOTED.sub(lambda quoted: "_" * len(quoted[0]), line)
        if broken := BREAKS.search(plain) or NEXT_LINE.search(line):
            return (
                f"line {number}: holds the invisible character U+{ord(broken[0]):04X}, at which YAML breaks lines; "
                f'take it out, or write "{json.dumps(broken[0])[1:-1]}" in double quotes'
            )
        comment = COMMENT.search(plain)
        if comment and plain[: comment.start()].rstrip()[-1:] in ("[", "{", ","):
            for found in _colors(iter([comment[0]]), expected=True):
                return f"line {number}: `{found}` is not read: {HINT} '{found}'"
    return None


def _colors(comments: Iterator[str], *, expected: bool) -> Iterator[str]:
    """The comments that are colours."""
    for comment in comments:
        for pattern in (COLOR, PAIR, *([SHORT] if expected else [])):
            if found := pattern.match(comment):
                yield found[0].rstrip(": \t")
                break


def _comments_after(text: str, place: int) -> Iterator[str]:
    """The comments from `place` to the next text that is not a comment."""
    while True:
        while text[place : place + 1] in (" ", "\t", "\r", "\n"):
            place += 1
        if text[place : place + 1] != "#":
            return
        end = text.find("\n", place)
        yield text[place : end if end >= 0 else len(text)].rstrip("\0\r \t")
        if end < 0:
            return
        place = end


def _comments_within(text: str) -> Iterator[str]:
    """The comments of a text that has nothing else."""
    yield from (line.strip() for line in text.split("\n") if line.strip())


def as_yaml(text: str) -> str:
    """Valid JSON, written so that YAML reads the same values: the two differ in tabs and escaped slashes."""
    in_string = re.compile(r'"(?:[^"\\]|\\.)*"|\t')
    return in_string.sub(lambda m: " " if m[0] == "\t" else _yaml_string(m[0]), text)


def _yaml_string(literal: str) -> str:
    """A string of JSON with every character beyond ASCII escaped, as YAML writes it."""
    value = json.loads(literal)
    # JSON escapes a character beyond 16 bits as two halves, which YAML reads as two characters.
    return '"' + "".join(json.dumps(c)[1:-1] if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in value) + '"'

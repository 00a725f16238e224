"""The meanings of config keys, from the `Args:` sections of docstrings, for schemas and pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

COMMON_KEYS: Mapping[str, str] = {
    "head_weights": (
        "Names of outputs to factors of their losses; 1 for one not named. The sum is not divided by the factors' sum."
    ),
    "heads": "The outputs that the loss reads; null: see Losses.",
    "in_channels": "Channels of the images: the data set's `channels`.",
    "output_stride": "No block has a larger stride; dilation takes the place of the strides beyond it.",
    "norm": "See key `norm`.",
    "transforms": "A list of transforms; see Transforms.",
}
"""Keys that mean the same everywhere, for components whose docstrings do not explain them."""

_ARGUMENT = re.compile(r"(\w+): (.*)")


def parts_of(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring without its `Args:`, and the arguments' meanings by name, each as one line."""
    lines = inspect.cleandoc(docstring).splitlines()
    if "Args:" not in lines:
        return "\n".join(lines).strip(), {}
    start = lines.index("Args:")
    end = next((i for i in range(start + 1, len(lines)) if lines[i] and lines[i][0] != " "), len(lines))
    found: dict[str, str] = {}
    name = ""
    for line in lines[start + 1 : end]:
        indent, text = len(line) - len(line.lstrip()), line.strip()
        match = _ARGUMENT.match(text)
        if match and indent <= 4:
            name, found[match[1]] = match[1], match[2]
        elif text and name:
            found[name] += f" {text}"
    return "\n".join([*lines[:start], *lines[end:]]).strip(), found


def meanings(component: type) -> dict[str, str]:
    """The meanings of the keys of a component, or of a record of options: from its docstring, else `COMMON_KEYS`.

    A component inherits the meanings of keys that it does not explain itself.
    """
    found: dict[str, str] = {}
    for base in component.__mro__:
        found = {**parts_of(base.__dict__.get("__doc__") or "")[1], **found}
    return {**COMMON_KEYS, **found}

"""Converts every config below a folder, such as a checkout of mmsegmentation or ClassyVision, and prints a table.

python benchmarks/convert_configs.py CHECKOUT/configs [--pattern 'fcn/*']

A config is `converted` if nothing that changes numbers was lost and `config check` accepts the result, `in part` if
something was lost, `refused` if the result is not accepted, and `none` if the model or the data have no equivalent.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from classyseg.config import parse_config
from classyseg.errors import ConfigError
from classyseg.migration import Converted, convert_file
from classyseg.registry import TASKS

PROCESSES = 8
"""For configs that do not tell how many GPUs they are for."""


def outcome(path: Path) -> tuple[str, list[str], Converted | None]:
    """The word of the table, why, and the new config."""
    try:
        converted = convert_file(path, processes=None if re.search(r"\dxb\d", path.name) else PROCESSES)
    except ConfigError as error:
        return "none", str(error).splitlines(), None
    lost = [str(note) for note in converted.lost]
    try:
        config = TASKS.validate(parse_config(converted.text(), source="new"))
        config.component.check(config)  # type: ignore[attr-defined]
    except ConfigError as error:
        return "refused", [*lost, *str(error).splitlines()], converted
    return ("in part" if lost else "converted"), lost, converted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pattern", default="**/*", help="of paths below the folder")
    parser.add_argument("--why", type=int, default=20, help="how many reasons to print, the most frequent first")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.glob(arguments.pattern) if path.suffix in (".py", ".json"))
    files = [path for path in files if "_base_" not in path.parts]
    words: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for path in files:
        word, why, _ = outcome(path)
        words.setdefault(str(path.parent.relative_to(arguments.folder)), Counter())[word] += 1
        reasons.update({re.sub(r"\[\d+\]|^.*?, line \d+: |/\S+: ", "", f"{word}: {line}")[:150] for line in why})
    total: Counter[str] = sum(words.values(), Counter())
    print("| folder | converted | in part | refused | none |\n|---|--:|--:|--:|--:|")
    for name, found in [*words.items(), ("all", total)]:
        print(f"| {name} | " + " | ".join(str(found[w]) for w in ("converted", "in part", "refused", "none")) + " |")
    print()
    for line, count in reasons.most_common(arguments.why):
        print(f"{count:5}  {line}")


if __name__ == "__main__":
    main()

"""The README of a model's folder: a header that hubs read, and what people want to know. All texts are escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from classyseg.console import printable
from classyseg.environment import without_secrets
from classyseg.errors import ConfigError
from classyseg.inference.description import SEGMENTATION, Card, Description

OF_THE_RUN = ("lr", "seconds", "samples_per_second", "data_wait")
"""Keys of a record that are about the run and its machine, not about the model. Cards leave them out."""
NOT_MEASURED = (*OF_THE_RUN, "epoch", "step", "weights_step", "loss", "samples")
"""Keys that are no numbers of a metric: the header leaves them out, too."""
LICENCES = (
    *(
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "zlib",
        "unlicense",
        "mpl-2.0",
        "epl-2.0",
        "eupl-1.2",
    ),
    *("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "bsl-1.0", "artistic-2.0", "openrail", "cc"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("cc-by-2.0", "cc-by-3.0", "cc-by-sa-3.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "odc-by", "odbl", "pddl", "wtfpl"),
)
"""The names that the hub knows; any other one is given as `other`, with its name."""
FOLDER = "FOLDER"
"""Stands in a card for the place of the model."""
HEADER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
USED = re.compile(rf"""(classyseg\.load\(["']|classyseg predict )(?:{FOLDER}|hf://[^\s"')]+)""")
LICENCE = re.compile(r"^## Licence\n\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
SPECIAL = re.compile(r"[\\`*{}\[\]<>#|~&$!]|(?<!\w)_|_(?!\w)")
MAX_VALUE = 500


def card_text(description: Description, card: Card) -> str:
    """The README of a model's folder: what it is, how to use it, how it was measured and trained, its licence."""
    task = _task(description, card)
    names = ", ".join(map(escaped, description.classes))
    what = {
        SEGMENTATION: "It gives each pixel of an image one of",
        "image-classification": "It gives an image one of",
        "video-classification": "It gives a video one of",
    }[task]
    if description.multi_label:
        what = what.replace("one of", "any of")
    parts = [
        f"---\n{_yaml(_header(description, card))}---\n",
        f"# {escaped(card.title)}\n",
        f"{_architecture(description)}. {what} {len(description.classes)} classes: {names}.\n",
        _usage(card.address or FOLDER, task),
        *(_measured(name, record) for name, record in card.records.items()),
        _training(card),
        _licence(card.license),
        _limits(description, card),
    ]
    return "\n".join(parts)


def with_license(text: str, name: str) -> str:
    """A card with another licence: in its header, and in its section, which is made if it has none."""
    found = HEADER.match(text)
    header = _read_header(found[1]) if found else {}
    header = {key: value for key, value in header.items() if key not in ("license", "license_name")}
    body = text[found.end() :] if found else text
    section = _licence(name)
    body = LICENCE.sub(lambda _: f"{section}\n", body) if LICENCE.search(body) else f"{body.rstrip()}\n\n{section}"
    return f"---\n{_yaml({**_license_of(name), **header})}---\n{body}"


def headed(text: str, description: Description, card: Card) -> str:
    """A card with what the header of this model says, where its own header, if it has one, does not say it."""
    found = HEADER.match(text)
    own = _read_header(found[1]) if found else {}
    return f"---\n{_yaml({**own, **{k: v for k, v in _header(description, card).items() if k not in own}})}---\n" + (
        text[found.end() :] if found else text
    )


def _read_header(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"README.md: its header is no YAML ({str(error).splitlines()[0]})") from None
    return found if isinstance(found, dict) else {}


def placed_at(text: str, address: str) -> str:
    """A card whose examples load the model from `address`, in place of a folder without a name or another hub."""
    return USED.sub(lambda found: found[1] + address, text)


def escaped(text: str) -> str:
    """A text that somebody chose, safe within a line or a table of Markdown: no markup, no HTML, no line break."""
    return SPECIAL.sub(r"\\\g<0>", printable(text))


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)


def _task(description: Description, card: Card) -> str:
    return "video-classification" if description.clips is not None else card.task


def _header(description: Description, card: Card) -> dict[str, Any]:
    results = [_result(description, card, name, record) for name, record in card.records.items()]
    results = [result for result in results if result["metrics"]]
    metrics = list(dict.fromkeys(metric["type"] for result in results for metric in result["metrics"]))
    index = [{"name": printable(card.title, MAX_VALUE), "results": results}]
    return {
        **_license_of(card.license),
        "library_name": "classyseg",
        "pipeline_tag": _task(description, card),
        "tags": ["classyseg", printable(str(description.model.get("name")), MAX_VALUE)],
        **({"datasets": [printable(name, MAX_VALUE) for name in card.datasets]} if card.datasets else {}),
        **({"metrics": metrics, "model-index": index} if results else {}),
    }


def _license_of(name: str) -> dict[str, Any]:
    if not name:
        return {}
    known = name.strip().lower()
    return {"license": known} if known in LICENCES else {"license": "other", "license_name": printable(name, MAX_VALUE)}


def _result(description: Description, card: Card, split: str, record: Mapping[str, Any]) -> dict[str, Any]:
    data = printable(", ".join(card.datasets or card.data) or "own data", MAX_VALUE)
    numbers = [(key, value) for key, value in record.items() if type(value) in (int, float) and key not in NOT_MEASURED]
    return {
        "task": {"type": _task(description, card)},
        "dataset": {"name": data, "type": data, "split": split},
        "metrics": [
            {"type": printable(key, MAX_VALUE), "name": printable(key, MAX_VALUE), "value": value}
            for key, value in numbers
        ],
    }


def _architecture(description: Description) -> str:
    heads = description.model.get("heads", {})
    told = ", ".join(f"{escaped(name)} ({escaped(str(head.get('name')))})" for name, head in heads.items()) or "none"
    return f"A model of classyseg: {escaped(str(description.model.get('name')))} with the heads {told}"


def _usage(place: str, task: str) -> str:
    example = "clip.mp4" if task == "video-classification" else "photo.jpg"
    return (
        f'## Use\n\n```python\nimport classyseg\n\npredictor = classyseg.load("{place}")\n'
        f'labels = predictor.predict("{example}")\n```\n\n'
        f"```bash\nclassyseg predict {place} {example} --output out\n```\n"
    )


def _measured(name: str, record: Mapping[str, Any]) -> str:
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key not in OF_THE_RUN}
    by_class = {key: value for key, value in record.items() if isinstance(value, Mapping)}
    lines = [f"## Measured on {escaped(name)}", "", "| number | value |", "|---|--:|"]
    lines += [f"| {escaped(key)} | {_number(value)} |" for key, value in numbers.items()]
    for key, values in by_class.items():
        lines += ["", f"| class | {escaped(key)} |", "|---|--:|"]
        lines += [f"| {escaped(str(label))} | {_number(value)} |" for label, value in values.items()]
    return "\n".join([*lines, ""])


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _training(card: Card) -> str:
    lines = ["## Training", ""]
    lines.append(f"Data: {', '.join(map(escaped, card.data)) or 'not told'}.")
    if card.command:
        text = printable(without_secrets(card.command))
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
        lines += ["", f"{fence}bash", text, fence]
    else:
        lines += ["", "Its command is not told."]
    return "\n".join([*lines, ""])


def _licence(name: str) -> str:
    told = f"Given as: {escaped(name)}." if name else "None was given: ask whoever made this model before you use it."
    return f"## Licence\n\n{told}\n"


def _limits(description: Description, card: Card) -> str:
    written = description.model_dump(mode="json")["protocol"]
    protocol = written if isinstance(written, str) else ", ".join(f"{key}: {value}" for key, value in written.items())
    maps = _task(description, card) == SEGMENTATION
    return "\n".join(
        [
            "## Limits",
            "",
            "- The numbers hold for the data named above. Images of other cameras, places or sizes may give others.",
            f"- {'Each pixel gets a class' if maps else 'A class is given'}, also where none of them fits."
            if not description.multi_label
            else "- Classes that it was not trained on are never given.",
            f"- Images are normalised by mean {list(description.normalize.mean)} and std "
            f"{list(description.normalize.std)} (of 0 to 1); protocol `{printable(protocol)}`, precision "
            f"{description.precision}.",
            "",
        ]
    )

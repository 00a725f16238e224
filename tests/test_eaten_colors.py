"""Colours without quotes: `#` begins a comment in YAML, so that what was written is not what is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from classyseg.cli.main import main
from classyseg.config import ConfigError, ConfigTree, apply_overrides, parse_config

EATEN = {
    "mapping": ("color_map:\n  #000000: 0\n  #ff0000: 1\n", "line 1: color_map: found nothing, as `#000000`"),
    "last key": ("a: 1\ncolor_map:\n  #000000: 0\n\n", "line 2: color_map: found nothing, as `#000000`"),
    "above a key": ("color_map:\n  #000000: 0\nb: 2\n", "color_map: found nothing"),
    "not indented": ("color_map:\n#000000: 0\n#ff0000: 1\nb: 2\n", "color_map: found nothing"),
    "behind a comment": ("color_map:\n  # the background\n\n  #000000: 0\n", "color_map: found nothing, as `#000000`"),
    "short": ("color_map:\n  #000: 0\n  #f00: 1\n", "color_map: found nothing, as `#000`"),
    "without blanks": ("color_map:\n  #000000:0\n", "color_map: found nothing, as `#000000`"),
    "scalar": ("ignore_color: #FF00aa\n", "line 1: ignore_color: found nothing, as `#FF00aa`"),
    "short scalar": ("ignore_color: #f00\n", "ignore_color: found nothing, as `#f00`"),
    "scalar of any name": ("shade: #ff00aa # pink\n", "shade: found nothing, as `#ff00aa`"),
    "with alpha": ("shade: #ff00aaff\n", "shade: found nothing, as `#ff00aaff`"),
    "list": ('palette:\n  - "#000000"\n  - #ff0000\n', r"palette\[1\]: found nothing, as `#ff0000`"),
    "first of a list": ("palette:\n  - #000\n  - #f00\n", r"palette\[0\]: found nothing, as `#000`"),
    "within a mapping": ("a:\n  b: {name: x, shade: #ff0000\n  }\n", "line 2: a.b.shade: found nothing"),
    "flow list": ("palette: [#000000, #ff0000]\n", "line 1: `#000000` is not read"),
    "flow list over lines": ("palette: [\n  #000000,\n  #ff0000\n]\n", "palette: found nothing, as `#000000`"),
    "end of a flow list": ('palette: ["#000000", #ff0000\n]\n', "line 1: `#ff0000` is not read"),
    "flow mapping": ("color_map: {#000000: 0, #ff0000: 1}\n", "line 1: `#000000` is not read"),
    "flow mapping over lines": ("color_map: {\n  #000000: 0,\n}\n", "color_map: found nothing, as `#000000`"),
    "no blank": ('color_map: {"#000000": 0,#ff0000: 1}\n', "line 1: `#ff0000` is not read"),
    "behind an apostrophe": ("a: [it's, #ff0000\n]\n", "line 1: `#ff0000` is not read"),
    "behind a quote in quotes": ("a: ['it''s', \"\\\"[\", #ff0000\n]\n", "line 1: `#ff0000` is not read"),
    "carriage returns": ("color_map:\r\n  #000000: 0\r\n", "color_map: found nothing, as `#000000`"),
}
WHOLE = {
    "quotes": ('color_map:\n  "#000000": 0\n', {"color_map": {"#000000": 0}}),
    "single quotes": ("color_map: {'#000000': 0}\n", {"color_map": {"#000000": 0}}),
    "null": ("color_map: null\n#000000 was the background\n", {"color_map": None}),
    "tilde": ("color_map: ~ #000000\n", {"color_map": None}),
    "a colour that is left out": ('palette:\n  - "#000000"\n  #ff0000\n', {"palette": ["#000000"]}),
    "a colour that is left out first": (
        'color_map:\n  #000000: 0\n  "#ff0000": 1\n',
        {"color_map": {"#ff0000": 1}},
    ),
    "words": ("table: # of pairs\nweights: #add later\nb: #123 is open\n", {"table": None, "weights": None, "b": None}),
    "comment of a word": ("table:\n#decades are not colours\n", {"table": None}),
    "comment of a colour": ("# [#ff0000, #00ff00]\na: 1 # or [#ff0000]\n", {"a": 1}),
    "commented out": ("a: [1, # [2, #ff0000]\n]\n", {"a": [1]}),
    "plain": ("a: b#ff0000\n", {"a": "b#ff0000"}),
    "empty": ("a: {}\nb: []\nc: ''\n", {"a": {}, "b": [], "c": ""}),
    "apostrophes": ("a: it's [1 # don't\nb: don't [x\n", {"a": "it's [1", "b": "don't [x"}),
    "quoted brackets": ('a: "[ #ff0000"\n', {"a": "[ #ff0000"}),
}


@pytest.mark.parametrize(("text", "message"), EATEN.values(), ids=EATEN.keys())
def test_a_colour_without_quotes_is_an_error_that_says_so(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^task.yaml, .*{message}.*quotes, such as '#"):
        parse_config(text, source="task.yaml")


@pytest.mark.parametrize(("text", "values"), WHOLE.values(), ids=WHOLE.keys())
def test_other_comments_are_comments(text: str, values: dict[str, object]) -> None:
    assert parse_config(text, source="task.yaml").values == values


@pytest.mark.parametrize(
    "text",
    ["color_map={#000000: 0}", "palette=[#000000, #ff0000]", "ignore_color=#ff0000", "color_map={a: 0, #000: 1}"],
)
def test_overrides_say_so_too(text: str) -> None:
    with pytest.raises(ConfigError, match=r"override '.*put colours in quotes"):
        apply_overrides(ConfigTree({}, "task.yaml"), [text])


@pytest.mark.parametrize(
    ("text", "value"),
    [("a='my #1.csv'", "my #1.csv"), ('a="#1"', "#1"), ("a=b#1", "b#1"), ("a=['#1', \"b #2\"]", ["#1", "b #2"])],
)
def test_an_override_keeps_what_is_quoted(text: str, value: object) -> None:
    tree = ConfigTree({}, "task.yaml")
    apply_overrides(tree, [text])
    assert tree.values == {"a": value}


def test_a_command_names_the_key_whose_colours_have_no_quotes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "task.yaml"
    config.write_text(
        "name: segmentation\ndataset:\n  train:\n    name: folder\n    images: images\n    masks: masks\n"
        "    classes: [bg, fg]\n    color_map:\n      #000000: 0\n      #ff0000: 1\n",
        encoding="utf-8",
    )
    for command in (["train", str(config)], ["config", "check", str(config)], ["data", "check", str(config)]):
        assert main(command) == 2
        assert "task.yaml, line 8: dataset.train.color_map: found nothing" in capsys.readouterr().err


def test_colours_in_json_are_text() -> None:
    text = '{"color_map": {"#000000": 0}, "palette": ["#ff0000",\t"#00ff00"], "none": {}}'
    values = {"color_map": {"#000000": 0}, "palette": ["#ff0000", "#00ff00"], "none": {}}
    assert parse_config(text, source="task.json", is_json=True).values == values


@pytest.mark.parametrize(
    "value", ['x"\U0001f600', "\n\U0001f600", "\\\U0001f600", "\x85\U0001f600", "\u2028\t\U0001f600 a"]
)
def test_a_text_of_json_is_read_whole_beside_an_emoji(value: str) -> None:
    for ascii_only in (True, False):
        text = json.dumps({"name": value}, ensure_ascii=ascii_only)
        assert parse_config(text, source="task.json", is_json=True).values == {"name": value}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("name: a # note\u2028other: 2\n", "U+2028"),
        ("a: 1\nname: a\u2029\n", "U+2029"),
        ("name: a\x85b: 1\n", "U+0085"),
        ('name: "a\x85b"\n', "U+0085"),
    ],
)
def test_an_invisible_character_that_breaks_a_line_of_yaml_is_named(text: str, code: str) -> None:
    with pytest.raises(ConfigError, match=rf"^task.yaml, line \d.*{re.escape(code)}"):
        parse_config(text, source="task.yaml")


def test_quoted_line_separators_are_read() -> None:
    text = 'a: "x\u2028y"\nb: \'x\u2029y\'\nc: "x\\u0085y"\n'
    assert parse_config(text, source="task.yaml").values == {"a": "x\u2028y", "b": "x\u2029y", "c": "x\x85y"}


def test_shipped_configs_have_none() -> None:
    for path in (Path(__file__).parents[1] / "task_configs").rglob("*.yaml"):
        parse_config(path.read_text(encoding="utf-8"), source=str(path))

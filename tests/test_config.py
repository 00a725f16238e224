"""Reading configs: YAML and JSON without their traps, overrides, and errors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from classyseg.config import (
    MAX_BYTES,
    ConfigError,
    apply_overrides,
    closest,
    differences,
    dump_yaml,
    load_config,
    parse_config,
    unknown,
)
from classyseg.registry import HEADS, LOSSES, TASKS


def value_of(text: str, **options: Any) -> Any:
    return parse_config(f"value: {text}\n", source="here", **options).values["value"]


# -- scalars -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("-1E5", -1e5),
        ("2.", 2.0),
        (".5", 0.5),
        ("+3", 3),
        ("-0", 0),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'8'", "8"),
        ('"1e-3"', "1e-3"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("=", "="),
        ("!!str 3", "3"),
        ("[1, a, null]", [1, "a", None]),
        ("{a: {b: [x]}}", {"a": {"b": ["x"]}}),
    ],
)
def test_a_plain_word_is_read_as_it_looks(text: str, value: Any) -> None:
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_or_whole_numbers() -> None:
    keys = list(parse_config("{255: a, 'b': 1, no: 2, 010: 3, 1.5: 4, null: 5}", source="here").values)
    assert keys == [255, "b", "no", "010", "1.5", "null"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1e-3}', 1e-3),
        ('{"a": 1E+2}', 100.0),
        ('{\t"a":\t[1,\n\t2]}', [1, 2]),
        (r'{"a": "\u00e9\/\n\"\\"}', 'é/\n"\\'),
        (r'{"a": "\ud83d\ude00"}', "😀"),
        ('{"a": "tab\\tin text"}', "tab\tin text"),
        ('{"a": "# no comment: {no, mapping}"}', "# no comment: {no, mapping}"),
        ('{"a": "no"}', "no"),
        ('{"a": "8"}', "8"),
        ('{"a": null}', None),
        ('{"a": true}', True),
        ('{"a": {}}', {}),
        ('{"a": "12:30", "b": "~"}', "12:30"),
        ('{"a": ""}', ""),
        ('{"a":1}', 1),
        ('{"a":"x"}', "x"),
        (f'{{"a": {10**30}}}', 10**30),
    ],
)
def test_json_is_read_as_json_means_it(text: str, value: Any) -> None:
    found = parse_config(text, source="here", is_json=True).values
    assert found["a"] == value == json.loads(text)["a"]
    assert type(found["a"]) is type(value)


def test_a_json_config_may_be_indented_with_tabs_and_long(tmp_path: Path) -> None:
    tree = {"a": {f"key{i}": [i, f"text {i}", i / 7, None, True] for i in range(200)}}
    for indent in (None, 2, "\t"):
        path = tmp_path / "c.json"
        path.write_text(json.dumps(tree, indent=indent), encoding="utf-8")
        assert load_config(path).values == tree


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c{suffix}"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1,\r\n"b": "x"}\r\n')
    tree = load_config(path)
    assert tree.values == {"a": 1, "b": "x"}
    assert tree.place(("b",)) == f"{path}, line 2"


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n"])
def test_an_empty_file_is_an_empty_config(text: str) -> None:
    assert parse_config(text, source="here").values == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", b"a: caf\xe9\n", "not UTF-8 text (byte 6)"),
        ("c.yaml", b"- a\n- b\n", "found a list; a task config is a mapping of keys to values"),
        ("c.json", b"[1]", "found a list; a task config is a mapping"),
        ("c.yaml", b"just words\n", "found a text; a task config is a mapping"),
        ("c.yaml", b"3\n", "found a number; a task config is a mapping"),
        ("c.yaml", b"a: 1\n\tb: 2\n", "line 2, column 1: not YAML: "),
        ("c.yaml", b"a: [1, 2\nb: 3\n", "not YAML: "),
        ("c.yaml", b"a: 'x\n", "not YAML: "),
        ("c.yaml", b"a: 1\n---\nb: 2\n", "line 2, column 1: not YAML: but found another document"),
        ("c.yaml", b"a: \x00\n", "not YAML: "),
        ("c.json", b'{"a": 1, b}', "line 1, column 10: not JSON: "),
        ("c.json", b"{'a': 1}", "line 1, column 2: not JSON: "),
        ("c.json", b"", "line 1, column 1: not JSON: "),
        ("c.json", b'{"a": NaN}', "found NaN, which JSON has no number for"),
        ("c.json", b'{"a": [-Infinity]}', "found -Infinity, which JSON has no number for"),
        ("c.json", b'{"a": 1} x', "not JSON: Extra data"),
        ("c.toml", b"a = 1\n", "ends with '.toml'; accepted: .yaml, .yml, .json"),
        ("c.yaml", b"a: b: c\n", "line 1, column 5: not YAML: "),
    ],
)
def test_a_file_that_is_no_config_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "")):
        with pytest.raises(ConfigError, match=rf"{path}: .*{reason}"):
            load_config(path)


def test_a_file_too_large_for_a_config_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: " + b"x" * MAX_BYTES)
    with pytest.raises(ConfigError, match=rf"{path}.*{MAX_BYTES} bytes"):
        load_config(path)


# -- what YAML could do and configs do not -----------------------------------------------------------------------------

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "here, line 2, column 4: not YAML: aliases"),
        (BOMB, "here, line 2, column 10: not YAML: aliases"),
        ("a: &a [*a]\n", "not YAML: aliases"),
        ("a: {x: 1}\nb:\n  <<: {y: 2}\n", "here, line 3: a key must be a plain word"),
        ("? [a, b]\n: 1\n", "here, line 1: a key must be a plain word"),
        ("? {a: b}\n: 1\n", "here, line 1: a key must be a plain word"),
        ("a: !!python/object/apply:os.system [echo]\n", "here, line 1: a: found the tag "),
        ("a:\n  b: !!python/name:os.system\n", "here, line 2: a.b: found the tag tag:yaml.org,2002:python/name"),
        ("a: !include x.yaml\n", "a: found the tag !include"),
        ("a: !!binary aGk=\n", "a: found the tag tag:yaml.org,2002:binary"),
        ("a: !!set {x: null}\n", "a: found the tag tag:yaml.org,2002:set"),
        ("a: !!int x\n", "a: found 'x', which is no valid int"),
        ("a: !!bool maybe\n", "a: found 'maybe', which is no valid bool"),
        ("!!python/object:os.x {a: 1}\n", "found the tag "),
        ("!!int x: 1\n", "here, line 1: x: found 'x', which is no valid int"),
        ("!!python/name:os.system x: 1\n", "here, line 1: x: found the tag tag:yaml.org,2002:python/name"),
        (f"a: {'1' * 5000}\n", "here, line 1: a: found"),
        ("[" * 5000, "here"),
        (f"a: {'[' * 5000}{']' * 5000}\n", "here: nested too deeply"),
        (f"{'{a: ' * 5000}1{'}' * 5000}", "here: nested too deeply"),
    ],
)
def test_the_dangers_of_yaml_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="here")
    assert str(caught.value).startswith("here")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "here: nested too deeply"),
        (f'{{"a": {"1" * 5000}}}', "here: not JSON that can be read: Exceeds the limit"),
    ],
    ids=["deep", "digits"],
)
def test_json_made_to_hurt_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="here", is_json=True)
    assert str(caught.value).startswith(message)


def test_a_file_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classyseg.config.MAX_NODES", 100)
    with pytest.raises(ConfigError, match="here: more than 100 values"):
        parse_config(f"a: [{'1,' * 100}]", source="here")


@pytest.mark.parametrize(
    ("text", "is_json", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", False, "here, line 3: a: key written twice (first in here, line 1)"),
        ("m:\n  h: {x: 1,\n    y: 2, x: 3}\n", False, "here, line 3: m.h.x: key written twice (first in here, line 2)"),
        ("l:\n- a: 1\n- b: 1\n  b: 1\n", False, "here, line 4: l[1].b: key written twice (first in here, line 3)"),
        ("a: 1\n'a': 1\n", False, "here, line 2: a: key written twice"),
        ("m: {1: a, 1: b}\n", False, "m[1]: key written twice"),
        ('{"a": 1,\n "a": 1}', True, "here, line 2: a: key written twice (first in here, line 1)"),
        ('{"m": [{"x": 1,\n\n"x": 1}]}', True, "here, line 3: m[0].x: key written twice (first in here, line 1)"),
        ('{"a": 1, "\\u0061": 1}', True, "here, line 1: a: key written twice"),
    ],
)
def test_a_key_written_twice_is_refused_with_both_lines(text: str, is_json: bool, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="here", is_json=is_json)
    assert message in str(caught.value)


# -- overrides ---------------------------------------------------------------------------------------------------------

TEXT = "a: 1\nm:\n  k: x\n  empty:\n  l: [1, {n: 2}]\n"


def overridden(tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("override", "location", "value"),
    [
        ("a=2", ("a",), 2),
        ("a=1e-3", ("a",), 1e-3),
        ("a=no", ("a",), "no"),
        ("a='2'", ("a",), "2"),
        ("a=", ("a",), None),
        ("a=x=y", ("a",), "x=y"),
        ("a=[]", ("a",), []),
        ("a={b: [1, c]}", ("a",), {"b": [1, "c"]}),
        ("m.k=y", ("m", "k"), "y"),
        ("m.new=1", ("m", "new"), 1),
        ("new.deep.er=1", ("new", "deep", "er"), 1),
        ("m.empty.x=1", ("m", "empty", "x"), 1),
        ("m.l[0]=5", ("m", "l", 0), 5),
        ("m.l[1].n=3", ("m", "l", 1, "n"), 3),
        ("m.l=[3]", ("m", "l", 0), 3),
    ],
)
def test_an_override_writes_a_typed_value_at_its_place(
    tmp_path: Path, override: str, location: tuple[Any, ...], value: Any
) -> None:
    tree = overridden(tmp_path, override)
    found = tree.values
    for part in location:
        found = found[part]
    assert found == value
    assert type(found) is type(value)
    assert tree.place(location) == f"override '{override}'"
    assert tree.place(("m", "k")).startswith("override" if location == ("m", "k") else str(tmp_path))


def test_later_overrides_win_and_reach_into_earlier_ones(tmp_path: Path) -> None:
    tree = overridden(tmp_path, "m={x: {y: 1}}", "m.x.y=2", "a=5", "a=6")
    assert tree.values == {"a": 6, "m": {"x": {"y": 2}}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "expected key.sub=value"),
        ("=1", "expected key.sub=value"),
        ("a..b=1", "expected key.sub=value"),
        ("a b=1", "expected key.sub=value"),
        ("m.l[x]=1", "expected key.sub=value"),
        ("[0]=1", "expected key.sub=value"),
        ("m.l[00]=1", "expected key.sub=value"),
        ("m.l[\u0661]=1", "expected key.sub=value"),
        ("m.l[1111111111]=1", "expected key.sub=value"),
        ("a.b=1", "a is 1, not a mapping; there is no key 'b' in it"),
        ("m.l[2]=1", "m.l is a list of 2; there is no item [2]"),
        ("m.k[0]=1", "m.k is a text; there is no item [0]"),
        ("m.nothing[0]=1", "m.nothing is"),
        ("a=[1", "not YAML: "),
        ("a={255:", "; the shell splits at spaces, so quote what has some: 'a={255: ...'"),
        ("a={b: 1, b: 2}", "key written twice"),
        ("a=!!python/name:os.x", "found the tag "),
    ],
)
def test_an_override_that_does_not_fit_is_named_with_the_reason(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(tmp_path, override)
    assert str(caught.value).startswith(f"override '{override}'")
    assert message in str(caught.value)


# -- writing, comparing, suggesting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *(
            "no",
            "yes",
            "on",
            "null",
            "~",
            "",
            "010",
            "0x1f",
            "1e-3",
            "1.0",
            "-3",
            "true",
            "12:30",
            "2024-01-31",
            ".nan",
        ),
        *(
            "é ü 😀",
            "a: b",
            "# x",
            "- y",
            "'",
            '"',
            "\\",
            "a\nb",
            "  x ",
            "<<",
            "=",
            "*x",
            "&x",
            "!x",
            "%x",
            "@x",
            "\t",
        ),
        *(1, -1, 10**30, 0.1, 1e-5, 1e22, 1e300, 5e-324, -0.0, True, False, None, [], {}, [[]], [{}]),
        *({"255": 1}, {255: 1}, {"no": {"on": [1, "1", None]}}, {"null": 1}, {"": 1}),
    ],
    ids=repr,
)
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    tree = {"value": value, "again": [value, {"deeper": value}]}
    read = parse_config(dump_yaml(tree), source="here").values
    assert read == tree
    assert repr(read) == repr(tree)


def test_a_shared_object_is_written_out_twice() -> None:
    shared = {"x": [1]}
    assert "*" not in dump_yaml({"a": shared, "b": shared})


def test_differences_are_found_at_every_depth_with_both_values() -> None:
    old = {"a": 1, "m": {"x": 1, "y": [1, 2], "gone": 3}, "same": {"z": 1}}
    new = {"a": 2, "m": {"x": 1, "y": [1, 3], "new": 4}, "same": {"z": 1}}
    assert differences(old, new) == [
        (("a",), 1, 2),
        (("m", "y"), [1, 2], [1, 3]),
        (("m", "gone"), 3, None),
        (("m", "new"), None, 4),
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("word", "near"),
    [("chanels", "channels"), ("Channels", "channels"), ("lr_facter", "lr_factor"), ("zzz", None), (3, None)],
)
def test_the_closest_word_is_the_one_that_was_meant(word: object, near: str | None) -> None:
    assert closest(word, ["channels", "lr_factor", "blocks"]) == near


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("stag2e", ["stage1", "stage2", "stage3", "stage4"], "stage2"),
        ("occo", ["ade20k", "coco", "coco_json"], "coco"),
        ("adawm", ["adam", "adamw"], "adamw"),
    ],
)
def test_letters_that_changed_places_are_the_likeliest_slip(word: str, known: list[str], near: str) -> None:
    assert closest(word, known) == near


def test_a_slip_in_a_fixed_choice_gets_a_suggestion() -> None:
    config = {"name": "unet", "blocks": ["stage1", "stage2"], "channels": [8], "norm": {"name": "btch"}}
    with pytest.raises(
        ConfigError, match=r"norm\.name: found 'btch'; did you mean 'batch'\? Input should be 'batch', "
    ):
        HEADS.validate(config)


def test_an_unknown_name_comes_with_the_closest_and_a_list_that_stays_short() -> None:
    assert unknown("key", "lrr", ["momentum", "lr"]) == "unknown key; did you mean 'lr'? Known: lr, momentum."
    assert unknown("key", "x", []) == "unknown key. Known: none."
    assert unknown("model", "x", [f"m{i:03}" for i in range(90)]).endswith("m039, ... (90 in all).")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\nseed: 3", "\x85seed: 3", "\u2028seed: 3", "\n  more"])
def test_an_override_with_a_line_break_is_refused_not_cut(ending: str) -> None:
    tree = parse_config("seed: 1", source="c.yaml")
    with pytest.raises(ConfigError, match="holds a line break"):
        apply_overrides(tree, [f"seed=2{ending}"])
    assert tree.values == {"seed": 1}


@pytest.mark.parametrize("text", ["#ff0000", "a #ff0000", "[a] # b", "3 #"])
def test_what_yaml_would_leave_out_of_an_override_is_an_error(text: str) -> None:
    tree = parse_config("color: x", source="c.yaml")
    with pytest.raises(ConfigError, match="quotes"):
        apply_overrides(tree, [f"color={text}"])
    apply_overrides(tree, [f'color="{text}"'])
    assert tree.values == {"color": text}


def test_a_long_override_is_told_in_a_line_of_its_beginning() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(parse_config("seed: 1", source="c.yaml"), [f"a b{'c' * 10**5}\n=3"])
    assert len(str(caught.value)) < 500
    assert len(str(caught.value).splitlines()) == 1


def test_a_list_of_wrong_items_is_not_told_to_be_empty_too() -> None:
    def told(losses: str) -> list[str]:
        text = f"name: sum_arbitrary\nlosses: {losses}\n"
        with pytest.raises(ConfigError) as caught:
            LOSSES.validate(parse_config(text, source="c.yaml"))
        return str(caught.value).splitlines()

    (line,) = told("[cross_entropi]")
    assert "cross_entropy" in line
    (line,) = told("[]")
    assert "at least 1" in line


def test_many_problems_are_told_in_few_lines() -> None:
    tree = parse_config("name: segmentation\n" + "".join(f"key{i}: 1\n" for i in range(5000)), source="c.yaml")
    with pytest.raises(ConfigError) as caught:
        TASKS.validate(tree)
    lines = str(caught.value).splitlines()
    assert len(lines) < 50
    assert any("4980 more unknown keys" in line for line in lines)

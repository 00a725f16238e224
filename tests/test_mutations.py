"""Two hundred mistakes in the shipped configs: each is one message that says where it is and what was meant."""

from __future__ import annotations

import copy
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from classyseg.cli.train import main as classy_train_main
from classyseg.config import Location, dump_yaml, load_config, path_text

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "task_configs").rglob("*.yaml"))

QUOTA = {"misspelt key": 80, "wrong type": 45, "missing field": 25, "unknown name": 25, "key twice": 25}
REQUIRED = re.compile(
    r"name$|^(num_epochs|batch_size|dataset|model|loss|optimizer)$|^dataset\.train$|\.(split|blocks|size|match)$|"
    r"^optimizer\.lr$"
)
HAS_DEFAULT = re.compile(r"\.norm\.name$")
MAY_BE_MISSING = {("size", "resize"), ("size", "synthetic_video")}
"""Keys with the component in which they may be left out."""
NAMED_BY_USER = re.compile(r"^model\.heads\.\w+$")
BARE_COMPONENT = re.compile(r"^(hooks|meters|dataset\.\w+\.transforms)\[\d+\]$")


@dataclass(frozen=True)
class Mutation:
    """A config with one mistake. Its message must hold the `path` of the mistake, and `expected`."""

    kind: str
    config: str
    path: str
    text: str
    expected: str

    @property
    def label(self) -> str:
        return f"{self.config}-{self.kind}-{self.path}"


def walk(node: Any, location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Every part of a config tree below its root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*location, key), value
        yield from walk(value, (*location, key))


def at(tree: Any, location: Location) -> Any:
    for part in location:
        tree = tree[part]
    return tree


def misspell(word: str, generator: random.Random) -> str:
    """`word` with two letters swapped, one left out, or one doubled."""
    place = generator.randrange(len(word) - 1)
    ways = [word[: place + 1] + word[place:]]
    if len(word) > 3:
        ways += [word[:place] + word[place + 1 :], word[:place] + word[place + 1] + word[place] + word[place + 2 :]]
    return generator.choice([way for way in ways if way != word])


def wrong_value(value: Any) -> Any:
    """Something of another type, as it happens to people: quotes too many, a list too few."""
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return 3.5
    return "text" if isinstance(value, list) else 5


def in_the_tree(path: Path, generator: random.Random) -> Iterator[Mutation]:
    """The mistakes that can be made in a parsed config."""
    original = load_config(path).values

    def mutation(kind: str, location: Location, expected: str, tree: Any) -> Mutation:
        return Mutation(kind, path.stem, path_text(location), dump_yaml(tree), expected)

    for location, value in walk(original):
        *parents, key = location
        text = path_text(location)
        if isinstance(key, str) and not NAMED_BY_USER.match(text):
            wrong = misspell(key, generator)
            tree = copy.deepcopy(original)
            node = at(tree, tuple(parents))
            renamed = {wrong if k == key else k: v for k, v in node.items()}
            node.clear()
            node.update(renamed)
            yield mutation("misspelt key", (*parents, wrong), f"did you mean '{key}'?", tree)
        inside = at(original, tuple(parents))
        of = inside.get("name") if isinstance(inside, dict) else None
        has_default = HAS_DEFAULT.search(text) or (key, of) in MAY_BE_MISSING
        if isinstance(key, str) and REQUIRED.search(text) and not has_default:
            tree = copy.deepcopy(original)
            del at(tree, tuple(parents))[key]
            yield mutation("missing field", location, f"{text}: missing", tree)
        if key == "name" or (BARE_COMPONENT.match(text) and isinstance(value, str)) or "blocks" in parents:
            tree = copy.deepcopy(original)
            at(tree, tuple(parents))[key] = misspell(value, generator)
            yield mutation("unknown name", location, f"did you mean '{value}'?", tree)
        if value is None:  # a key that is turned off: any value may be right
            continue
        tree = copy.deepcopy(original)
        at(tree, tuple(parents))[key] = wrong_value(value)
        yield mutation("wrong type", location, f"{text}: found {wrong_value(value)!r}; ", tree)


def in_the_text(path: Path) -> Iterator[Mutation]:
    """Keys written twice, in front of each key of the file."""
    text = path.read_text(encoding="utf-8")

    def keys(node: yaml.Node, location: Location) -> Iterator[tuple[Location, yaml.Node, bool]]:
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                yield from keys(item, (*location, i))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield (*location, key.value), key, bool(node.flow_style)
                yield from keys(value, (*location, key.value))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None
    for location, key, in_braces in keys(root, ()):
        start = key.start_mark
        end = ", " if in_braces else "\n" + " " * start.column
        twice = f"{text[: start.index]}{key.value}: 0{end}{text[start.index :]}"
        yield Mutation("key twice", path.stem, path_text(location), twice, "key written twice (first in ")


def mutations() -> list[Mutation]:
    """The same ones in every run: some of each config, and a new config leaves those of the others as they are."""
    found: dict[str, list[tuple[int, str, Mutation]]] = {}
    for path in CONFIGS:
        name = str(path.relative_to(ROOT))
        generator = random.Random(name)
        made = [*in_the_tree(path, generator), *in_the_text(path)]
        for kind in QUOTA:
            of_kind = [mutation for mutation in made if mutation.kind == kind]
            drawn = enumerate(generator.sample(of_kind, min(len(of_kind), 5)))
            found.setdefault(kind, []).extend((turn, name, mutation) for turn, mutation in drawn)
    ranked = {kind: sorted(each, key=lambda drawn: drawn[:2]) for kind, each in found.items()}
    return [mutation for kind, number in QUOTA.items() for *_, mutation in ranked[kind][:number]]


MUTATIONS = mutations()


def assert_helpful(mutation: Mutation, message: str) -> None:
    assert message.startswith("error: ")
    assert f"{mutation.path}: " in message
    assert mutation.expected in message
    assert "Traceback" not in message


def test_there_are_two_hundred_from_every_config_at_every_depth() -> None:
    assert len({(mutation.label, mutation.text) for mutation in MUTATIONS}) == 200
    assert {mutation.config for mutation in MUTATIONS} == {path.stem for path in CONFIGS}
    depths = {len(re.findall(r"\.|\[", mutation.path)) for mutation in MUTATIONS if mutation.kind == "misspelt key"}
    assert depths >= {0, 1, 2, 3}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.label)
def test_a_mistake_is_one_message_with_its_path(
    mutation: Mutation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(mutation.text, encoding="utf-8")
    assert classy_train_main(["--config", str(path), "--check"]) == 2
    assert_helpful(mutation, capsys.readouterr().err)


def test_a_mistake_ends_a_process_with_exit_code_2(tmp_path: Path) -> None:
    mutation = MUTATIONS[0]
    path = tmp_path / "task.yaml"
    path.write_text(mutation.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "classy_train.py", "--config", path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert_helpful(mutation, done.stderr)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.multi_grid=[1, 2, 3]", "model.multi_grid: found 3 factors; the last stage has 2 blocks"),
        ("model.norm={name: group, groups: 7}", "model.norm.groups: found 7, which does not divide 64 channels"),
        ("model.heads.main.norm={name: group, groups: 7}", "model.heads.main.norm.groups: found 7"),
        ("model.heads.main={name: deeplabv3, blocks: [stage1, stage2]}", "model.heads.main.blocks: found 2"),
        ("model.heads.main.blocks[1]=layer9.0", "model.heads.main.blocks[1]: unknown block 'layer9.0'; did you mean"),
        ("model.heads.main.train_only=true", "model.heads: found no head that works in eval mode"),
        ("model.heads={}", "model.heads: found no head"),
        ("loss.head_weights={mian: 1.0}", "loss.head_weights.mian: 'mian': unknown head; did you mean 'main'?"),
        ("meters=[{name: mean_iou, head: mian}]", "meters[0].head: 'mian': unknown head that works in eval mode; did"),
        ("hooks=[{name: checkpoint, best: miou}]", "hooks[0].best: 'miou': unknown number of the val record; did you"),
        ("loss.class_weights=[1, 2]", "loss.class_weights: found 2 weights for 4 classes; expected one per class"),
        ("optimizer.groups=[{match: head.*}]", "optimizer.groups[0].match: found 'head.*', which matches no parameter"),
        ("optimizer.schedule.warmup_epochs=3", "optimizer.schedule.warmup_epochs: found 3"),
        (
            "optimizer.schedule={name: multi_step, milestones: [2, 1]}",
            "optimizer.schedule.milestones: found [2.0, 1.0]",
        ),
        ("optimizer={name: sgd, lr: 0.1, momentum: 0, nesterov: true}", "optimizer.nesterov: found true"),
        ("dataset.val.transforms=[horizontal_flip, pad]", "dataset.val.transforms[1]: give one of 'size' and"),
    ],
)
def test_a_mistake_that_shows_when_parts_meet_has_its_path_too(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classy_train_main(["--config", "task_configs/quickstart.yaml", "--check", override]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")

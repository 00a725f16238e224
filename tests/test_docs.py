"""The README and docs/ against the code: what they show runs, what they list is there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import BaseModel

from classyseg import TASKS, load_config, parse_config
from classyseg.cli.keys import BEGIN, KINDS, sections, written, yaml_value
from classyseg.cli.main import main as classyseg_main
from classyseg.cli.models import WRITTEN, row
from classyseg.cli.train import main as classy_train_main
from classyseg.config import ConfigTree
from classyseg.documented import meanings, parts_of
from classyseg.heads import FCNHead
from classyseg.io import read_json_lines
from classyseg.registry import REGISTRIES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_ON_THE_PAGE: tuple[str, ...] = ()
"""The kinds of components that another page describes."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(language: str, pages: list[Path] = PAGES) -> list[Block]:
    """The fenced blocks of a language, without those that a comment `<!-- not run: reason -->` stands before."""
    return [
        Block(page, text.count("\n", 0, match.start("code")), language, match["code"])
        for page in pages
        for text in [page.read_text(encoding="utf-8")]
        for match in FENCE.finditer(text)
        if match["language"] == language and not match["before"].startswith("<!-- not run: ")
    ]


def section(page: Path, title: str) -> str:
    text = page.read_text(encoding="utf-8")
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert match, f"{page.name} has no section '{title}'"
    return match[1]


def only_command(title: str) -> str:
    (block,) = re.findall(r"```bash\n(.*?)```", section(README, title), re.DOTALL)
    (line,) = block.splitlines()
    return line


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", [page])], ids=lambda page: page.name)
@pytest.mark.usefixtures("own_registries")
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    for block in blocks("python", [page]):
        exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_the_yaml_of_a_page_is_a_valid_task_config_or_part_of_one(block: Block) -> None:
    tree = parse_config(block.code, source=block.place)
    if "name" not in tree.values:
        whole = load_config(ROOT / "task_configs" / "quickstart.yaml").values
        taking = [name for name in TASKS.names() if tree.values.keys() <= TASKS.config_model(name).model_fields.keys()]
        task = "segmentation" if "segmentation" in taking else taking[0]  # some keys belong to one task alone
        tree = ConfigTree({**whole, "name": task, **tree.values}, block.place, tree.lines)
    config = TASKS.validate(tree)
    config.component.check(config)  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_the_json_of_a_page_is_json(block: Block) -> None:
    assert all(isinstance(json.loads(line), dict) for line in block.code.splitlines())


def classyseg_commands() -> list[Any]:
    """The lines of bash blocks that call classyseg, as (place, words); training only checks."""
    found = []
    for block in blocks("bash"):
        for line in block.code.splitlines():
            words = shlex.split(line.split(" > ")[0].split(" && ")[-1])
            program, *arguments = words
            if program not in ("classyseg", ".venv/bin/classyseg") and words[:2] != ["python", "classy_train.py"]:
                continue
            if arguments[0] in ("train", "classy_train.py"):
                arguments.append("--check")
            found.append(pytest.param([program, *arguments], id=f"{block.place} {line[-40:]}"))
    return found


@pytest.mark.parametrize("words", classyseg_commands())
def test_a_command_of_a_page_works(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLASSYSEG_DATA", raising=False)
    (tmp_path / "streets.yaml").write_text(readme_folder_config(), encoding="utf-8")
    make_readme_folder(tmp_path)
    exit_code = classy_train_main(words[2:]) if words[0] == "python" else classyseg_main(words[1:])
    assert exit_code == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def readme_folder_config() -> str:
    (code,) = [block.code for block in blocks("yaml", [README]) if "name: folder" in block.code]
    return code


def make_readme_folder(root: Path) -> None:
    """The files that the README lists, and some more beside each, of random pixels of three classes and no label."""
    random = np.random.default_rng(0)
    listed = re.findall(r"^data/\S+$", section(README, "Train on your own folder of images"), re.MULTILINE)
    assert len(listed) == 4
    for path in map(Path, listed):
        (root / path).parent.mkdir(parents=True)
        for i in range(4):
            shape = (40, 48, 3) if "images" in path.parts else (40, 48)
            values = random.integers(0, 256 if "images" in path.parts else 3, shape).astype(np.uint8)
            if "masks" in path.parts:
                values[:2] = 255
            Image.fromarray(values).save(root / path.with_stem(f"{int(path.stem) + i:04d}"))


def test_the_folder_config_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLASSYSEG_DATA", raising=False)
    make_readme_folder(tmp_path)
    Path("streets.yaml").write_text(readme_folder_config(), encoding="utf-8")
    overrides = ["num_epochs=1", "optimizer.schedule.warmup_epochs=0", "batch_size=2", "runtime.workers=0"]
    overrides += ["dataset.train.transforms[0].size=[64, 64]"]
    assert classyseg_main(["train", "--config", "streets.yaml", "--output", "runs/streets", *overrides]) == 0
    test_record = read_json_lines(Path("runs/streets/metrics.jsonl"))[-1]
    assert list(test_record["iou"]) == ["background", "road", "car"]
    assert Path("runs/streets/checkpoints/BEST").read_text(encoding="utf-8").startswith("step-2 ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path_part, _, anchor = target.partition("#")
        path = page.parent / path_part if path_part else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_one_quick_start_command_that_trains_the_packaged_config() -> None:
    *install, train = only_command("Quick start").split(" && ")
    assert install == ["python3 -m venv .venv", ".venv/bin/pip install ."]
    assert (
        train == ".venv/bin/classyseg train --config task_configs/quickstart.yaml --output runs/quickstart"
    )  # its arguments are checked with the other commands


def test_ci_runs_the_test_command_of_the_readme_word_for_word() -> None:
    assert only_command("Tests") in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_readme_counts_backbones_heads_and_models_as_they_are() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = documented_rows()
    with_heads = [name for name in rows if REGISTRIES["models"].entry(name).defaults.get("heads")]
    heads = [
        name for name in REGISTRIES["heads"].names() if REGISTRIES["heads"].entry(name).distribution == "classyseg"
    ]
    counts = [int(number) for number in re.findall(r"(\d+) \[", text)]
    assert counts == [len(rows) - len(with_heads), len(heads), len(with_heads)]


def test_every_page_is_linked_in_the_readme_and_every_benchmark_in_its_list() -> None:
    readme, benchmarks = ((ROOT / name).read_text() for name in ("README.md", "benchmarks/README.md"))
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name}" not in readme]
    assert not [script.name for script in (ROOT / "benchmarks").glob("*.py") if f"`{script.name}`" not in benchmarks]


def test_the_plugin_page_lists_every_entry_point_group_with_its_base_class() -> None:
    rows = re.findall(r"^\| `(classyseg\.\w+)` \| `(\w+)` \|", (ROOT / "docs/plugins.md").read_text("utf-8"), re.M)
    assert rows == [(registry.group, registry.base().__name__) for registry in REGISTRIES.values()]


def test_the_page_of_configs_is_what_the_code_says_now() -> None:
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert written(page) == page, "run `classyseg config keys --write docs/configs.md`"
    assert page.count(BEGIN.partition("{}")[0]) >= len(KINDS) == len(REGISTRIES) - len(NOT_ON_THE_PAGE)


def builtin_sections() -> dict[str, str]:
    found = {f"{what} {name}": "\n".join(lines) for what in KINDS for name, lines in sections(what, plugins=False)}
    found |= {name: "\n".join(lines) for name, lines in sections("records")}
    assert len(found) > 100
    return found


def test_components_of_plugins_are_printed_but_on_no_page(own_registries: None) -> None:
    class Own(FCNHead):
        """A head of somebody else."""

    REGISTRIES["heads"].register("own_head")(Own)
    assert "own_head" in dict(sections("heads"))
    assert "own_head" not in dict(sections("heads", plugins=False))
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert written(page) == page


def test_every_component_and_record_is_on_the_page_with_a_meaning_of_each_key() -> None:
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    missing = [name for name, text in builtin_sections().items() if text not in page]
    assert not missing
    silent = re.findall(r"^\| `\w+` \| .*? \|  \|$", page, re.MULTILINE)
    assert not silent


def test_the_keys_of_attachments_are_on_the_page() -> None:
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    for kind in ("models", "heads", "datasets"):
        for key in REGISTRIES[kind].placement:
            assert re.search(rf"^\| `{key}` \| \S.*? \| \S", page, re.MULTILINE), key


def test_defaults_on_the_page_are_read_back_as_they_are() -> None:
    """Through the project's own reader, which takes 1e-5 as a number."""
    values = [None, True, 0.1, 1e-5, 1e20, "auto", "", "a b", "1e3", "null", [1, [2]], {"name": "batch", "eps": 1e-3}]
    for value in values:
        assert parse_config(f"value: {yaml_value(value)}", source="page").values["value"] == value


def test_a_docstring_gives_the_meaning_of_keys_to_the_schema() -> None:
    text, keys = parts_of(
        "First.\n\n    Args:\n        a: One: two.\n            More.\n        b: Three.\n\n    Raises: `E`."
    )
    assert keys == {"a": "One: two. More.", "b": "Three."}
    assert text.split("\n\n") == ["First.", "Raises: `E`."]
    schema = REGISTRIES["heads"].config_model("fcn").model_json_schema()
    assert schema["properties"]["dropout"]["description"] == meanings(FCNHead)["dropout"]
    assert schema["properties"]["norm"]["description"] == "See key `norm`."


def test_the_resume_page_lists_the_keys_that_may_change() -> None:
    from classyseg.tasks import ClassyTask

    text = section(ROOT / "docs" / "configs.md", "Resuming").replace("\n", " ")
    listed = re.search(r"do not change the numbers: (.*?)\. ", text)
    assert listed
    assert tuple(re.findall(r"`([\w.]+)`", listed[1])) == ClassyTask.free_on_resume


def test_the_run_folder_page_names_every_file_and_field_of_a_run(tmp_path: Path) -> None:
    settings = ["num_epochs=1", "batch_size=2", "dataset.train.num_samples=4", "dataset.val.num_samples=1"]
    settings += [
        "runtime.workers=0",
        "dataset.val.on_bad_sample=skip",
        "hooks=[{name: checkpoint, best: mean_iou}, {name: log, every: 1}]",
    ]
    settings += ["meters=[mean_iou, confusion_matrix]", "optimizer.schedule=constant"]
    settings += ["dataset.test={name: synthetic_shapes, split: test, num_samples: 1}"]
    output = tmp_path / "run"
    assert classy_train_main(["--config", "task_configs/quickstart.yaml", "--output", str(output), *settings]) == 0

    text = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
    for path in output.rglob("*"):
        name = path.name.replace("step-2", "step-N")
        assert name in text, name
    state = json.loads((output / "checkpoints" / "step-2" / "state.json").read_text(encoding="utf-8"))
    assert set(table_rows(text, "## Checkpoints")) == set(state)
    metrics = read_json_lines(output / "metrics.jsonl")
    assert set(table_rows(text, "## metrics.jsonl")) == set().union(*metrics)
    (example,) = [block for block in blocks("json", [ROOT / "docs" / "run_folder.md"]) if '"steps' not in block.code][
        1:
    ]
    assert list(json.loads(example.code)) == list(read_json_lines(output / "steps.jsonl")[0])


def table_rows(text: str, heading: str) -> list[str]:
    """The names in the first columns of the tables of a section."""
    part = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`\w.*?) \| ", part, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_yaml_of_pages_reads_alike_with_a_usual_reader() -> None:
    for block in blocks("yaml"):
        assert yaml.safe_load(block.code) == parse_config(block.code, source=block.place).values, block.place


BACKBONES = ROOT / "docs" / "backbones.md"


def documented_rows() -> dict[str, str]:
    rows = BACKBONES.read_text(encoding="utf-8").partition(WRITTEN)[2].splitlines()
    return {row.split("`")[1]: row for row in rows if row.startswith("| `")}


def test_the_page_of_backbones_lists_every_one_that_needs_no_config() -> None:
    models = REGISTRIES["models"]
    own = [name for name in models.names() if models.entry(name).distribution == "classyseg"]
    needed = {name for name in own if not required_keys(models.config_model(name))}
    assert set(documented_rows()) == needed, "run `classyseg models --write docs/backbones.md`"


def required_keys(config: type[BaseModel]) -> list[str]:
    return [key for key, field in config.model_fields.items() if field.is_required() and key != "name"]


def test_rows_of_the_page_of_backbones_are_what_the_command_prints(request: pytest.FixtureRequest) -> None:
    rows = documented_rows()
    every = request.config.getoption("--every-variant")
    for name in list(rows) if every else list(rows)[::15]:
        assert rows[name] == row(name)


def test_every_test_that_the_page_of_faults_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))

    assert len(named) > 20
    assert [
        (file, test)
        for file, test in named
        if f"\ndef {test}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ] == []

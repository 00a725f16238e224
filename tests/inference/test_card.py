"""The card of a model's folder: the hub's own library reads its header, and no text of a user is markup in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import classyseg
from classyseg.cli.main import main
from classyseg.hooks import ClassyHook
from classyseg.inference import Card, Predictor
from classyseg.models import build_model
from classyseg.registry import HOOKS
from runs import tiny_config, write_config
from served import small_predictor, whole_image_predictor

HOSTILE = (
    "---\nlicense: mit",
    "<script>alert(1)</script>",
    "a: b # c",
    "[x](javascript:1)",
    "`code` | *bold*",
    "\u202eevil\x1b[2J",
    "- &a *a !!python/object:os.system",
)


def card_of(predictor: Predictor, folder: Path, *arguments: Any, **options: Any) -> ModelCard:
    return ModelCard((predictor.save(folder / "model", *arguments, **options) / "README.md").read_text("utf-8"))


def test_the_hubs_library_reads_numbers_data_and_licence(tmp_path: Path) -> None:
    records = {
        "val": {"mean_iou": 0.71, "pixel_accuracy": 0.9, "lr": 0.1, "seconds": 3.0, "epoch": 2, "iou": {"sky": 0.5}},
        "test": {"mean_iou": 0.69, "loss": None},
    }
    card = Card(
        title="Streets", records=records, datasets=("camvid",), data=("camvid (train)",), command="classyseg train a"
    )
    data = card_of(small_predictor(), tmp_path, card, license="Apache-2.0").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("classyseg", "image-segmentation", "apache-2.0")
    assert (data.datasets, data.metrics) == (["camvid"], ["mean_iou", "pixel_accuracy"])
    found = [(r.dataset_split, r.metric_type, r.metric_value, r.dataset_name) for r in data.eval_results]
    assert found == [
        ("val", "mean_iou", 0.71, "camvid"),
        ("val", "pixel_accuracy", 0.9, "camvid"),
        ("test", "mean_iou", 0.69, "camvid"),
    ]
    assert data.model_name == "Streets"


def test_without_a_licence_the_card_says_that_none_was_given(tmp_path: Path) -> None:
    card = card_of(small_predictor(), tmp_path)
    assert card.data.license is None
    assert "## Licence\n\nNone was given" in card.text


def test_a_licence_that_the_hub_does_not_know_is_another_one_with_its_name(tmp_path: Path) -> None:
    card = card_of(small_predictor(), tmp_path, license="Mine: <b>")
    assert (card.data.license, card.data.license_name) == ("other", "Mine: <b>")
    assert "## Licence\n\nGiven as: Mine: \\<b\\>.\n" in card.text


def test_the_kind_of_model_is_told(tmp_path: Path) -> None:
    assert card_of(whole_image_predictor(), tmp_path).data.pipeline_tag == "image-classification"


def test_texts_of_users_are_neither_yaml_nor_markup(tmp_path: Path) -> None:
    config = tiny_config()["model"]
    predictor = Predictor(build_model(config, len(HOSTILE)), classes=HOSTILE, model_config=config, device="cpu")
    for text in HOSTILE:
        records = {text: {text: 0.5, "iou": dict.fromkeys(HOSTILE, 0.25)}}
        given = Card(
            title=text, records=records, datasets=(text,), data=(text,), command=f"{text}\n```\nrm -rf", license=text
        )
        card = card_of(predictor, tmp_path, given)
        header = yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))
        assert header["pipeline_tag"] == "image-segmentation"
        assert header["license"] == "other"
        body = re.sub(r"^(`{3,})bash\n.*\n\1$", "", card.content.split("\n---\n", 1)[1], flags=re.MULTILINE)
        assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(|\x1b|\u202e", body)
        assert not re.search(r"^\s*(---|license: mit|rm -rf)", body, re.MULTILINE)
        rows = [line for line in body.splitlines() if line.endswith("| 0.2500 |")]
        assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * len(HOSTILE)


def test_a_loaded_model_keeps_its_card_and_takes_another_licence(tmp_path: Path) -> None:
    small_predictor().save(tmp_path / "a", Card(title="Streets", records={"val": {"mean_iou": 0.7}}), license="mit")
    loaded = classyseg.load(tmp_path / "a", device="cpu")
    first = (loaded.save(tmp_path / "b") / "README.md").read_text()
    assert first == (tmp_path / "a" / "README.md").read_text()
    second = (loaded.save(tmp_path / "b", license="cc-by-4.0") / "README.md").read_text()
    assert "## Licence\n\nGiven as: cc-by-4.0.\n" in second
    header = ModelCard(second).data
    assert (header.license, header.eval_results[0].metric_value) == ("cc-by-4.0", 0.7)
    changed = [line for line in second.splitlines() if line not in first.splitlines()]
    assert changed == ["license: cc-by-4.0", "Given as: cc-by-4.0."]
    (tmp_path / "a" / "README.md").write_text("My own text.\n")
    own = (classyseg.load(tmp_path / "a", device="cpu").save(tmp_path / "b", license="mit") / "README.md").read_text()
    assert own == "---\nlicense: mit\n---\nMy own text.\n\n## Licence\n\nGiven as: mit.\n"


def test_a_run_tells_its_data_and_its_command_and_no_path_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, {"num_epochs": 1, "hooks": []})
    overrides = ["batch_size=12", "dataset.val.name=synthetic_shapes", "name=segmentation"]
    assert main(["train", str(config), "--output", str(tmp_path / "run"), *overrides]) == 0
    text = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert f"classyseg train {config.name} batch_size=12" in text
    assert "Data: synthetic_shapes (train)." in text
    assert str(tmp_path) not in text
    assert ModelCard(text).data.eval_results[0].metric_type == "mean_iou"


class NotedHook(ClassyHook):
    """Takes any texts."""

    def __init__(self, *, notes: tuple[str, ...]) -> None:
        self.notes = notes


def test_the_command_of_a_card_tells_no_folder_and_no_password(tmp_path: Path, own_registries: None) -> None:
    HOOKS.register("noted")(NotedHook)
    notes = ["/home/jane/a/x1", "~jane/a/x2", "file:///home/jane/x3", "/home/jane doe/a/x4", "../jane/x5", "a/b/x6"]
    notes += ["https://jane:doe@example.org/x7"]
    hooks = f"hooks=[{{name: noted, notes: [{', '.join(map(repr, notes))}]}}]"
    config = write_config(tmp_path, {"num_epochs": 1})
    assert main(["train", str(config), "--output", str(tmp_path / "run"), hooks]) == 0
    text = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert not re.search("jane|doe", text)
    told = [".../x1", ".../x2", ".../x3", ".../x4", ".../x5", "a/b/x6", "https://example.org/x7"]
    assert all(part in text for part in told)

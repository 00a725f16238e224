"""Exports that are refused, or leave something out, say so; and nothing is left of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exported_models import OfFours, picture, predictor_with
from torch import Tensor

import classyseg
from classyseg.cli.main import main
from classyseg.errors import ConfigError, DataError
from classyseg.exporting import export
from classyseg.inference import Predictor
from classyseg.models import build_model
from runs import tiny_config


@pytest.mark.parametrize("place", ["file/m.pt2", "file/new/m.pt2", "gone/m.pt2"])
def test_a_place_where_nothing_can_be_written_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="name a file in another folder"):
        export(predictor_with("fcn"), format="torch_export", output=tmp_path / place)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_opset_is_the_files_or_refused(tmp_path: Path) -> None:
    """torch's exporter itself keeps its own version without a word."""
    import onnx

    made = export(predictor_with("fcn"), format="onnx", output=tmp_path / "m.onnx", opset=20)
    assert [each.version for each in onnx.load(made.path).opset_import] == [20]
    with pytest.raises(ConfigError, match=r"--opset 3: .* wrote 18"):
        export(predictor_with("fcn"), format="onnx", output=tmp_path / "old.onnx", opset=3)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_a_predictor_in_training_or_in_16_bits_is_refused(tmp_path: Path) -> None:
    predictor = predictor_with("fcn")
    predictor.model.train()
    with pytest.raises(ConfigError, match=r"call model.eval\(\)"):
        export(predictor, format="torch_export", output=tmp_path / "m.pt2")
    with pytest.raises(ConfigError, match="precision: the predictor computes in bfloat16"):
        export(predictor_with("fcn", precision="bfloat16"), format="torch_export", output=tmp_path / "m.pt2")


@pytest.mark.parametrize("option", [{"batch": "2"}, {"batch": True}, {"batch": 0}, {"tolerance": "0.1"}])
def test_numbers_of_another_type_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))}: found .*; accepted"):
        export(predictor_with("fcn"), format="torch_export", output=tmp_path / "m.pt2", **option)


@pytest.mark.slow
def test_images_of_sizes_that_a_file_does_not_take_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [(8, 8), (64, 80), (61, 72), (64, 72)]
    images = [picture(*size) for size in sizes]
    made = export(predictor_with(OfFours), format="torch_export", output=tmp_path / "m.pt2", images=images)
    assert [each.size for each in made.facts.checks if each.of == "val"] == [(64, 80)]
    assert "the file takes 1 of the 4 images" in caplog.text
    with pytest.raises(DataError, match="multiples of 16"):
        classyseg.load(made.path).predict(images[-1])


def test_of_two_exports_at_once_the_second_does_not_replace_the_first(tmp_path: Path) -> None:
    target = tmp_path / "m.pt2"

    def slow() -> Iterator[Tensor]:
        target.write_text("the other one's", encoding="utf-8")
        yield picture(60, 70)

    with pytest.raises(ConfigError, match="is there already"):
        export(predictor_with("fcn"), format="torch_export", output=target, images=slow())
    assert [each.read_text(encoding="utf-8") for each in tmp_path.iterdir()] == ["the other one's"]


def test_ctrl_c_in_the_middle_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "m.pt2"
    kept.write_text("mine", encoding="utf-8")
    monkeypatch.setattr("torch.export.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(predictor_with("fcn"), format="torch_export", output=kept, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        export(predictor_with("fcn"), format="torch_export", output=tmp_path / "new" / "folder" / "m.pt2")
    assert [each.read_text(encoding="utf-8") for each in tmp_path.iterdir()] == ["mine"]


def interrupted(program: object, path: Path, **options: object) -> None:
    path.write_bytes(b"a half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def save(program: object, path: Path, **options: object) -> None:
        path.write_bytes(b"a half")
        try:
            signal.raise_signal(number)
        finally:
            if number == signal.SIGTERM:
                signal.raise_signal(number)  # `timeout` sends it to the process, and to its group

    config = tiny_config()["model"]
    model = Predictor(build_model(config, 2), classes=["a", "b"], device="cpu", model_config=config)
    folder = model.save(tmp_path / "model")
    monkeypatch.setattr("torch.export.save", save)
    words = ["export", str(folder), "--format", "torch_export", "--output", str(tmp_path / "new" / "m.pt2")]
    assert main(words) == 128 + number
    assert capsys.readouterr().err.endswith("stopped\n")
    assert [*tmp_path.iterdir()] == [folder]

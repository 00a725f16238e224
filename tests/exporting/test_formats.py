"""openvino, int8, aoti, executorch: read by their own libraries, exact or as good on data, and closed to strangers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import classyseg
import runs
from classyseg.cli.export import calibration_images, report
from classyseg.cli.main import main
from classyseg.config import ConfigTree, dump_yaml
from classyseg.datasets import build_dataset
from classyseg.errors import ConfigError, DataError
from classyseg.exporting import Quantization, export
from classyseg.exporting.int8 import Step, drop_of, outside_weights
from classyseg.heads import build_head
from classyseg.inference import Predictor
from classyseg.inference.exported import aoti_file
from classyseg.inference.exported.contract import DiffersError, Traced
from classyseg.inference.exported.model import ExportedModel, exported_facts
from classyseg.structures import BestIs
from tiny_backbone import TinyBackbone

CLASSES = ("road", "sky", "tree", "car")
OTHER = (75, 139)
"""A size of the images below, which no export is traced with or compared on."""


def tiny_predictor() -> Predictor:
    torch.manual_seed(0)
    model = TinyBackbone(channels=(8, 8, 16, 16))
    model.attach_head("main", build_head("fcn", [model.block("stage2")], len(CLASSES)))
    return Predictor(model, classes=CLASSES, device="cpu")


def pictures(count: int, size: tuple[int, int] = OTHER) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for _ in range(count)]


def steady(*values: float, best_is: BestIs = "largest") -> Callable[[Predictor], tuple[str, float, BestIs]]:
    """A measurement that gives these values one after the other."""
    left = iter(values)
    return lambda _: ("mean_iou" if best_is == "largest" else "mistakes", next(left), best_is)


@pytest.fixture(scope="module")
def openvino_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "m.xml"
    export(tiny_predictor(), format="openvino", output=path, output_kind="scores")
    return path


# -- openvino ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_openvino_itself_gives_the_models_scores_and_the_block_of_facts(openvino_path: Path) -> None:
    import openvino

    (image,) = pictures(1)
    core = openvino.Core()
    model = core.read_model(openvino_path)
    assert model.inputs[0].get_partial_shape().to_string() == "[?,3,?,?]"
    facts = json.loads(model.get_rt_info(["classyseg"]).astype(str))
    assert facts["classes"] == [*CLASSES]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"image": image[None].numpy()})["scores"]
    expected = tiny_predictor().scores(image)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(classyseg.load(openvino_path).scores(image), expected, atol=1e-5)
    assert sorted(file.name for file in openvino_path.parent.iterdir()) == ["m.bin", "m.xml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda text: text.replace('version="opset1"', 'version="extension"', 1), "operator"),
        (lambda text: '<!DOCTYPE net [<!ENTITY a "aaaa">]>' + text.partition("?>")[2], "document type"),
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: re.sub(r"<classyseg [^>]*>", "", text), "classyseg export"),
        (lambda text: text.replace("&quot;classes&quot;", "&quot;klasses&quot;"), "klasses"),
    ],
    ids=["an operator of another library", "entities", "torn", "no block", "a broken block"],
)
def test_a_file_of_openvino_from_anybody_is_one_error(
    openvino_path: Path, tmp_path: Path, change: Callable[[str], str], wanted: str
) -> None:
    text = openvino_path.read_text(encoding="utf-8")
    (tmp_path / "m.xml").write_text(change(text), encoding="utf-8")
    (tmp_path / "m.bin").write_bytes(openvino_path.with_suffix(".bin").read_bytes())
    assert change(text) != text
    with pytest.raises(ConfigError, match=wanted) as raised:
        classyseg.load(tmp_path / "m.xml")
    assert "m.xml" in str(raised.value)


@pytest.mark.slow
def test_weights_that_are_missing_cut_or_of_another_export_are_one_error(openvino_path: Path, tmp_path: Path) -> None:
    """Two files are replaced one after the other; what ends in between leaves the weights of another model."""
    text = openvino_path.read_text(encoding="utf-8")
    (tmp_path / "m.xml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"m\.bin: missing"):
        classyseg.load(tmp_path / "m.xml")
    weights = openvino_path.with_suffix(".bin").read_bytes()
    for other in (weights[:100], weights[:-1] + bytes([weights[-1] ^ 1])):
        (tmp_path / "m.bin").write_bytes(other)
        with pytest.raises(ConfigError, match=r"m\.bin: is of another export than m\.xml"):
            classyseg.load(tmp_path / "m.xml")
    (tmp_path / "m.xml").write_text(re.sub(r"<classyseg_weights [^>]*>", "", text), encoding="utf-8")
    (tmp_path / "m.bin").write_bytes(weights[:100])
    with pytest.raises(ConfigError, match="OpenVINO cannot run it"):
        classyseg.load(tmp_path / "m.xml")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "benchmark", "predict"])
def test_a_file_has_its_own_precision(
    openvino_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    Image.new("RGB", (48, 40)).save(tmp_path / "a.png")
    more = [str(tmp_path / "a.png"), "--output", str(tmp_path / "out")] if command == "predict" else []
    assert main([command, str(openvino_path), *more, "--precision", "bfloat16"]) == 2
    assert "precision: " in (told := capsys.readouterr().err)
    assert "leave it out" in told


@pytest.mark.slow
def test_openvino_and_nncf_tell_their_makers_nothing(tmp_path: Path) -> None:
    """Where they do, they keep a number of this user below the home folder."""
    code = (
        "from classyseg.inference.exported.openvino_file import library, without_telemetry; library()\n"
        "with without_telemetry(): import nncf"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "NNCF_CI")}
    subprocess.run([sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert not (tmp_path / "intel").exists()


# -- int8 --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_int8_of_openvino_computes_convolutions_in_8_bits_and_tells_the_drop(tmp_path: Path) -> None:
    import openvino

    path = tmp_path / "m.xml"
    settings = Quantization(pictures(3), steady(0.62, 0.615))
    made = export(tiny_predictor(), format="int8", output=path, quantization=settings)
    last = list(report(made))[-1]
    assert "% of labels differ" in last
    assert "largest difference" not in last, "no scores of 8 bits are compared"
    kinds = [node.get_type_name() for node in openvino.Core().read_model(path).get_ops()]
    assert kinds.count("FakeQuantize") >= kinds.count("Convolution") == 5
    facts = exported_facts(path)
    assert facts.precision == "int8"
    assert facts.measured["int8"] == {
        "number": "mean_iou",
        "float32": 0.62,
        "int8": 0.615,
        "drop": pytest.approx(0.5),
        "calibration_images": 3,
    }
    (image,) = pictures(1)
    agree = (classyseg.load(path).predict(image) == tiny_predictor().predict(image)).mean()
    assert agree > 0.8, "8 bits of a net with random weights"


@pytest.mark.slow
def test_int8_of_onnx_leaves_what_comes_before_the_first_convolution_and_behind_the_last_one(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "m.onnx"
    settings = Quantization(pictures(2), steady(0.5, 0.5))
    export(tiny_predictor(), format="int8", output=path, batch=2, quantization=settings)
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 5
    sources = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            assert [sources[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
    assert "QuantizeLinear" not in kinds[: kinds.index("Sub")], "the image is normalised as it is"
    last = max(i for i, kind in enumerate(kinds) if kind == "Conv")
    assert kinds[last:].count("QuantizeLinear") == 1, "the convolution's own output; scores are no multiples of 1/256"


def test_what_has_weights_neither_before_nor_behind_it_stays_exact() -> None:
    steps = [
        Step("scale", ["image"], ["a"], heavy=False),
        Step("conv", ["a"], ["b"], heavy=True),
        Step("relu", ["b"], ["c"], heavy=False),
        Step("side", ["a"], ["d"], heavy=False),
        Step("join", ["c", "d"], ["e"], heavy=False),
        Step("head", ["e"], ["f"], heavy=True),
        Step("add", ["f", "c"], ["g"], heavy=False),
        Step("softmax", ["g"], ["h"], heavy=False),
    ]
    assert outside_weights(steps) == ["scale", "side", "add", "softmax"]


@pytest.mark.parametrize(("before", "after"), [(0.62, 0.60), (0.62, float("nan"))])
def test_int8_that_loses_more_than_accepted_is_refused(before: float, after: float) -> None:
    settings = Quantization(pictures(2), steady(before, after), max_drop=1.5)
    with pytest.raises(DiffersError, match=r"mean_iou drops by (2\.00|nan) points.*1\.5 \(--max-drop\)"):
        drop_of(tiny_predictor(), tiny_predictor(), settings)


def test_a_number_whose_smallest_value_is_best_must_not_grow() -> None:
    settings = Quantization(pictures(2), steady(0.10, 0.12, best_is="smallest"))
    with pytest.raises(DiffersError, match=r"mistakes grows by 2\.00 points, from 0\.1000 to 0\.1200"):
        drop_of(tiny_predictor(), tiny_predictor(), settings)
    settings = Quantization(pictures(2), steady(0.12, 0.10, best_is="smallest"))
    found = drop_of(tiny_predictor(), tiny_predictor(), settings)
    assert found["drop"] == pytest.approx(-2.0)


@pytest.mark.parametrize(("name", "wanted"), [("m.pt2", "torch's own"), ("m.bin", ".onnx")])
def test_int8_writes_the_formats_of_the_fastest_tools(tmp_path: Path, name: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        export(
            tiny_predictor(),
            format="int8",
            output=tmp_path / name,
            quantization=Quantization(pictures(1), steady(1.0, 1.0)),
        )


def test_int8_of_a_folder_without_data_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"], "channels": 8}}}
    model = classyseg.build_model(config, len(CLASSES))
    Predictor(model, classes=CLASSES, device="cpu", model_config=config).save(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--format", "int8", "--output", str(tmp_path / "m.xml")]
    assert main(words) == 2
    assert "give the folder of the run" in capsys.readouterr().err


def test_int8_of_labels_is_refused_where_meters_read_scores_before_anything_is_traced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.tiny_config()
    (tmp_path / "run").mkdir()
    text = dump_yaml({**config, "meters": [{"name": "mean_iou"}, {"name": "average_precision"}]})
    (tmp_path / "run" / "config.yaml").write_text(text, encoding="utf-8")
    words = ["export", str(tmp_path / "run"), "--format", "int8", "--output", str(tmp_path / "m.xml")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "average_precision read more than labels" in said
    assert "give --output-kind scores" in said


def test_calibration_images_are_one_of_each_part_of_the_train_set_and_always_the_same() -> None:
    config = ConfigTree(runs.tiny_config(), "config.yaml")
    images = calibration_images(config, 6)
    dataset = build_dataset(config.values["dataset"]["train"])
    stored = [dataset.load(i).image for i in range(48)]
    places = [[torch.equal(image, each) for each in stored].index(True) for image in images]
    assert [place // 8 for place in places] == [0, 1, 2, 3, 4, 5]
    assert [place % 8 for place in places] != [0] * 6, "not the first of each: neighbours may follow a pattern"
    assert all(torch.equal(*pair) for pair in zip(images, calibration_images(config, 6), strict=True))
    assert len(calibration_images(config, 1000)) == 48


@pytest.mark.parametrize("option", ["--max-drop", "--calibration-images"])
def test_options_of_int8_mean_nothing_for_others(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tmp_path), "--format", "onnx", "--output", str(tmp_path / "m.onnx"), option, "2"]
    assert main(words) == 2
    assert f"{option}: means nothing for --format onnx" in capsys.readouterr().err


# -- aoti --------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float() * 2 + 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_machine_code_runs_where_its_user_made_it_and_nowhere_else(
    openvino_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "mine"))
    image = torch.stack(pictures(2))
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    facts = exported_facts(openvino_path).model_copy(update={"file_format": "aoti"})
    program = torch.export.export(Scaled(), (image,), dynamic_shapes=(free,))
    path = tmp_path / "m.pt2"
    traced = Traced(program, Scaled(), image, facts, {})
    aoti_file.write(traced, path)
    aoti_file.annotate(traced, path, facts.text())
    assert exported_facts(path) == facts, "the block is read without running anything"
    (other,) = pictures(1, (40, 33))
    found = aoti_file.open_file(path, facts, torch.device("cpu"))(other[None])
    assert torch.equal(found, Scaled()(other[None]))

    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "of_another_user"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"machine code.*{digest}"):
        classyseg.load(path)
    monkeypatch.setenv("CLASSYSEG_TRUSTED_CODE", digest)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    with pytest.raises(ConfigError, match=r"cpu .*, here 'another'"):
        classyseg.load(path)


def test_where_own_machine_code_cannot_be_noted_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    monkeypatch.setenv("CLASSYSEG_CACHE", str(tmp_path / "file"))
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data", "0")
    traced = Traced(torch.export.export(Scaled(), (torch.zeros(1),)), Scaled(), torch.zeros(1), None, {})
    with pytest.raises(ConfigError, match="set CLASSYSEG_CACHE to a folder"):
        aoti_file.annotate(traced, tmp_path / "m.pt2", "{}")


def test_without_a_compiler_aoti_says_so_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        export(tmp_path / "absent", format="aoti", output=tmp_path / "m.pt2")


# -- executorch --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="the package executorch is not installed")
def test_executorch_itself_gives_the_models_labels_up_to_the_largest_size(tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    path = tmp_path / "m.pte"
    export(tiny_predictor(), format="executorch", output=path, largest=(330, 450))
    program = Runtime.get().load_program(path)
    (text,) = program.load_method("classyseg").execute([])
    assert json.loads(text)["largest"] == [330, 450]
    (image,) = pictures(1)
    expected = tiny_predictor().predict(image)
    (found,) = program.load_method("forward").execute([image[None]])
    assert (found[0].numpy() == expected).mean() > 0.999
    assert (classyseg.load(path).predict(image) == expected).mean() > 0.999
    with pytest.raises(DataError, match=r"the largest that m\.pte takes is 330 x 450"):
        classyseg.load(path).predict(torch.zeros(3, 331, 64, dtype=torch.uint8))


@pytest.mark.slow
def test_sizes_beyond_the_largest_are_one_error(openvino_path: Path) -> None:
    facts = exported_facts(openvino_path).model_copy(update={"largest": (60, 80), "output_kind": "labels"})
    model = ExportedModel(facts, lambda images: images[:, 0], "m.pte")
    assert model(torch.zeros(1, 3, 60, 80, dtype=torch.uint8))
    for size in ((61, 80), (60, 81)):
        with pytest.raises(DataError, match="60 x 80: export it with a larger --largest"):
            model(torch.zeros(1, 3, *size, dtype=torch.uint8))


def test_what_is_no_file_of_executorch_is_one_error(tmp_path: Path) -> None:
    for content in (b"", b"\x20\0\0\0ET99" + bytes(100), bytes(1000)):
        (tmp_path / "m.pte").write_bytes(content)
        if importlib.util.find_spec("executorch") is None:
            wanted = r"pip install 'classyseg\[executorch\]'"
        else:
            wanted = "is no file of ExecuTorch"
        with pytest.raises(ConfigError, match=wanted):
            classyseg.load(tmp_path / "m.pte")

"""`classyseg export`: files that other runtimes read, kept only if they give what the model gives."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import CLASSES, RESIZE, AttentionOfThreeAxes, Branching, OfFours, Queries, picture, predictor_with
from torch import Tensor
from torch.nn import functional as F

import classyseg
from classyseg.cli.main import main
from classyseg.errors import ConfigError, DataError
from classyseg.exporting import Export, export
from classyseg.exporting.check import sizes_for
from classyseg.inference import Preparation
from classyseg.inference.exported.contract import DiffersError, Run
from classyseg.inference.exported.formats import FORMATS
from classyseg.inference.exported.model import exported_facts
from classyseg.tasks import build_task
from classyseg.trainer import Trainer
from runs import tiny_config_of, tiny_task


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A file of labels."""
    return export(predictor_with("fcn"), format="torch_export", output=tmp_path_factory.mktemp("made") / "m.pt2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, whose val images are resized, and count at their own size."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    changes = {"num_epochs": 1, "dataset.val.transforms": [RESIZE], "dataset.train.num_samples": 16}
    Trainer(folder).train(tiny_task(changes))
    return folder


# -- a run, exported by the command ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_exported_to_onnx_is_predicted_measured_and_read_by_others(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    path = run / "exports" / "run.onnx"
    assert main(["export", str(run), "--format", "onnx", "--output", str(path)]) == 0
    told = capfd.readouterr().out
    assert "val  " in told
    largest = re.search(r"largest difference (\S+);", told)
    assert largest is not None
    assert float(largest[1]) < 1e-4
    assert [each.name for each in path.parent.iterdir()] == ["run.onnx"]

    # Whoever has no classyseg: labels of an image's own size, and the classes.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["classyseg"])
    assert facts["measured"]["val"]["mean_iou"] == pytest.approx(metrics(run)["mean_iou"])
    assert facts["checks"][0]["size"] == [128, 192]
    assert str(run) not in path.read_bytes().decode("latin1"), "no path of this machine stands in the file"
    (axes,) = ([dim.dim_param for dim in each.type.tensor_type.shape.dim] for each in onnx.load(path).graph.input)
    assert axes == ["batch", "", "height", "width"]

    expected, found = classyseg.load(run, device="cpu"), classyseg.load(path)
    assert found.classes == expected.classes
    for size in [(47, 61), (90, 33)]:
        image = picture(*size)
        (labels,) = session.run(None, {"image": image[None].numpy()})
        np.testing.assert_array_equal(labels[0], expected.predict(image))
        np.testing.assert_array_equal(found.predict(image), expected.predict(image))
    with pytest.raises(ConfigError, match="--output-kind scores"):
        found.scores(image)
    with pytest.raises(ConfigError, match="copy it"):
        found.save(run / "copy")

    assert main(["evaluate", str(path), "--name", "file", "runtime.device=cpu"]) == 0
    measured = json.loads((run / "evaluation-file.json").read_text())
    assert measured["mean_iou"] == pytest.approx(metrics(run)["mean_iou"], abs=1e-4)


def metrics(run: Path) -> dict[str, Any]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["phase"] == "val"][-1]


# -- what each kind gives ----------------------------------------------------------------------------------------------


def test_a_file_gives_the_predictors_labels_at_any_size(made: Export) -> None:
    sizes = {check.size for check in made.facts.checks}
    assert len(sizes) >= 7
    assert len({(height % 32, width % 32) for height, width in sizes}) >= 6
    assert (made.facts.largest_difference() or 1) < 1e-3
    found, expected = classyseg.load(made.path), predictor_with("fcn")
    for size in [(40, 55), (61, 34), (133, 90)]:
        np.testing.assert_array_equal(found.predict(picture(*size)), expected.predict(picture(*size)))
    assert found.predict(picture(40, 55)).dtype == np.uint8


def test_torchs_own_reader_runs_the_file_and_nothing_in_it_is_pickled(made: Export) -> None:
    with zipfile.ZipFile(made.path) as archive:
        names = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
        assert names["data/sample_inputs/model.pt"].file_size == 0
        assert not [name for name in names if name.endswith(".pt") and names[name].file_size]
        assert b"/work" not in archive.read(next(n for n in archive.namelist() if n.endswith("models/model.json")))
    extra = {"classyseg.json": ""}
    program = torch.export.load(made.path, extra_files=extra)
    assert json.loads(extra["classyseg.json"])["classes"] == list(CLASSES)
    labels = program.module()(picture(60, 70)[None])
    assert labels.dtype == torch.uint8
    np.testing.assert_array_equal(labels[0].numpy(), predictor_with("fcn").predict(picture(60, 70)))


def test_logits_of_normalised_images_run_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "logits.pt2"
    protocol = {"name": "sliding_window", "size": [64, 64]}
    expected = predictor_with("fcn", protocol=protocol)
    with pytest.raises(ConfigError, match=r"--protocol whole.*--output-kind logits"):
        export(expected, format="torch_export", output=path)
    export(expected, format="torch_export", output=path, input_kind="normalized", output_kind="logits")
    found = classyseg.load(path)
    assert found.protocol.config() == expected.protocol.config()
    image = picture(150, 100)
    np.testing.assert_allclose(found.scores(image), expected.scores(image), atol=1e-5)


def test_a_classifier_with_its_resize_and_crop_inside(tmp_path: Path) -> None:
    transforms = [{"name": "resize", "shorter_side": 48}, {"name": "center_crop", "size": [40, 40]}]
    expected = predictor_with("linear", preparation=Preparation(transforms))
    path = tmp_path / "classes.pt2"
    export(expected, format="torch_export", output=path, output_kind="scores")
    found = classyseg.load(path)
    image = picture(90, 77)
    np.testing.assert_allclose(found.scores(image), expected.scores(image), atol=1e-5)
    assert found.predict(image) == expected.predict(image)


def test_labels_of_a_head_of_its_own_kind_are_in_the_file_and_logits_are_refused(tmp_path: Path) -> None:
    expected = predictor_with(Queries)
    path = tmp_path / "queries.pt2"
    with pytest.raises(ConfigError, match="gives masks, classes; accepted are labels and scores"):
        export(expected, format="torch_export", output=path, output_kind="logits")
    export(expected, format="torch_export", output=path)
    np.testing.assert_array_equal(classyseg.load(path).predict(picture(61, 50)), expected.predict(picture(61, 50)))


def test_images_in_a_unit_of_their_own_are_floating_point(tmp_path: Path) -> None:
    normalize = {"mean": [1000.0, 2000.0, 3000.0], "std": [100.0, 200.0, 300.0]}
    expected = predictor_with("fcn", preparation=Preparation(bits=32), normalize=normalize)
    path = tmp_path / "numbers.pt2"
    found = export(expected, format="torch_export", output=path, output_kind="scores")
    assert found.facts.image_type == "float32"
    image = picture(70, 61).float() * 20
    np.testing.assert_allclose(classyseg.load(path).scores(image), expected.scores(image), atol=1e-5)


# -- the check ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchs_pooling_to_fixed_bins_is_found_wrong_in_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classyseg.layers.pool.cell_means", F.adaptive_avg_pool2d)
    with pytest.raises(ConfigError, match=r"--format onnx: (differs from the model by .*|fails) at \d+ x \d+"):
        export(
            predictor_with("psp"),
            format="onnx",
            output=tmp_path / "psp.onnx",
            input_kind="normalized",
            output_kind="logits",
        )
    assert not list(tmp_path.iterdir())


def test_a_fault_that_changes_no_label_is_found_in_the_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictor = predictor_with("psp")
    with torch.no_grad():
        predictor.model.head("main").get_submodule("classifier").get_parameter("bias")[0] = 3  # one class everywhere
    wrong = 1.1  # in the graph alone

    def means(x: Tensor, bins: int) -> Tensor:
        return F.adaptive_avg_pool2d(x, bins) * (wrong if torch.compiler.is_exporting() else 1)

    monkeypatch.setattr("classyseg.layers.pool.cell_means", means)
    with pytest.raises(ConfigError, match="differs from the model by"):
        export(predictor, format="torch_export", output=tmp_path / "wrong.pt2")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_attention_of_three_axes_is_refused_by_onnx(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--format onnx: .*refuses"):
        export(
            predictor_with(AttentionOfThreeAxes),
            format="onnx",
            output=tmp_path / "attention.onnx",
            input_kind="normalized",
            output_kind="logits",
        )
    assert not list(tmp_path.iterdir())


def test_a_branch_on_values_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot trace this model"):
        export(predictor_with(Branching), format="torch_export", output=tmp_path / "branch.pt2")
    assert not list(tmp_path.iterdir())


def test_a_multiple_of_the_size_is_found_told_and_held(tmp_path: Path) -> None:
    path = tmp_path / "fours.pt2"
    found = export(predictor_with(OfFours), format="torch_export", output=path, output_kind="logits")
    assert found.facts.multiple == 16
    assert all(height % 16 == width % 16 == 0 for check in found.facts.checks for height, width in [check.size])
    with pytest.raises(DataError, match="multiples of 16"):
        classyseg.load(path).predict(picture(64, 60))


@pytest.mark.slow
def test_a_run_of_videos_is_compared_on_clips_of_its_val_set_and_measured_by_its_videos(tmp_path: Path) -> None:
    changes = {
        "num_epochs": 1,
        "optimizer.schedule": "constant",
        "dataset.val.clips.per_video": 2,
        "meters": [{"name": "video_accuracy", "topk": [1], "clips_per_video": 2}],
        "runtime.eval_batch_size": 4,
    }
    run = tmp_path / "run"
    Trainer(run).train(build_task(tiny_config_of("video_classification", changes)))
    target = run / "m.pt2"
    command = ["export", str(run), "--format", "torch_export", "--output", str(target), "--output-kind", "scores"]
    assert main(command) == 0
    assert [each.of for each in exported_facts(target).checks].count("val") == 3
    assert main(["evaluate", str(target)]) == 0
    numbers = json.loads((run / "evaluation-val.json").read_text(encoding="utf-8"))
    assert numbers["video_accuracy_top_1"] == metrics(run)["video_accuracy_top_1"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "--format: .*onnx"),
        ({"output": "m.onnx"}, "ends in .pt2"),
        ({"output_kind": "masks"}, "--output-kind.*labels, scores, logits"),
        ({"input_kind": "png"}, "--input-kind.*prepared"),
        ({"opset": 18}, "--opset.*means nothing"),
        ({"batch": 0}, "--batch: found 0; accepted are 1"),
        ({"tolerance": -1.0}, "tolerance: found -1.0"),
        ({"tolerance": float("nan")}, "tolerance: found nan"),
        ({"tolerance": 0.0, "output_kind": "scores"}, "accepted is 0"),
        ({"output": ".pt2"}, "has a name that ends in .pt2"),
        ({"output": "new/folder/m.pt2", "tolerance": 0.0, "output_kind": "scores"}, "accepted is 0"),
        ({"images": [torch.zeros(3, 60, 70, dtype=torch.uint16)]}, "uint16; take --input-kind normalized"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"format": "torch_export", "output": "m.pt2", **options}
    given["output"] = tmp_path / given["output"]
    with pytest.raises(ConfigError, match=message):
        export(predictor_with("fcn"), **given)
    assert not list(tmp_path.iterdir())


def unsteady_below(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of torch_export give something else for images with fewer than `side` rows."""
    row = FORMATS["torch_export"]

    def open_file(*given: Any) -> Run:
        run = row.open_file(*given)

        def wrong(images: Tensor) -> Tensor:
            found = run(images)
            return found + 1e-3 if found.is_floating_point() and images.shape[-2] < side else found

        return wrong

    monkeypatch.setitem(FORMATS, "torch_export", replace(row, open_file=open_file))


@pytest.mark.parametrize("kind", ["scores", "labels"])
def test_a_file_that_differs_at_the_smallest_images_takes_larger_ones_and_says_so(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unsteady_below(20, monkeypatch)
    made = export(predictor_with("fcn"), format="torch_export", output=tmp_path / "m.pt2", output_kind=kind)
    assert made.facts.smallest == made.facts.checks[1].size == (34, 66)
    (told,) = [each for each in caplog.messages if "so the file" in each]
    assert re.search(r"differs from the model by .* at 17 x 33, .*; so the file takes images from 34 x 66 on$", told)
    with pytest.raises(DataError, match=r"the smallest that .* takes is 34 x 66"):
        classyseg.load(made.path).predict(picture(33, 66))


def test_a_file_that_differs_at_larger_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsteady_below(90, monkeypatch)
    with pytest.raises(DiffersError, match="differs from the model by"):
        export(predictor_with("fcn"), format="torch_export", output=tmp_path / "m.pt2", output_kind="scores")
    assert not list(tmp_path.iterdir())


def test_a_file_takes_no_larger_images_where_those_of_val_are_as_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady_below(20, monkeypatch)
    images = [picture(30, 50)]
    with pytest.raises(DiffersError, match="at 17 x 33"):
        export(
            predictor_with("fcn"), format="torch_export", output=tmp_path / "m.pt2", output_kind="scores", images=images
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unit", [1, 2, 8, 32, 64, 128])
def test_sizes_of_a_comparison_are_many_and_begin_with_the_smallest(unit: int, made: Export) -> None:
    facts = made.facts.model_copy(update={"multiple": unit, "smallest": (1, 1)})
    traced = (max(128, unit), max(192, 2 * unit))
    found = sizes_for(traced, facts)
    assert len(found) >= 6
    assert found[0] == (unit, unit)
    assert all(height % unit == width % unit == 0 for height, width in found)
    assert all(height != traced[0] and width != traced[1] for height, width in found[1:])


def test_a_file_that_is_there_is_kept_without_overwrite(made: Export) -> None:
    before = made.path.read_bytes()
    with pytest.raises(ConfigError, match="--overwrite"):
        export(predictor_with("fcn"), format="torch_export", output=made.path)
    assert made.path.read_bytes() == before


def test_a_missing_library_is_one_line_with_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx, onnxscript, onnxruntime .*pip install 'classyseg\[export\]'"):
        export(predictor_with("fcn"), format="onnx", output=tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 64, 64, dtype=torch.uint16), "uint16.*takes uint8"),
        (torch.zeros(3, 4, 64, dtype=torch.uint8), "the smallest"),
    ],
)
def test_images_that_a_file_does_not_take_are_told(made: Export, image: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classyseg.load(made.path).predict(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_memory": "2G"}, "max_memory"),
        ({"precision": "bfloat16"}, "float32"),
        ({"protocol": "sliding_window"}, "--output-kind logits"),
    ],
)
def test_options_that_a_file_cannot_follow_are_told(made: Export, options: dict[str, Any], message: str) -> None:
    given = {key: {"name": value, "size": [64, 64]} if key == "protocol" else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        classyseg.load(made.path, **given)


# -- files of anybody --------------------------------------------------------------------------------------------------


def changed(
    source: Path, target: Path, change: Callable[[str, bytes], bytes | None], more: Mapping[str, bytes] = {}
) -> Path:
    """A copy of an archive with other records."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        root = archive.namelist()[0].partition("/")[0]
        for name in archive.namelist():
            content = change(name.partition("/")[2], archive.read(name))
            if content is not None:
                out.writestr(name, content)
        for name, content in more.items():
            out.writestr(f"{root}/{name}", content)
    return target


def in_graph(before: str, after: str) -> Callable[[str, bytes], bytes]:
    return lambda name, content: (
        content.replace(before.encode(), after.encode(), 1) if name == "models/model.json" else content
    )


CODE = "__import__('pathlib').Path('ran').touch()"
HOSTILE: dict[str, tuple[Callable[[str, bytes], bytes | None], Mapping[str, bytes]]] = {
    "condition": (in_graph('"guards_code": []', f'"guards_code": ["{CODE}"]'), {}),
    "expression": (in_graph("Symbol('s", f"{CODE} + Symbol('s"), {}),
    "function": (in_graph("torch.ops.aten.argmax.default", "torch.serialization.os.system"), {}),
    "file": (in_graph("torch.ops.aten.argmax.default", "torch.ops.aten.from_file.default"), {}),
    "example": (lambda name, content: b"cos\nsystem\n" if name.startswith("data/sample_inputs") else content, {}),
    "library": (lambda name, content: content, {"data/aotinductor/model/wrapper.so": b"\x7fELF"}),
    "legacy weights": (lambda name, content: content, {"data/weights/model.pt": b"cos\nsystem\n"}),
    "pickled tensor": (
        lambda name, content: (
            content.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("config.json") else content
        ),
        {},
    ),
    "huge tensor": (
        lambda name, content: (
            content.replace(b'"as_int": 3}', b'"as_int": 3000000}') if name.endswith("weights_config.json") else content
        ),
        {},
    ),
}


def test_a_copy_without_a_change_is_opened(made: Export, tmp_path: Path) -> None:
    path = changed(made.path, tmp_path / "copy.pt2", lambda name, content: content, {"extra/note.txt": b"mine"})
    assert classyseg.load(path).classes == CLASSES


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_could_run_code_is_not_opened(
    name: str, made: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, more = HOSTILE[name]
    path = changed(made.path, tmp_path / "hostile.pt2", change, more)
    assert path.read_bytes() != made.path.read_bytes()
    with pytest.raises(ConfigError, match="it is not opened"):
        classyseg.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "no object in JSON"),
        ({"classes": ["only one"]}, "palette"),
        ({"normalize": {"mean": [0.5], "std": [0.5]}}, "normalize"),
        ({"file_format": "another"}, "file_format"),
        ({"format": 2}, "format"),
        ({"smallest": [0, -1]}, "smallest"),
        ({"protocol": {"name": "sliding_window", "size": [64, 64]}}, "protocol"),
    ],
)
def test_a_wrong_block_of_facts_is_one_error(values: Any, message: str, made: Export, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name != "extra/classyseg.json":
            return content
        return b"[" if values is None else json.dumps({**json.loads(content), **values}).encode()

    with pytest.raises(ConfigError, match=message):
        classyseg.load(changed(made.path, tmp_path / "wrong.pt2", change))


@pytest.mark.parametrize("name", ["m.pt2", "m.onnx"])
def test_a_broken_file_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x08\x0a\x12 no such file" * 50)
    with pytest.raises(ConfigError, match=f"{name}: "):
        classyseg.load(tmp_path / name)


def onnx_file(path: Path, made: Export, **changes: Any) -> Path:
    """A file of one operator, which says that it is an export."""
    from onnx import TensorProto, helper, save_model

    domain = changes.get("domain", "")
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3, "h", "w"])
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["n", 3, "h", "w"])
    node = helper.make_node(changes.get("operator", "Identity"), ["image"], ["labels"], domain=domain)
    graph = helper.make_graph([node], "graph", [image], [labels], initializer=changes.get("tensors", []))
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets)
    facts = made.facts.model_copy(update={"file_format": "onnx"})
    helper.set_model_props(model, {"classyseg": facts.text()})
    save_model(model, path)
    return path


def test_operators_of_other_libraries_and_tensors_in_other_files_are_refused(made: Export, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    with pytest.raises(ConfigError, match=r"RunAnything.*evil"):
        classyseg.load(onnx_file(tmp_path / "a.onnx", made, operator="RunAnything", domain="evil"))
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(ConfigError, match="another file"):
        classyseg.load(onnx_file(tmp_path / "b.onnx", made, tensors=[tensor]))
    assert classyseg.load(onnx_file(tmp_path / "c.onnx", made)).classes == CLASSES

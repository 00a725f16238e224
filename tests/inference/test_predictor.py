"""`Predictor` and `load`: the same labels whatever form an image has, and from whichever folder the model comes."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import classyseg
from classyseg.config import ConfigError, DataError
from classyseg.inference import BudgetError, Card, Predictor, Preparation
from classyseg.inference.preparation import Prepared
from classyseg.models import ClassyModel, build_model
from classyseg.trainer import Trainer
from classyseg.transforms.classy_transform import Region
from runs import SMALL_BACKBONE, tiny_task

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (40, 56, 3), dtype=np.uint8)
MODEL = {
    **SMALL_BACKBONE,
    "heads": {"main": {"name": "fcn", "blocks": ["stage3"], "channels": 8}},
}


def tiny_model(**changes: Any) -> ClassyModel:
    torch.manual_seed(0)
    model = build_model({**MODEL, **changes}, 3)
    return model.eval()


def predictor_of(model: ClassyModel, **options: Any) -> Predictor:
    return Predictor(model, classes=["a", "b", "c"], **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    changes = {"num_epochs": 1, "hooks": ["checkpoint"], "dataset.train.num_samples": 8}
    Trainer(folder).train(tiny_task(changes))
    return folder


def test_a_network_goes_with_its_predictor_and_waits_for_no_collection_of_garbage() -> None:
    predictor = predictor_of(tiny_model())
    predictor.predict(PIXELS)
    gone = weakref.ref(predictor.model)
    gc.disable()
    try:
        del predictor
        assert gone() is None
    finally:
        gc.enable()


def test_labels_are_the_arg_max_of_the_logits_at_the_images_own_size() -> None:
    model = tiny_model()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        logits = model(image[None])["main"]
    full = torch.nn.functional.interpolate(logits, PIXELS.shape[:2], mode="bilinear")[0]
    predictor = predictor_of(model)
    np.testing.assert_array_equal(predictor.predict(PIXELS), full.argmax(0).numpy())
    np.testing.assert_allclose(predictor.scores(PIXELS), full.softmax(0).numpy(), atol=1e-5)
    assert predictor.predict(PIXELS).dtype == np.uint8


@pytest.mark.parametrize("protocol", ["path", "pil", "array", "tensor", "text"])
def test_an_image_gives_the_same_labels_in_whichever_form(protocol: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    forms: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "pil": Image.open(path),
        "array": PIXELS,
        "tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
    }
    predictor = predictor_of(tiny_model())
    np.testing.assert_array_equal(predictor.predict(forms[protocol]), predictor.predict(PIXELS))


def test_labels_of_256_classes_are_bytes_and_of_257_are_not() -> None:
    for count, kind in ((256, np.uint8), (257, np.uint16)):
        predictor = Predictor(build_model(MODEL, count), classes=[f"c{i}" for i in range(count)])
        assert predictor.predict(PIXELS).dtype == kind


def test_images_of_other_sizes_that_are_prepared_alike_come_at_their_own_sizes() -> None:
    resize = Preparation([{"name": "resize", "size": [32, 32]}])
    predictor = predictor_of(tiny_model(), preparation=resize)
    given = [PIXELS, PIXELS[:20], PIXELS[:, :30], PIXELS[:20, :30]]
    alone = [predictor.scores(image) for image in given]
    predictor.batch_size = 4
    for image, scores, expected in zip(given, predictor.scores(given), alone, strict=True):
        assert scores.shape == (3, *image.shape[:2])
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_the_size_of_maps_is_the_nearest_to_the_scale_of_the_image() -> None:
    prepared = Prepared(torch.zeros(3, 40, 50), size=(100, 151), region=Region(0, 0, 33, 47))
    assert prepared.output_size == (121, 161)  # 121.2 x 160.6


@pytest.mark.parametrize(("exif", "turned"), [("refuse", True), ("rotate", True), ("ignore", False)])
def test_a_photo_is_turned_as_viewers_show_it_unless_the_training_took_pixels_as_stored(
    exif: Any, turned: bool, tmp_path: Path
) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    photo = Image.fromarray(PIXELS)
    photo.save(tmp_path / "photo.png", exif=tags)
    expected = np.rot90(PIXELS, -1) if turned else PIXELS
    preparation = Preparation(exif=exif)
    for given in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png")):
        found = preparation.read(given)
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_several_images_come_one_by_one_in_their_order_and_as_each_alone() -> None:
    predictor = predictor_of(tiny_model())
    images = [PIXELS, PIXELS[:20], PIXELS[:20, ::-1].copy(), PIXELS]
    found = predictor.predict(image for image in images)
    assert iter(found) is found
    for labels, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(labels, predictor.predict(image))
    assert list(predictor.predict([])) == []


def test_what_comes_before_a_broken_image_is_given_first() -> None:
    found = predictor_of(tiny_model()).predict([PIXELS, "nowhere.png"])
    assert next(found).shape == (40, 56)
    with pytest.raises(DataError, match=r"nowhere\.png"):
        next(found)


def test_grey_alpha_and_sixteen_bits_are_read_as_the_data_sets_read_them(tmp_path: Path) -> None:
    predictor = predictor_of(tiny_model())
    grey = PIXELS[..., 0]
    as_colors = predictor.predict(np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([PIXELS, grey])).save(tmp_path / "alpha.png")
    for form in (
        grey,
        grey[..., None],
        tmp_path / "grey.png",
        Image.open(tmp_path / "grey.png"),
        Image.fromarray(grey),
    ):
        np.testing.assert_array_equal(predictor.predict(form), as_colors)
    for form in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), grey.astype(np.uint16) * 257):
        assert (predictor.predict(form) == as_colors).mean() > 0.999  # 65535 levels are scaled in another order
    for form in (tmp_path / "alpha.png", Image.open(tmp_path / "alpha.png")):
        np.testing.assert_array_equal(predictor.predict(form), predictor.predict(PIXELS))


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_a_model_of_other_channels_takes_arrays_of_as_many(channels: int) -> None:
    normalize = {"mean": [0.5] * channels, "std": [0.25] * channels}
    predictor = predictor_of(tiny_model(in_channels=channels), normalize=normalize)
    image = RANDOM.integers(0, 256, (24, 40, channels), dtype=np.uint8)
    assert predictor.predict(image).shape == (24, 40)
    with pytest.raises(DataError, match=f"takes {channels}"):
        predictor.predict(RANDOM.integers(0, 256, (24, 40, channels + 2), dtype=np.uint8))


def test_images_in_a_unit_of_their_own_are_taken_as_they_are() -> None:
    normalize = {"mean": [200.0], "std": [30.0]}
    preparation = Preparation(channels=1, bits=32)
    model = tiny_model(in_channels=1)
    found = predictor_of(model, normalize=normalize, preparation=preparation).predict(PIXELS[..., 0].astype(np.float64))
    image = (torch.from_numpy(PIXELS[..., 0]).float() - 200) / 30
    with torch.no_grad():
        logits = model(image[None, None])["main"]
    full = torch.nn.functional.interpolate(logits, (40, 56), mode="bilinear")
    np.testing.assert_array_equal(found, full[0].argmax(0).numpy())


@pytest.mark.parametrize(
    "image",
    [
        5,
        None,
        np.zeros((3, 3, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), np.float32),
        torch.zeros(3, 4, 4),
        torch.zeros(4),
    ],
    ids=repr,
)
def test_what_is_no_image_is_refused_by_what_it_is(image: Any) -> None:
    with pytest.raises(DataError, match=r"accepted|takes|without a pixel"):
        predictor_of(tiny_model()).predict(image)


# -- preparation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transforms",
    [
        [{"name": "resize", "size": [64, 32]}],
        [{"name": "resize", "shorter_side": 64}],
        [{"name": "pad", "multiple": 32}],
        [{"name": "resize", "fit": [64, 64]}, {"name": "pad", "size": [64, 64]}],
        [{"name": "torchvision", "transform": "Resize", "arguments": {"size": [80, 60]}}],
        [{"name": "resize", "shorter_side": 20, "image_only": True}],
    ],
    ids=str,
)
def test_labels_lie_where_the_image_shows_them_whatever_the_geometry_of_validation(transforms: list[Any]) -> None:
    """A network that tells black from white: its labels, mapped back, are the picture."""
    picture = np.zeros((40, 56, 3), np.uint8)
    picture[4:20, 8:48] = 255
    model = _BlackAndWhite()
    found = Predictor(
        model,
        classes=["black", "white"],
        preparation=Preparation(transforms),
        normalize={"mean": [0.5] * 3, "std": [0.5] * 3},
    ).predict(picture)
    right = picture[..., 0] // 255
    assert found.shape == (40, 56)
    inner = np.ones_like(right, bool)  # a border of two pixels may be blurred
    for row in (4, 20):
        inner[row - 2 : row + 2, 6:50] = False
    for column in (8, 48):
        inner[2:22, column - 2 : column + 2] = False
    np.testing.assert_array_equal(found[inner], right[inner])


@pytest.mark.parametrize(
    ("crop", "instead"),
    [
        ({"name": "center_crop", "size": [24, 24]}, []),
        ({"name": "horizontal_flip", "probability": 1.0}, []),
        ({"name": "random_rotation", "probability": 1.0}, []),
        ({"name": "random_crop", "size": [16, 16]}, []),
        ({"name": "resize_center_crop", "crop_size": 64}, [{"name": "resize", "shorter_side": 64}]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_maps_lose_nothing_to_a_crop_a_flip_or_a_turn(crop: Any, instead: list[Any]) -> None:
    model = tiny_model()
    found = predictor_of(model, preparation=Preparation([crop])).predict(PIXELS)
    wanted = predictor_of(model, preparation=Preparation(instead)).predict(PIXELS)
    np.testing.assert_array_equal(found, wanted)


def test_a_classifier_of_whole_images_sees_the_crop_of_its_validation() -> None:
    model = tiny_model(heads={"main": {"name": "linear", "blocks": ["stage4"]}})
    crop = Preparation([{"name": "center_crop", "size": [24, 24]}])
    found = predictor_of(model, preparation=crop)
    cut = predictor_of(model)
    inner = np.ascontiguousarray(PIXELS[8:32, 16:40])
    assert found.predict(PIXELS).shape == ()
    np.testing.assert_array_equal(found.scores(PIXELS), cut.scores(inner))


# -- folders -------------------------------------------------------------------------------------------------------


def test_a_run_a_checkpoint_and_a_models_folder_give_the_same_labels(run: Path, tmp_path: Path) -> None:
    first = classyseg.load(run)
    wanted = first.predict(PIXELS)
    first.save(tmp_path / "model")
    for folder in (run / "checkpoints" / "step-1", tmp_path / "model"):
        found = classyseg.load(folder)
        np.testing.assert_array_equal(found.predict(PIXELS), wanted)
        assert (found.classes, found.palette) == (first.classes, first.palette)
    assert first.classes == ("background", "disc", "square", "triangle")


def test_a_models_folder_holds_no_training_and_no_path(run: Path, tmp_path: Path) -> None:
    folder = classyseg.load(run).save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    text = (folder / "config.json").read_text()
    for word in ("optimizer", "loss", "dataset", "weights", "train_only", "/"):
        assert f'"{word}"' not in text
    assert str(tmp_path) not in text


def test_heads_that_only_train_are_left_out(tmp_path: Path) -> None:
    config = {**MODEL, "heads": {**MODEL["heads"], "aux": {"name": "fcn", "blocks": ["stage2"], "train_only": True}}}
    model = build_model(config, 3)
    predictor_of(model, model_config=config).save(tmp_path / "model")
    found = classyseg.load(tmp_path / "model")
    assert list(found.model.heads) == ["main"]
    np.testing.assert_array_equal(found.predict(PIXELS), predictor_of(model).predict(PIXELS))


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _edited(key: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values[key] = value
        (folder / "config.json").write_text(json.dumps(values))

    return edit


def _cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_emptied, "an empty folder"),
        (_cut, "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "no object"),
        (lambda folder: (folder / "config.json").write_text("{" * 100_000), "no object"),
        (_edited("format", 7), "format"),
        (_edited("classes", ["one"]), "palette"),
        (_edited("model", {"name": "no_such_model"}), "no_such_model"),
        (_edited("model", {"name": "os.system"}), "os.system"),
        (_edited("model", {**MODEL, "weights": "/etc/passwd"}), "weights"),
        (_edited("model", {**MODEL, "heads": {}}), "head"),
        (_edited("model", {**MODEL, "widths": [10**9] * 4}), "widths"),
        (_edited("model", {**MODEL, "depths": [2, 2, 2, 2]}), "lacks"),
        (_edited("protocol", "no_such_protocol"), "no_such_protocol"),
        (_edited("normalize", {"mean": [0.5], "std": [0.5]}), "normalize"),
        (_edited("preparation", {"transforms": [{"name": "resize"}]}), "size"),
        (_edited("preparation", {"transforms": 5}), "transforms"),
        (_edited("strange", 5), "strange"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_clear_error(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = classyseg.load(run).save(tmp_path / "model")
    damage(folder)
    with pytest.raises(ConfigError, match=told) as raised:
        classyseg.load(folder)
    assert str(folder) in str(raised.value)


def test_a_folder_that_holds_no_model_is_told_with_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "photo.jpg"):
        with pytest.raises(ConfigError, match="accepted are a run"):
            classyseg.load(folder)


def test_the_best_checkpoint_is_taken_and_a_damaged_one_passed_over(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model", ignore_errors=True)
    shutil.copytree(copy / "checkpoints" / "step-1", copy / "checkpoints" / "step-9")
    (copy / "checkpoints" / "step-9" / "state.json").write_text("{}")
    (copy / "checkpoints" / "BEST").write_text("step-9 0.5\n")
    wanted = classyseg.load(run / "checkpoints" / "step-1").predict(PIXELS)
    np.testing.assert_array_equal(classyseg.load(copy).predict(PIXELS), wanted)


def test_saving_replaces_a_model_and_nothing_else(run: Path, tmp_path: Path) -> None:
    predictor = classyseg.load(run)
    predictor.save(tmp_path / "model")
    predictor.save(tmp_path / "model")
    (tmp_path / "model" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        predictor.save(tmp_path / "model")
    with pytest.raises(ConfigError, match="model_config"):
        predictor_of(tiny_model()).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_overlay_mixes_the_image_with_the_colours_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(tiny_model(), palette=[(0, 0, 0), (255, 0, 0), (0, 255, 0)])
    labels = predictor.predict(PIXELS)
    monkeypatch.setattr("classyseg.inference.predictor.DRAWN_AT_ONCE", 7 * PIXELS.shape[1])  # in bands
    found = np.asarray(predictor.overlay(PIXELS, alpha=0.25))
    np.testing.assert_allclose(found, 0.75 * PIXELS + 0.25 * np.array(predictor.palette)[labels], atol=0.51)


class _BlackAndWhite(ClassyModel):
    """Class 0 where the image is dark, 1 where it is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.add_block("brightness", 2, 1)
        self.attach_head("main", _Given((self.block("brightness"),), 2))

    def extract_features(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = image.mean(1, keepdim=True)
        return {"brightness": torch.cat([-mean, mean], 1)}


class _Given(classyseg.ClassyHead):
    def __init__(self, blocks: Any, num_classes: int) -> None:
        super().__init__()

    def forward(self, features: Any) -> torch.Tensor:
        found: torch.Tensor = features[0]
        return found


@pytest.mark.parametrize("protocol", ["whole", {"name": "sliding_window", "size": [24, 32]}])
def test_an_error_of_a_budget_names_the_budget_that_serves(protocol: Any) -> None:
    model = tiny_model()
    with pytest.raises(BudgetError) as raised:
        predictor_of(model, protocol=protocol, max_memory=1000).predict(PIXELS)
    labels = predictor_of(model, protocol=protocol, max_memory=raised.value.needed).predict(PIXELS)
    np.testing.assert_array_equal(labels, predictor_of(model, protocol=protocol).predict(PIXELS))
    with pytest.raises(BudgetError, match=r"found 40M; .* needs"):
        predictor_of(model, protocol=protocol, max_memory="40M").predict(PIXELS)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_colours_of_another_space_become_red_green_blue(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    found = Preparation().read(image)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_premultiplied_grey_is_read_as_grey() -> None:
    image = Image.fromarray(PIXELS[..., 0]).convert("LA")
    assert torch.equal(Preparation().read(image.convert("La")), Preparation().read(image))


@pytest.mark.parametrize("image", [b"photo.jpg", {"image": PIXELS}])
def test_what_is_neither_an_image_nor_several_is_refused_at_once(image: Any) -> None:
    with pytest.raises(DataError, match=type(image).__name__):
        predictor_of(tiny_model()).predict(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:9"}, r"^device: found cuda:9"),
        ({"device": torch.device("meta")}, r"^device: found device\(type='meta'\)"),
        ({"precision": "double"}, r"^precision: found 'double'"),
        ({"protocol": "half"}, r"^the protocol config: 'half': unknown protocol"),
        ({"max_memory": "much"}, r"^max_memory: found 'much'"),
    ],
)
def test_what_the_caller_of_load_says_wrong_is_not_laid_to_a_file(run: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        classyseg.load(run, **options)


@pytest.mark.parametrize("path", ["", None, b"run"])
def test_load_says_what_a_folder_is_named_by(path: Any) -> None:
    with pytest.raises(ConfigError, match="name a folder"):
        classyseg.load(path)


def test_overlay_refuses_what_cannot_be_drawn() -> None:
    predictor = predictor_of(tiny_model())
    with pytest.raises(ConfigError, match="alpha: found 2"):
        predictor.overlay(PIXELS, alpha=2)
    with pytest.raises(DataError, match=r"labels: found \(5, 56\)"):
        predictor.overlay(PIXELS, labels=np.zeros((5, 56), np.uint8))


def test_any_model_that_was_trained_can_be_loaded_however_large(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classyseg.shapes.MAX_REAL_PARAMETERS", 1000)  # of who only checks a config
    assert classyseg.load(run, device="cpu").predict(PIXELS).shape == PIXELS.shape[:2]


def test_a_preparation_that_makes_an_image_absurdly_large_is_refused() -> None:
    with pytest.raises(DataError, match=r"transforms\[0\]: Resize makes 60000 x 60000"):
        predictor_of(tiny_model(), preparation=Preparation([{"name": "resize", "size": [60000, 60000]}])).predict(
            PIXELS
        )


@pytest.mark.parametrize("classes", [["a"], ["a", "b", "c", "d"]])
def test_as_many_names_as_the_model_has_classes_are_asked_for(classes: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"classes.*{len(classes)} names.*'main'.*3 classes"):
        Predictor(tiny_model(), classes=classes)


def test_a_card_is_a_table_whatever_the_names_of_classes(tmp_path: Path) -> None:
    names = ["a|b", "c\nd", "\x1b[31m"]
    predictor = Predictor(tiny_model(), classes=names, model_config=MODEL)
    predictor.save(tmp_path / "model", Card(records={"val": {"iou": dict.fromkeys(names, 0.5)}}))
    text = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.endswith("| 0.5000 |")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [3, 3, 3]

"""What the server answers is what `classyseg predict` writes, and what Pillow and numpy say about the images."""

from __future__ import annotations

import base64
import json
import shlex
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from format_cases import all_cases
from PIL import Image
from predicted import noise

import runs
from classyseg.cli.main import main
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.errors import ConfigError
from classyseg.exporting import export
from classyseg.inference import Predictor, load
from classyseg.models import build_model
from classyseg.serve import Limits, PredictionServer
from served import CLASSES, PALETTE, Served, png, serving, small_predictor, whole_image_predictor


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


@pytest.mark.slow
def test_every_image_file_gets_what_predict_writes_or_the_reason_that_predict_gives(
    served: Served, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i, case in enumerate(all_cases().values()):
        if Path(case.name).suffix in IMAGE_SUFFIXES:
            (tmp_path / "in" / str(i)).mkdir()
            case.write(tmp_path / "in" / str(i) / case.name)
    turned = Image.fromarray(noise(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "in" / "turned.jpg", exif=exif)
    turned.save(tmp_path / "in" / "alpha.webp", lossless=True)
    (tmp_path / "in" / "cut.png").write_bytes(png(noise(20, 30))[:-40])
    words = [str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(folder), *words]) == 1
    summary = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert len(summary["files"]) > 50
    assert len(summary["failed"]) > 20
    for i, record in enumerate(summary["files"]):
        content = Path(record["file"]).read_bytes()
        answer = served.predict(content, accept="image/png")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png"), (record, answer.content)
        written = Path(record["labels"])
        if written.suffix == ".png":
            assert answer.content == written.read_bytes(), record["file"]
        assert np.array_equal(np.array(opened(answer.content)), np.array(Image.open(written)))
        if i % 5:
            continue
        told = served.predict(content).json
        assert {each["name"]: each["pixels"] for each in told["classes"]} == record["pixels"]
        assert (told["width"], told["height"]) == (record["width"], record["height"])
    for failed in summary["failed"]:
        answer = served.predict(Path(failed["file"]).read_bytes())
        assert answer.status in (415, 422), failed
        if not failed["file"].endswith(".npy"):
            assert answer.error == failed["reason"]
        assert str(tmp_path) not in answer.error


def test_json_has_shares_and_colours_and_the_label_map_on_request(served: Served, predictor: Predictor) -> None:
    image = noise(33, 47)
    told = served.predict(png(image)).json
    assert [(each["index"], each["name"]) for each in told["classes"]] == list(enumerate(CLASSES))
    assert [tuple(bytes.fromhex(each["color"][1:])) for each in told["classes"]] == list(PALETTE)
    labels = predictor.predict(image)
    counts = [int((labels == i).sum()) for i in range(4)]
    assert min(counts) > 0
    assert [each["pixels"] for each in told["classes"]] == counts
    assert [each["share"] for each in told["classes"]] == [count / labels.size for count in counts]
    assert 0 < told["seconds"] < 60
    assert "labels" not in told
    more = served.predict(png(image), "labels=1&picture=1").json
    drawn = opened(base64.b64decode(more["labels"]))
    assert np.array_equal(np.array(drawn), labels)
    assert drawn.getpalette()[:12] == [value for color in PALETTE for value in color]
    assert np.array_equal(np.array(opened(base64.b64decode(more["picture"]))), image)


def test_the_picture_of_16_bits_is_scaled_to_8(served: Served) -> None:
    deep = noise(9, 11, 1, kind=np.uint16)
    shown = np.array(opened(base64.b64decode(served.predict(png(deep), "picture=1").json["picture"])))
    assert np.array_equal(shown, np.repeat(np.round(deep / 257).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize(
    ("accept", "query", "kind"),
    [
        (None, "", "application/json"),
        ("*/*", "", "application/json"),
        ("image/png", "", "image/png"),
        ("image/*;q=0.9, application/json;q=0.2", "", "image/png"),
        ("text/html, application/json;q=0.5, image/png;q=0.4", "", "application/json"),
        ("image/png", "answer=json", "application/json"),
        ("application/json", "answer=png", "image/png"),
        ("text/html", "answer=png", "image/png"),
        ("image/png;q=0, */*;q=0.1", "", "application/json"),
        ("text/html", "", 406),
        ("application/json;q=x", "", 406),
        (None, "answer=gif", 400),
        (None, "labels=yes", 400),
        (None, "path=/etc/passwd", 400),
        (None, "class=road", 400),
    ],
)
def test_accept_or_the_query_choose_the_answer(served: Served, accept: str | None, query: str, kind: Any) -> None:
    answer = served.predict(png(noise(4, 5)), query, **({} if accept is None else {"accept": accept}))
    assert (answer.status if isinstance(kind, int) else answer.headers["content-type"]) == kind


def test_a_file_that_gives_a_class_without_a_score_is_refused_at_the_start(tmp_path: Path) -> None:
    made = export(whole_image_predictor(), format="torch_export", output=tmp_path / "m.pt2")
    with pytest.raises(ConfigError, match="--output-kind scores"):
        PredictionServer(load(made.path), port=0)


def test_pixels_of_several_classes_have_a_map_for_each(tmp_path: Path) -> None:
    model, image = small_predictor(multi_label=True), noise(40, 50)
    flags = model.predict(image)
    assert flags.any(axis=(1, 2)).all()
    assert (flags.sum(0) > 1).any()
    (tmp_path / "a.png").write_bytes(png(image))
    words = [str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(model.save(tmp_path / "model")), *words]) == 0
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))["files"]
    with serving(model) as server:
        assert "any of its classes" in server.ask("GET", "/model").json["answers"]
        told = server.predict(png(image), "labels=1").json
        assert {each["name"]: each["pixels"] for each in told["classes"]} == record["pixels"]
        assert [each["share"] for each in told["classes"]] == [own.mean() for own in flags]
        written = [Path(record["flags"][name]).read_bytes() for name in CLASSES]
        assert [base64.b64decode(each) for each in told["labels"]] == written
        answer = server.predict(png(image), f"answer=png&class={quote(CLASSES[2])}")
        assert (answer.headers["content-type"], answer.content) == ("image/png", written[2])
        for query, status, named in (("answer=png", 406, "class=sky"), ("answer=png&class=sea", 400, "sky, road")):
            refused = server.predict(png(image), query)
            assert refused.status == status
            assert named in refused.error
        assert server.predict(png(image), "class=road").status == 400


def test_a_model_of_one_class_and_its_background_answers_with_its_one_map() -> None:
    config = runs.tiny_config()["model"]
    torch.manual_seed(0)
    model = Predictor(build_model(config, 1), classes=["nucleus"], multi_label=True, device="cpu")
    image = noise(40, 50)
    with serving(model) as server:
        answer = server.predict(png(image), accept="image/png")
        assert np.array_equal(np.array(opened(answer.content)), model.predict(image)[0])
        assert server.predict(png(image)).json["classes"][0]["pixels"] == model.predict(image).sum()


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_model_of_whole_images_answers_with_its_scores(multi_label: bool) -> None:
    model, image = whole_image_predictor(multi_label=multi_label), noise(40, 50)
    scores = model.scores(image)
    with serving(model) as server:
        told = server.predict(png(image)).json
        assert [(each["name"], each["score"]) for each in told["scores"]] == list(
            zip(CLASSES, scores.tolist(), strict=True)
        )
        if multi_label:
            assert {each["class"] for each in told["classes"]} == {CLASSES[i] for i in range(4) if scores[i] >= 0.5}
        else:
            assert (told["class"], told["score"]) == (CLASSES[scores.argmax()], scores.max())
        for query in ("answer=png", "labels=1"):
            refused = server.predict(png(image), query)
            assert refused.status == 406
            assert "no label map" in refused.error


def test_images_that_the_memory_budget_cuts_into_windows_say_so(predictor: Predictor) -> None:
    image = noise(192, 256)
    small = Predictor(
        predictor.model, classes=CLASSES, palette=PALETTE, device="cpu", max_memory="51M", train_size=(64, 64)
    )
    expected = small.predict(image)
    assert small.in_windows
    with serving(small) as server:
        told = server.predict(png(image), "labels=1").json
        assert np.array_equal(np.array(opened(base64.b64decode(told["labels"]))), expected)
        assert told["windows"] == json.loads(next(iter(small.in_windows)))["size"]


def test_the_model_page_tells_classes_colours_and_limits(served: Served) -> None:
    told = served.ask("GET", "/model").json
    assert [each["name"] for each in told["classes"]] == list(CLASSES)
    assert told["limits"] == {"bytes": 64_000_000, "pixels": 50_000_000, "seconds": 300}
    assert told["formats"] == list(IMAGE_SUFFIXES)


def test_a_model_of_videos_is_refused(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "takes_clips", True)
    with pytest.raises(ConfigError, match="this model takes videos"):
        PredictionServer(predictor, port=0)


def test_bands_that_the_model_does_not_take_are_refused_with_what_it_takes(served: Served) -> None:
    content = BytesIO()
    np.save(content, np.zeros((4, 5, 7), np.uint8))
    refused = served.predict(content.getvalue())
    assert refused.status == 422
    assert "accepted: (H, W, 3)" in refused.error


def test_a_limit_of_pixels_is_held_before_they_are_decoded(predictor: Predictor) -> None:
    with serving(predictor, Limits(max_pixels=1000)) as server:
        assert server.predict(png(noise(25, 40))).status == 200
        refused = server.predict(png(noise(26, 40)))
        assert refused.status == 413
        assert "1,040 pixels; accepted are up to 1,000" in refused.error


def test_the_curl_commands_of_the_page_are_answered_as_it_says(served: Served) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("curl ")]
    kinds = []
    for words in commands:
        assert words[1:3] == ["--data-binary", "@photo.jpg"]
        (url,) = [word for word in words if word.startswith("http://127.0.0.1:8000/")]
        headers = dict([words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H"])
        answer = served.ask("POST", url.removeprefix("http://127.0.0.1:8000"), png(noise(9, 8)), headers)
        assert answer.status == 200
        kinds.append(answer.headers["content-type"])
    assert kinds == ["application/json", "image/png", "application/json"]

"""`classyseg predict` on other files than plain images: GeoTIFF, videos; and with other models."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from predicted import MEAN, STD, labels_in, noise, plain_labels, predict, refused, save, summary

from classyseg.cli import prediction
from classyseg.datasets.files.videos import each_frame
from classyseg.inference import Predictor
from classyseg.models import build_model
from runs import SMALL_BACKBONE


def test_a_geotiff_becomes_a_geotiff_at_the_same_place(trained: Path, tmp_path: Path) -> None:
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32611)
    tags = [
        (33550, "d", 3, (0.5, 0.5, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
        (34735, "H", len(keys), keys, True),
        (34737, "s", 0, "WGS 84 / UTM zone 11N|", True),
        (42113, "s", 0, "0", True),
    ]
    for big in (False, True):
        path = tmp_path / f"big{big}.tif"
        tifffile.imwrite(path, noise(20, 30), photometric="rgb", bigtiff=big, extratags=tags)
        assert predict(trained, path, "--output", tmp_path / "out", "--overwrite") == 0
        with tifffile.TiffFile(path) as before, tifffile.TiffFile(tmp_path / "out" / path.name) as after:
            found = {code: tag.value for code, tag in after.pages.first.tags.items()}
            for code, *_ in tags[:-1]:
                assert found[code] == before.pages.first.tags[code].value
            assert 42113 not in found  # 0 was no data, and is a class now
            assert after.geotiff_metadata == before.geotiff_metadata
            assert np.array_equal(after.asarray(), np.array(Image.open(tmp_path / "out" / path.name)))
            assert np.mean(after.asarray() == plain_labels(trained, path)) > 0.99


def test_tags_of_another_type_are_left_out_and_the_other_files_are_done(trained: Path, tmp_path: Path) -> None:
    tags = [
        (33550, "s", 0, "half a metre", True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
        (34735, "f", 4, (1.0, 1.0, 0.0, 0.5), True),
    ]
    tifffile.imwrite(tmp_path / "odd.tif", noise(20, 30), photometric="rgb", extratags=tags)
    plain = save(tmp_path / "plain.png", noise(20, 30))
    assert predict(trained, tmp_path / "odd.tif", plain, "--output", tmp_path / "out") == 0
    with tifffile.TiffFile(tmp_path / "out" / "odd.tif") as tiff:
        assert {33550, 33922, 34735} & set(tiff.pages.first.tags.keys()) == {33922}
    assert labels_in(tmp_path / "out") == {"plain.png"}


def test_a_file_that_cannot_be_written_in_any_way_fails_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = prediction.write_labels

    def broken(path: Path, *more: object) -> None:
        if path.name == "a.png":
            raise SystemError("from C")
        write(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "write_labels", broken)
    paths = [save(tmp_path / name, noise(20, 30)) for name in ("a.png", "b.png")]
    assert predict(trained, *paths, "--output", tmp_path / "out") == 1
    (failed,) = summary(tmp_path / "out")["failed"]
    assert failed == {"file": str(paths[0]), "reason": "SystemError: from C"}
    assert labels_in(tmp_path / "out") == {"b.png"}


@pytest.mark.parametrize(("name", "world"), [("a.png", "a.pgw"), ("a.jpg", "a.wld"), ("b.TIF", "b.TFW")])
def test_a_world_file_places_the_labels(trained: Path, tmp_path: Path, name: str, world: str) -> None:
    """The numbers of the file are of the middle of the first pixel, those of the tag of its corner (GeoTIFF 1.1)."""
    path = save(tmp_path / name, noise(20, 30))
    (tmp_path / world).write_text("0.5\n0.1\n0.2\n-0.5\n1000.0\n2000.0\n")
    assert predict(trained, path, "--output", tmp_path / "out") == 0
    (file,) = summary(tmp_path / "out")["files"]
    assert Path(file["labels"]).suffix.lower() == ".tif"
    with tifffile.TiffFile(file["labels"]) as tiff:
        matrix = np.reshape(tiff.pages.first.tags[34264].value, (4, 4))
    assert (matrix @ [0.5, 0.5, 0, 1]).tolist() == [1000.0, 2000.0, 0.0, 1.0]
    assert (matrix @ [2.5, 3.5, 0, 1]).tolist() == pytest.approx(
        [1000 + 2 * 0.5 + 3 * 0.2, 2000 + 2 * 0.1 - 3 * 0.5, 0, 1]
    )


def test_a_world_file_that_is_none_leaves_a_png(trained: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(20, 30))
    (tmp_path / "a.wld").write_text("not six numbers")
    assert predict(trained, path, "--output", tmp_path / "out") == 0
    assert labels_in(tmp_path / "out") == {"a.png"}


def test_a_tiff_without_a_place_becomes_a_png(trained: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(20, 30), photometric="rgb")
    assert predict(trained, tmp_path / "a.tif", "--output", tmp_path / "out") == 0
    assert labels_in(tmp_path / "out") == {"a.png"}


def test_a_file_of_several_images_is_named(trained: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([noise(20, 30), noise(20, 30)]), photometric="rgb")
    assert predict(trained, tmp_path / "a.tif", "--output", tmp_path / "out") == 1
    assert "several images" in summary(tmp_path / "out")["failed"][0]["reason"]


def video(path: Path, frames: Sequence[np.ndarray]) -> Path:
    av = importlib.import_module("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_becomes_a_folder_of_label_maps_and_a_video_of_overlays(trained: Path, tmp_path: Path) -> None:
    av = importlib.import_module("av")
    path = video(tmp_path / "clip.mp4", [np.full((34, 46, 3), 20 * i, np.uint8) for i in range(11)])
    (tmp_path / "out" / "clip").mkdir(parents=True)
    (tmp_path / "out" / "clip" / "000011.png").write_bytes(b"of a longer one")
    assert predict(trained, path, "--output", tmp_path / "out", "--overlay", "--overwrite") == 0
    assert labels_in(tmp_path / "out") == {f"clip/{i:06}.png" for i in range(11)}
    assert Image.open(tmp_path / "out" / "clip" / "000003.png").size == (46, 34)
    (record,) = summary(tmp_path / "out")["files"]
    assert record["frames"] == 11
    assert sum(record["pixels"].values()) == 11 * 34 * 46
    with av.open(str(tmp_path / "out" / "clip_overlay.mp4")) as overlay:
        stream = overlay.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (46, 34, 10)
        assert sum(1 for _ in overlay.decode(stream)) == 11


QUARTER_TURN = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
"""A phone's display matrix: what lies at x, y of the frame is shown at -y, x."""


def test_frames_are_turned_as_players_show_them(trained: Path, tmp_path: Path) -> None:
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16, :32], frame[16:, 32:] = 250, 120
    path = video(tmp_path / "phone.mp4", [frame] * 2)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # of the matrix in the header of a track, ISO/IEC 14496-12
    struct.pack_into(">9i", content, place, *QUARTER_TURN)
    path.write_bytes(content)
    assert predict(trained, path, "--output", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "phone" / "000001.png").size == (32, 64)
    shown, stored = (next(each_frame(path, turned=turned))[0][0].numpy() for turned in (True, False))
    assert np.abs(stored.astype(int) - frame[..., 0]).max() < 20
    assert np.array_equal(shown, np.rot90(stored, -1))


def test_a_broken_video_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    save(tmp_path / "in" / "a.png", noise(4, 5))
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out", "--overlay") == 1
    assert labels_in(tmp_path / "out") == {"a.png"}
    assert not (tmp_path / "out" / "clip_overlay.mp4").exists()


def test_more_than_256_classes_become_16_bits(tmp_path: Path) -> None:
    from classyseg.cli.prediction_files import write_labels

    labels = np.array([[0, 299], [256, 1]], np.uint16)
    write_labels(tmp_path / "a.png", labels, [(0, 0, 0)] * 300)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), labels)


def test_a_model_of_whole_images_tells_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    head = {"name": "fully_connected", "blocks": ["stage4"]}
    config = {**SMALL_BACKBONE, "heads": {"main": head}}
    model = build_model(config, 3)
    classes = ["cat", "dog", "cow"]
    folder = Predictor(model, classes=classes, model_config=config, device="cpu").save(tmp_path / "model")
    image = noise(40, 50)
    save(tmp_path / "in" / "sub" / "a.png", image)
    assert predict(folder, tmp_path / "in", "--output", tmp_path / "out", "--scores") == 0
    normalised = (torch.from_numpy(image).float() / 255 - MEAN) / STD
    with torch.no_grad():
        scores = model.eval()(normalised.permute(2, 0, 1)[None])["main"].softmax(1)[0]
    assert np.allclose(np.load(tmp_path / "out" / "sub" / "a.npy"), scores.numpy(), atol=1e-5)
    (record,) = summary(tmp_path / "out")["files"]
    assert record["class"] == classes[int(scores.argmax())]
    assert summary(tmp_path / "out")["totals"]["images"][record["class"]] == 1
    assert labels_in(tmp_path / "out") == set()
    assert "whole images" in refused(folder, tmp_path / "other", capsys, tmp_path / "in", "--overlay")

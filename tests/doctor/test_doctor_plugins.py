"""What the doctor finds in a plugin's data set that inherits from `ClassyDataset` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classyseg.datasets import ClassyDataset
from classyseg.datasets.label_map import LabelMap
from classyseg.doctor import check_data
from classyseg.doctor.inspection import inspect
from classyseg.structures import Sample


class Pairs(ClassyDataset):
    """Images `NAME.png` with masks `NAME_mask.png`, with a key `label_map` of its own."""

    classes = ("ground", "crop")
    channels = 3
    reads_apart = True

    def __init__(self, *, root: str, label_map: dict[int, int] | None = None, transforms: tuple[Any, ...] = ()) -> None:
        super().__init__(transforms)
        self.images = sorted(path for path in Path(root).glob("*.png") if not path.stem.endswith("_mask"))
        self.label_map = LabelMap(label_map or {}, others_stay=True)

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> tuple[Path, ...]:
        image = self.images[index]
        return image, image.with_stem(f"{image.stem}_mask")

    def load_image(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(Image.open(self.files(index)[0]))).permute(2, 0, 1)

    def load_target(self, index: int) -> Tensor:
        path = self.files(index)[1]
        return self.label_map(np.array(Image.open(path)), path)

    def load(self, index: int) -> Sample:
        return Sample(self.load_image(index), self.load_target(index), str(self.images[index]))


class Films(ClassyDataset):
    """Two clips of each film, whose frames are all alike."""

    classes = ("still", "moving")
    whole_images = True
    gives_clips = True
    ignore_index = -1
    group_size = 2
    too_short = ("film 9",)

    def __len__(self) -> int:
        return 6

    def load(self, index: int) -> Sample:
        image = torch.arange(48, dtype=torch.uint8).reshape(3, 2, 2, 4)
        return Sample(image, torch.tensor(index // 2 % 2), f"clip {index}")


class Both(ClassyDataset):
    """Pairs of two folders."""

    classes = Pairs.classes

    def __init__(self, *, roots: tuple[str, ...]) -> None:
        self.parts = [Pairs(root=root) for root in roots]
        super().__init__()

    def part_places(self) -> Sequence[str]:
        return [f"roots[{i}]" for i in range(len(self.parts))]

    def locate(self, index: int) -> tuple[int, int]:
        return divmod(index, len(self.parts[0]))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def load(self, index: int) -> Sample:
        part, inner = self.locate(index)
        return self.parts[part].load(inner)


def drawn(folder: Path, values: Sequence[int], count: int = 4) -> str:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(random.choice(values, (6, 8)).astype(np.uint8)).save(folder / f"{i}_mask.png")
    return str(folder)


def test_values_of_masks_are_explained_with_the_line_of_its_config(tmp_path: Path) -> None:
    root = drawn(tmp_path / "a", [0, 200])
    (finding,) = check_data({"dataset.train": Pairs(root=root)}).faults
    assert (finding.kind, finding.config) == ("values_spread", "label_map: {200: 1}")
    assert finding.files[0][0].endswith("0_mask.png")
    assert not check_data({"dataset.train": Pairs(root=root, label_map={200: 1})}).faults


def test_what_is_wrong_with_an_image_hides_nothing_of_its_mask(tmp_path: Path) -> None:
    root = drawn(tmp_path / "a", [0, 1])
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    (tmp_path / "a" / "1_mask.png").write_bytes(b"no mask")
    facts = inspect(Pairs(root=root), 0)
    assert [problem.kind for problem in facts.problems] == ["image_unreadable"]
    assert sum(facts.pixels.values()) == 48
    kinds = {finding.kind: finding for finding in check_data({"dataset.train": Pairs(root=root)}).faults}
    assert set(kinds) == {"image_unreadable", "mask_unreadable"}
    assert all(finding.files[0][0].startswith(root) for finding in kinds.values())


def test_clips_are_counted_by_video_and_are_no_copies_of_each_other() -> None:
    diagnosis = check_data({"dataset.val": Films()})
    (summary,) = diagnosis.summaries
    assert [row.get("videos") for row in summary.class_rows()] == [2, 1, 0]
    found = {finding.kind: finding.count for finding in diagnosis.findings}
    assert found["duplicate_labels"] + found.get("duplicate", 0) == 2  # of three films, not of six clips
    assert found["short_video"] == 1


def test_faults_are_told_at_the_part_that_has_them(tmp_path: Path) -> None:
    roots = (drawn(tmp_path / "a", [0, 1]), drawn(tmp_path / "b", [0, 1, 7]))
    findings = check_data({"dataset.train": Both(roots=roots)}).faults
    assert {finding.place for finding in findings} == {"dataset.train.roots[1]"} | {
        finding.place for finding in findings if finding.kind.startswith("duplicate")
    }
    assert any("7" in finding.message for finding in findings)

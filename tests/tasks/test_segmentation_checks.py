"""What a segmentation task finds wrong before its first step, with a check of the config alone and when it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError, parse_config
from classyseg.datasets import SyntheticShapes, SyntheticVideo
from classyseg.evaluation import RECORD_KEYS, joined_metrics
from classyseg.heads import LinearHead
from classyseg.meters import build_meter
from classyseg.models.backbones.anynet import AnyNet
from classyseg.registry import DATASETS, HEADS, TASKS
from classyseg.tasks import SegmentationTask, build_task
from classyseg.tasks.outputs import check_outputs
from classyseg.trainer import Trainer
from classyseg.weights.cache import PublicWeights
from runs import tiny_config, tiny_task

SMALL = {"num_epochs": 1, "dataset.train.num_samples": 16, "dataset.val.num_samples": 2}


def check(changes: Mapping[str, Any]) -> None:
    """What `--check` does."""
    SegmentationTask.check(TASKS.validate(tiny_config(changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meters": [{"name": "mean_iou", "head": "mian"}]}, r"meters\[0\]\.head: 'mian': .*did you mean 'main'"),
        ({"loss.head_weights": {"mian": 1.0}}, r"loss\.head_weights\.mian: .*did you mean 'main'"),
        ({"loss.heads": ["main", "mian"]}, r"loss\.heads\[1\]: 'mian': .*did you mean 'main'"),
        (
            {"loss": {"name": "sum_arbitrary", "losses": ["dice", {"name": "focal", "heads": ["mian"]}]}},
            r"loss\.losses\[1\]\.heads\[0\]: 'mian': .*did you mean 'main'",
        ),
        ({"model.heads.main.train_only": True}, "no head that works in eval mode"),
        ({"model.heads": {}}, "no head that works in eval mode"),
    ],
    ids=["meter", "head_weights", "heads", "heads of a part", "only train_only", "no head"],
)
@pytest.mark.parametrize("find", [check, tiny_task])
def test_heads_that_do_not_exist_are_found_before_the_run(
    find: Callable[[Any], object], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find(changes)


ENCNET = {"name": "encnet", "blocks": ["stage4"], "channels": 16}
AUX = {"name": "fcn", "blocks": ["stage3"], "channels": 8, "train_only": True}


def test_a_loss_may_weigh_an_extra_of_a_head_that_gives_it() -> None:
    changes = {"model.heads.main": {"name": "ocr", "blocks": ["stage4"], "channels": 16, "key_channels": 8}}
    check(changes | {"loss.head_weights": {"main": 1.0, "main.coarse": 0.4}})
    with pytest.raises(ConfigError, match=r"loss\.head_weights\.main\.corse.*'main\.coarse'"):
        check(changes | {"loss.head_weights": {"main.corse": 0.4}})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("presence", r"loss: found no output \(N, C\) among main; this loss needs"),
        (
            {"name": "presence", "heads": ["main"]},
            r"model\.heads\.main: found logits .*this loss needs logits \(N, C\)",
        ),
        (
            {"name": "cross_entropy", "heads": ["main.se"]},
            r"model\.heads\.main\.se: found logits .*need logits \(N, C, h",
        ),
        (
            {"name": "cross_entropy", "head_weights": {"main.se": 0.2}},
            r"model\.heads\.main\.se: found logits .*need logits \(N, C, h",
        ),
        ({"name": "segmentation", "main_head": "main.se"}, r"loss\.main_head: 'main\.se' gives no logits"),
        (
            {"name": "sum_arbitrary", "losses": ["dice", {"name": "segmentation", "main_head": "main.se"}]},
            r"loss\.losses\[1\]\.main_head: 'main\.se' gives no logits",
        ),
    ],
    ids=["no kind", "presence", "heads", "head_weights", "main_head", "part"],
)
@pytest.mark.parametrize("find", [check, tiny_task])
def test_outputs_that_the_loss_cannot_read_are_found_before_the_run(
    find: Callable[[Any], object], loss: Any, message: str
) -> None:
    changes = {"model.heads.main": ENCNET} if loss != "presence" else {}
    with pytest.raises(ConfigError, match=message):
        find({**changes, "loss": loss})


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_head_that_no_loss_reads_is_refused_where_it_would_train(find: Callable[[Any], object]) -> None:
    loss = {
        "name": "sum_arbitrary",
        "losses": [{"name": name, "heads": ["main"]} for name in ("cross_entropy", "dice")],
    }
    changes = {"model.heads.aux": {**AUX, "train_only": False}, "loss": loss}
    with pytest.raises(ConfigError, match=r"loss.*'aux'.*model\.heads\.aux"):
        find(changes)
    find({**changes, "num_epochs": 0})
    find({"model.heads.main": ENCNET, "loss": {"name": "presence", "heads": ["main.se"]}})


VIDEO = {"meters": ["mean_iou", {"name": "video_accuracy", "clips_per_video": 3}]}


@pytest.fixture
def triples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three drawn images that follow each other count as clips of one video."""
    monkeypatch.setattr(SyntheticShapes, "group_size", 3)


@pytest.mark.usefixtures("triples")
@pytest.mark.parametrize("find", [check, tiny_task])
def test_val_batches_that_cut_a_video_are_found_before_the_run(find: Callable[[Any], object]) -> None:
    message = r"runtime\.eval_batch_size: found 2; accepted with meters\[1\]\.clips_per_video 3: multiples"
    with pytest.raises(ConfigError, match=message):
        find({**VIDEO, "runtime.eval_batch_size": 2})
    find({**VIDEO, "runtime.eval_batch_size": 6})
    with pytest.raises(ConfigError, match=r"dataset\.val.*5 samples.*meters\[1\]\.clips"):
        tiny_task({**VIDEO, "runtime.eval_batch_size": 6, "dataset.val.num_samples": 5})


@pytest.mark.usefixtures("triples")
def test_the_clips_of_a_video_stay_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(2):
        monkeypatch.setattr("classyseg.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("classyseg.distributed.world_size", lambda: 2)
        task = tiny_task({**VIDEO, "runtime.eval_batch_size": 3, "dataset.val.num_samples": 6})
        shares.append([index for batch in task.data.eval_orders["val"] for _, index in batch])
    assert shares == [[0, 1, 2], [3, 4, 5]]


class SmallVideos(SyntheticVideo):
    """With masks and the classes of shapes as far as anybody asks, so that the task takes it."""

    whole_images = gives_clips = False
    classes = SyntheticShapes.classes


@pytest.mark.parametrize(
    ("data", "found", "accepted"),
    [
        ({"split": "test", "clips": {"frames": 4, "per_video": 3}}, 2, 3),
        ({"split": "test", "clips": {"frames": 4, "per_video": 3}}, 1, 3),
        ({"split": "train", "clips": {"frames": 4, "per_video": 3}}, 3, 1),
        ({"split": "test", "clips": {"frames": 4}}, 10, 1),
    ],
)
@pytest.mark.parametrize("composed", [False, True])
def test_a_meter_of_other_videos_than_the_test_set_has_is_found_without_data(
    composed: bool, data: dict[str, Any], found: int, accepted: int, own_registries: None
) -> None:
    DATASETS.register("small_videos")(SmallVideos)
    test = {"name": "small_videos", **data}
    if composed:
        test = {"name": "concat", "datasets": [{"name": "subset", "dataset": test, "first": 1}]}
    changes = {"dataset.val": test, "runtime.eval_batch_size": 30}
    message = rf"^meters\[0\]\.clips_per_video: found {found}; accepted: {accepted}, the number of samples"
    with pytest.raises(ConfigError, match=message):
        check({**changes, "meters": [{"name": "video_accuracy", "clips_per_video": found}]})
    check({**changes, "meters": [{"name": "video_accuracy", "clips_per_video": accepted}]})


def test_a_meter_of_videos_beside_images_is_found_when_the_task_is_built() -> None:
    with pytest.raises(ConfigError, match=r"^meters\[1\]\.clips_per_video.*3;.*accepted: 1, "):
        tiny_task({**VIDEO, "runtime.eval_batch_size": 3})


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("find", [check, tiny_task])
def test_data_sets_without_masks_are_found_before_the_run(
    find: Callable[[Any], object], composed: bool, split: str
) -> None:
    data: dict[str, Any] = {"name": "synthetic_image", "split": "test", "num_samples": 16}
    if composed:
        data = {"name": "subset", "dataset": data, "first": 8}
    with pytest.raises(ConfigError, match=rf"^dataset\.{split}.*one class.*mask"):
        find({f"dataset.{split}": data})


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_meter_that_the_classes_do_not_allow_is_found_before_the_run(find: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"^meters\[0\]\.topk.*\[9\].*1 to 4"):
        find({"meters": [{"name": "accuracy", "topk": [9]}]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.class_weights": [1.0, 2.0]}, r"^loss\.class_weights: found 2 weights for 4 classes"),
        ({"loss.class_weights": [1.0] * 5}, r"^loss\.class_weights: found 5 weights for 4 classes"),
    ],
)
@pytest.mark.parametrize("find", [check, tiny_task])
def test_weights_of_other_classes_are_found_before_the_run(
    find: Callable[[Any], object], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find(changes)


def test_the_classes_that_a_config_lists_are_counted_without_their_data() -> None:
    data = {"name": "folder", "images": "nowhere", "masks": "nowhere", "classes": ["a", "b", "c"]}

    for part in (data, {"name": "concat", "datasets": [{"name": "subset", "dataset": data, "first": 1}]}):
        with pytest.raises(ConfigError, match=r"^loss\.class_weights.*2 weights.*3 classes"):
            check({"dataset.train": part, "dataset.val": part, "loss.class_weights": [1.0, 2.0]})


POINT_REND = {"name": "point_rend", "blocks": ["stage1", "stage4"], "num_points": 64}
POINT_LOSS = {"name": "sum_arbitrary", "losses": ["cross_entropy", "point_cross_entropy"]}


@pytest.mark.parametrize("find", [check, tiny_task])
def test_a_head_whose_own_outputs_must_be_learnt_wants_a_loss_that_reads_them(find: Callable[[Any], object]) -> None:
    message = r"loss: found none that reads 'main\.points', without which layers of the head 'main' never learn"
    with pytest.raises(ConfigError, match=message):
        find({"model.heads.main": POINT_REND})
    others = {"name": "point_cross_entropy", "heads": ["aux.points"]}
    aux = {"model.heads.main": POINT_REND, "model.heads.aux": {**POINT_REND, "train_only": True}}
    with pytest.raises(ConfigError, match=message):
        find({**aux, "loss": {**POINT_LOSS, "losses": ["cross_entropy", others]}})
    find({"model.heads.main": POINT_REND, "loss": POINT_LOSS})
    find({"model.heads.aux": {**POINT_REND, "train_only": True}})


def test_points_are_learnt_in_a_run() -> None:
    task = tiny_task({**SMALL, "model.heads.main": POINT_REND, "loss": POINT_LOSS, "runtime.accumulate_steps": 2})
    before = {key: value.clone() for key, value in task.model.heads.state_dict().items()}
    Trainer().train(task)
    assert [key for key, value in task.model.heads.state_dict().items() if torch.equal(value, before[key])] == []


class TooManyClassesHead(LinearHead):
    """Logits of one class more than it was built for, for each pixel."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[0][:, : self.fc.out_features + 1]


@pytest.fixture
def too_many_classes(own_registries: None) -> None:
    HEADS.register("too_many_classes")(TooManyClassesHead)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("linear", r"model\.heads\.extra: its logits \(N, \d\) are of whole images; .*logits for each pixel"),
        ("deepten", r"model\.heads\.extra: its logits \(N, \d\) are of whole images; .*logits for each pixel"),
        ("too_many_classes", r"model\.heads\.extra: its logits .* are of (\d) classes; it was built for"),
    ],
)
@pytest.mark.parametrize("train_only", [True, False])
@pytest.mark.parametrize("find", [check, tiny_task])
@pytest.mark.usefixtures("too_many_classes")
def test_a_head_without_logits_for_each_pixel_and_class_is_found_before_the_run(
    find: Callable[[Any], object], head: str, train_only: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find({"model.heads.extra": {"name": head, "blocks": ["stage4"], "train_only": train_only}})


def test_finding_the_shapes_of_logits_changes_no_weight_and_no_mode() -> None:
    task = tiny_task(SMALL)
    model = task.model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    check_outputs(model, task.loss, 4, trains=True)

    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


EXTRA_HEAD = {"model.heads.extra": {"name": "fcn", "blocks": ["stage3"], "channels": 8}}


def test_what_a_meter_of_another_head_gives_carries_the_name_of_the_head() -> None:
    meters = ["mean_iou", {"name": "mean_iou", "head": "extra"}, {"name": "confusion_matrix", "head": "main"}]
    task = tiny_task({**SMALL, **EXTRA_HEAD, "num_epochs": 0, "meters": meters})
    check({**EXTRA_HEAD, "meters": meters})
    Trainer().train(task)

    matrix = np.array(task.metrics["confusion_matrix"])
    assert task.metrics["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum())
    given = {"mean_iou", "pixel_accuracy", "iou"}
    given |= {f"extra/{name}" for name in given} | {"confusion_matrix"}
    assert set(task.metrics) == set(RECORD_KEYS) - {"weights_step"} | given
    assert task.metrics["extra/pixel_accuracy"] == task.meters[1].compute()["pixel_accuracy"]
    assert task.metrics["extra/mean_iou"] != task.metrics["mean_iou"]


def test_the_tables_of_meters_lie_in_the_run_folder_and_say_what_the_record_says(tmp_path: Path) -> None:
    meters = [
        "confusion_matrix",
        {"name": "confusion_matrix", "head": "extra"},
        "boundary_iou",
        "accuracy",
        "class_accuracy",
    ]
    task = tiny_task({**SMALL, **EXTRA_HEAD, "meters": meters})
    Trainer(tmp_path).train(task)

    assert {path.name for path in tmp_path.glob("*.csv")} == {"confusion_matrix.csv", "extra_confusion_matrix.csv"}
    for prefix, key in (("", "confusion_matrix"), ("extra_", "extra/confusion_matrix")):
        _, *rows = (tmp_path / f"{prefix}confusion_matrix.csv").read_text(encoding="utf-8").splitlines()
        assert [list(map(int, row.split(",")[1:])) for row in rows] == task.metrics[key]
        assert [row.split(",")[0] for row in rows] == list(task.data.sets["train"].classes)
    matrix = np.array(task.metrics["confusion_matrix"])
    assert task.metrics["accuracy_top_1"] == pytest.approx(matrix.trace() / matrix.sum())


@pytest.mark.parametrize(
    ("meters", "message"),
    [
        (["mean_iou", "pixel_accuracy"], r"meters\[1\]: gives 'pixel_accuracy', which meters\[0\] has"),
        (["mean_iou", {"name": "mean_iou", "head": "main"}], r"meters\[1\]: gives 'mean_iou', which meters\[0\] has"),
        (2 * [{"name": "mean_iou", "head": "extra"}], r"meters\[1\]: gives 'extra/mean_iou', which meters\[0\] has"),
    ],
    ids=["two kinds", "one head named", "another head"],
)
@pytest.mark.parametrize("find", [check, tiny_task])
def test_two_meters_of_one_name_are_refused_before_the_run(
    find: Callable[[Any], object], meters: list[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find({**EXTRA_HEAD, "meters": meters})


@pytest.mark.parametrize(("name", "giver"), [("lr", "every record"), ("matrix", r"meters\[0\]")])
def test_a_name_that_a_meter_did_not_declare_overwrites_nothing(name: str, giver: str) -> None:
    first, second = (build_meter("confusion_matrix", ["wall"], 255) for _ in range(2))

    with pytest.raises(ConfigError, match=rf"meters\[1\].*'{name}'.*{giver}"):
        joined_metrics([first, second], [{"matrix": []}, {name: 1}], "main")


def test_a_meter_cannot_read_a_head_that_only_trains() -> None:
    aux = {"name": "fcn", "blocks": ["stage3"], "train_only": True}

    with pytest.raises(ConfigError, match=r"meters\[0\]\.head: 'aux'.*Known: main"):
        tiny_task({"model.heads.aux": aux, "meters": [{"name": "mean_iou", "head": "aux"}]})


OTHER = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, IMAGENET),
        ({"normalize": OTHER}, OTHER),
        ({f"dataset.{part}.transforms": [{"name": "normalize", **OTHER}] for part in ("train", "val")}, OTHER),
        ({"dataset.train.transforms": ["normalize"]}, IMAGENET),
    ],
    ids=["default", "task", "transforms", "transform as the default"],
)
def test_a_checkpoint_says_what_the_images_were_normalised_with(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    check(changes)
    task = tiny_task(changes)

    task.start(None)
    assert task.checkpoint_state()["normalize"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normalize": {}, "dataset.train.transforms": ["normalize"]},
            r"dataset\.train\.transforms: found 'normalize' together with",
        ),
        (
            {"dataset.val.transforms": ["normalize", "normalize"]},
            r"dataset\.val\.transforms: found 'normalize' 2 times",
        ),
        (
            {"dataset.train.transforms": [{"name": "normalize", **OTHER}]},
            r"dataset\.val\.transforms: its images get mean \[0\.485.*those of dataset\.train mean \[0\.5",
        ),
    ],
    ids=["both", "twice", "other values"],
)
@pytest.mark.parametrize("find", [check, tiny_task])
def test_normalising_twice_or_in_two_ways_is_refused(
    find: Callable[[Any], object], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 49}, "found 49, but dataset.train has only 48 samples"),
        ({"batch_size": 7, "runtime.accumulate_steps": 3}, "the nearest sizes are 6 or 9"),
        ({"batch_size": 2, "runtime.accumulate_steps": 3}, "the nearest sizes are 3"),
    ],
)
def test_a_batch_size_that_does_not_work_is_refused_with_the_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_task(changes)


# -- the normalisation that published weights need -------------------------------------------------------------------

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture
def known_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of weights of the tiny model that want other images than ImageNet's."""
    file = tmp_path / "half.pt"
    torch.save({k: v for k, v in tiny_task().model.state_dict().items() if not k.startswith("heads.")}, file)
    published = PublicWeights(file.as_uri(), "", "MIT", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    monkeypatch.setattr(AnyNet, "known_weights", classmethod(lambda cls, variant: {"half": published}))
    return "half"


@pytest.mark.parametrize("form", ["name", "mapping"])
def test_weights_that_are_known_set_the_normalisation_and_the_run_records_it(
    known_weights: str, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="classyseg.tasks")
    weights = known_weights if form == "name" else {"source": known_weights}
    changes = {**SMALL, "model.weights": weights, "hooks": ["checkpoint"]}
    task = tiny_task(changes)
    assert task.normalize.model_dump(mode="json") == HALF
    assert [r.message for r in caplog.records if "which the weights need" in r.message]
    folder = tmp_path / "run"
    Trainer(folder).train(task)
    record = parse_config((folder / "config.yaml").read_text(encoding="utf-8"), source="record")
    assert record.values["normalize"] == HALF
    for again in (build_task(record), tiny_task(changes)):
        again.start(folder, resume=True)
        assert again.progress.step == task.progress.step > 0
        assert again.config == task.config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"normalize": {"mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}}, [0.1, 0.1, 0.1]),
        ({"model.weights": None}, [0.485, 0.456, 0.406]),
        (
            {
                "dataset.train.transforms": [{"name": "normalize", "mean": [0.3] * 3, "std": [0.3] * 3}],
                "dataset.val.transforms": [{"name": "normalize", "mean": [0.3] * 3, "std": [0.3] * 3}],
            },
            [0.3, 0.3, 0.3],
        ),
    ],
    ids=["of the config", "no weights", "a transform"],
)
def test_a_normalisation_that_is_given_stays(
    known_weights: str, changes: dict[str, Any], expected: list[float]
) -> None:
    task = tiny_task({"model.weights": known_weights, **changes})
    assert list(task.normalize.mean) == expected
    assert task.config["normalize"] == changes.get("normalize")
    SegmentationTask.check(TASKS.validate(tiny_config({"model.weights": known_weights, **changes})))

"""Configs of mmsegmentation 0 become what those of version 1 become, with the places of their own keys in the notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from migration import mmseg_files

from classyseg.errors import ConfigError
from classyseg.migration import Converted, convert_file
from classyseg.optim import build_optimizer
from classyseg.structures import RunLength

OLD = """
normalize = dict(type='Normalize', mean=[127.5, 102, 76.5], std=[51, 51.0, 25.5], to_rgb=True)
crop = (96, 128)
dataset_type = 'CityscapesDataset'
tested = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(256, 128), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), normalize,
        dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
data = dict(
    samples_per_gpu=2, workers_per_gpu=3,
    train=dict(
        type=dataset_type, data_root='data/cityscapes/', img_dir='leftImg8bit/train', ann_dir='gtFine/train',
        pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='Resize', img_scale=(256, 128), ratio_range=(0.5, 2.0)),
            dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75), dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'), normalize, dict(type='Pad', size=crop, pad_val=0, seg_pad_val=255),
            dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_semantic_seg'])]),
    val=dict(
        type=dataset_type, data_root='data/streets/', img_dir='leftImg8bit/val', ann_dir='gtFine/val', pipeline=tested),
    test=dict(
        type=dataset_type, data_root='data/streets/', img_dir='leftImg8bit/val', ann_dir='gtFine/val', pipeline=tested))
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optimizer_config = dict()
lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)
runner = dict(type='IterBasedRunner', max_iters=400)
checkpoint_config = dict(by_epoch=False, interval=80)
evaluation = dict(interval=40, metric='mIoU', pre_eval=True)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook', by_epoch=False)])
dist_params = dict(backend='nccl')
log_level = 'INFO'
load_from = None
resume_from = None
workflow = [('train', 1)]
cudnn_benchmark = True
"""
"""The data and the schedule of `mmseg_files`, as mmsegmentation 0.30 writes them."""


def old(folder: Path, changes: str = "", name: str = "net_96x128_400.py") -> Path:
    mmseg_files.write(folder)
    model = (folder / "_base_" / "model.py").read_text()
    start, end = model.index("    data_preprocessor"), model.index("    pretrained")
    (folder / "_base_" / "model0.py").write_text(model[:start] + model[end:])
    (folder / "_base_" / "rest0.py").write_text(OLD)
    path = folder / name
    path.write_text(f"_base_ = ['_base_/model0.py', '_base_/rest0.py']\n{changes}\n")
    return path


def converted(folder: Path, changes: str = "") -> Converted:
    return convert_file(old(folder, changes), processes=4)


def test_the_same_training_becomes_the_same_config(tmp_path: Path) -> None:
    found = converted(tmp_path)
    assert found.values == convert_file(mmseg_files.write(tmp_path)).values
    assert not found.lost


def test_a_size_in_the_name_is_no_number_of_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.samples_per_gpu: .*--processes"):
        convert_file(old(tmp_path))
    assert convert_file(old(tmp_path, name="net_512x512_8x2_40k.py")).values["batch_size"] == 16


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ("data = dict(train=dict(pipeline=[dict(type='Albu')]))", "data.train.pipeline[0].type"),
        ("data = dict(train=dict(pipeline=[dict(type=dict())]))", "data.train.pipeline[0].type"),
        ("data = dict(train=dict(ignore_index=3))", "data.train.ignore_index"),
        ("optimizer = dict(type='Ranger')", "optimizer.type"),
        ("optimizer = dict(paramwise_cfg=dict(custom_keys=dict(stem=dict(lr_mult=2.))))", "optimizer.paramwise_cfg."),
        ("optimizer_config = dict(grad_clip=dict(max_norm=1, norm_type=1))", "optimizer_config.grad_clip.norm_type"),
        ("optimizer_config = dict(type='GradientCumulativeOptimizerHook', cumulative_iters=2)", "optimizer_config."),
        ("lr_config = dict(_delete_=True, policy='CyclicLr', target_ratio=3)", "lr_config.policy"),
        ("lr_config = dict(warmup='exp', warmup_iters=9)", "lr_config.warmup"),
        ("runner = dict(type='MyRunner')", "runner.type"),
        ("evaluation = dict(metric='mPrecision')", "evaluation.metric"),
    ],
)
def test_what_has_no_equivalent_is_named_by_the_key_of_the_file(tmp_path: Path, changes: str, path: str) -> None:
    lost = [note.path for note in converted(tmp_path, changes).lost]
    assert any(one.startswith(path) for one in lost)


def test_lists_of_folders_are_several_data_sets(tmp_path: Path) -> None:
    changes = (
        "voc = dict(type='PascalVOCDataset', data_root='data/VOCdevkit/VOC2012', img_dir='JPEGImages')\n"
        "data = dict(train=dict(**voc, ann_dir=['SegmentationClass', 'SegmentationClassAug'],"
        " split=['ImageSets/Segmentation/train.txt', 'ImageSets/Segmentation/aug.txt']),"
        " val=dict(**voc, ann_dir='SegmentationClass', split='ImageSets/Segmentation/val.txt'))"
    )
    found = converted(tmp_path, changes).values["dataset"]
    assert (found["train"]["name"], found["train"]["split"]) == ("pascal_aug", "trainaug")
    assert (found["val"]["name"], found["val"]["split"]) == ("pascal_voc", "val")


def test_a_repeated_data_set_of_folders(tmp_path: Path) -> None:
    changes = (
        "data = dict(train=dict(_delete_=True, type='RepeatDataset', times=9, dataset=dict(type='CustomDataset',"
        " data_root='data/fields', img_dir='images', ann_dir='labels', classes=('soil', 'crop'), pipeline=[])))"
    )
    train = converted(tmp_path, changes).values["dataset"]["train"]
    assert train == {
        "name": "folder",
        "images": "fields/images",
        "masks": "fields/labels",
        "classes": ["soil", "crop"],
    }


def test_half_precision_clipping_epochs_and_steps(tmp_path: Path) -> None:
    changes = """
fp16 = dict(loss_scale='dynamic')
optimizer_config = dict(grad_clip=dict(max_norm=2, norm_type=2))
runner = dict(_delete_=True, type='EpochBasedRunner', max_epochs=7)
lr_config = dict(_delete_=True, policy='step', step=3, gamma=0.2)
evaluation = dict(interval=2, save_best='mIoU')
seed = 5
"""
    found = converted(tmp_path, changes).values
    assert (found["num_epochs"], found["val_every_epochs"], found["seed"]) == (7, 2, 5)
    assert (found["runtime"]["precision"], found["optimizer"]["clip_norm"]) == ("float16", 2.0)
    assert found["optimizer"]["schedule"] == {"name": "multi_step", "milestones": [3, 6], "factor": 0.2}
    assert found["hooks"][0]["best"] == "mean_iou"


def test_hooks_of_loggers_become_trackers(tmp_path: Path) -> None:
    changes = """
log_config = dict(interval=20, hooks=[
    dict(type='TextLoggerHook', by_epoch=False), dict(type='TensorboardLoggerHook', log_dir='x'),
    dict(type='MMSegWandbHook', init_kwargs={'project': 'roads'}, num_eval_images=100)])
"""
    assert converted(tmp_path, changes).values["hooks"][1:] == [
        {"name": "log", "every": 20},
        "progress_bar",
        {"name": "tensorboard", "every": 20},
        {"name": "wandb", "project": "roads", "every": 20},
    ]


def test_learning_rates_are_those_of_mmcv(tmp_path: Path) -> None:
    changes = "lr_config = dict(warmup='linear', warmup_iters=40, warmup_ratio=1e-3)"
    values: dict[str, Any] = converted(tmp_path, changes).values
    layer = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(values["optimizer"], layer.named_parameters(), RunLength(400, 400))
    for step in range(400):
        optimizer.set_progress(step / 400)
        wanted = (0.01 - 1e-4) * (1 - step / 400) ** 0.9 + 1e-4
        if step < 40:
            wanted *= 1 - (1 - step / 40) * (1 - 1e-3)
        assert optimizer.current_lr == pytest.approx(wanted, rel=1e-9 if step >= 40 else 0.1, abs=1e-9)


def test_a_key_that_is_nearly_one_of_theirs_is_named(tmp_path: Path) -> None:
    path = mmseg_files.write(tmp_path)
    schedule = tmp_path / "_base_" / "schedule.py"
    schedule.write_text(schedule.read_text().replace("optim_wrapper =", "optim_wraper ="))
    assert "optim_wraper" in [note.path for note in convert_file(path).lost]

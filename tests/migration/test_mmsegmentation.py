"""mmsegmentation's configs become task configs with its numbers, and what has no equivalent is named by its path."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from migration import mmseg_files

from classyseg import TASKS, parse_config
from classyseg.errors import ConfigError
from classyseg.migration import Converted, convert_file
from classyseg.models import build_model, load_weights
from classyseg.optim import build_optimizer
from classyseg.structures import RunLength

GOLDENS = Path(__file__).parents[1] / "goldens"
PARAMETERS = {"fcn": 49_497_734, "psp": 48_975_494, "aspp": 68_113_030, "sep_aspp": 43_589_878, "enc": 35_891_961}
"""Of mmsegmentation 1.2.2's models with these heads, counted there."""


def converted(folder: Path, head: str = "psp", changes: str = "") -> Converted:
    found = convert_file(mmseg_files.write(folder, head, changes))
    config = TASKS.validate(parse_config(found.text(), source="new"))
    config.component.check(config)  # type: ignore[attr-defined]
    return found


def lost(folder: Path, changes: str, head: str = "psp") -> list[str]:
    return [note.path for note in convert_file(mmseg_files.write(folder, head, changes)).lost]


@pytest.mark.parametrize("head", PARAMETERS)
def test_a_converted_model_has_as_many_parameters_as_in_mmsegmentation(tmp_path: Path, head: str) -> None:
    values = converted(tmp_path, head).values["model"]
    with torch.device("meta"):
        model = build_model({**values, "weights": None}, num_classes=19)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[head]


def test_numbers_of_the_data_are_carried_over(tmp_path: Path) -> None:
    found = converted(tmp_path).values
    assert found["batch_size"] == 8, "2 images on each of the 4 GPUs that the file's name tells"
    assert (found["num_steps"], found["val_every_steps"], found["runtime"]["workers"]) == (400, 40, 3)
    assert found["normalize"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    crop, flip, _ = found["dataset"]["train"]["transforms"]
    assert crop["size"] == [96, 128]
    assert (crop["shorter_side"], crop["longer_side"]) == (128, 256)
    assert crop["scale"] == [0.5, 2.0]
    assert crop["max_class_fraction"] == 0.75
    assert flip["probability"] == 0.5
    assert found["dataset"]["val"]["root"] == "streets"
    assert "root" not in found["dataset"]["train"]
    assert found["protocol"] == {"name": "sliding_window", "size": [96, 128], "stride": [64, 85]}
    assert found["loss"] == {"name": "cross_entropy", "head_weights": {"main": 1.0, "aux": 0.4}}


def learning_rates(values: dict[str, Any], steps: int) -> list[float]:
    layer = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(values["optimizer"], layer.named_parameters(), RunLength(steps, steps))
    found = []
    for step in range(steps):
        optimizer.set_progress(step / steps)
        found.append(optimizer.current_lr)
    return found


def test_learning_rates_are_those_of_mmengine(tmp_path: Path) -> None:
    warmup = (
        "param_scheduler = [dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=100),"
        " dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=100, end=400, by_epoch=False)]"
    )
    # mmengine's PolyLR reaches its end in its last step, ours would in the one after that: hence the tolerance.
    for changes, begin in (("", 0), (warmup, 100)):
        found = learning_rates(converted(tmp_path, changes=changes).values, 400)
        wanted = [0.01 * (1e-6 + (1 - 1e-6) * step / 99) for step in range(begin)]
        wanted += [(0.01 - 1e-4) * (1 - i / (399 - begin)) ** 0.9 + 1e-4 for i in range(400 - begin)]
        assert found == pytest.approx(wanted, abs=0.01 * 1.2e-2)
        assert found[begin] == pytest.approx(0.01, rel=1e-6)


def test_an_adamw_with_groups_amp_and_epochs(tmp_path: Path) -> None:
    changes = """
optim_wrapper = dict(_delete_=True, type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.99), weight_decay=0.01),
    clip_grad=dict(max_norm=1.5, norm_type=2), paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.)}))
param_scheduler = [dict(type='MultiStepLR', milestones=[3, 5], gamma=0.2, by_epoch=True)]
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=7, val_interval=2)
custom_hooks = [dict(type='EMAHook', momentum=0.01)]
randomness = dict(seed=3)
"""
    found = converted(tmp_path, changes=changes).values
    assert found["optimizer"] == {
        "name": "adamw",
        "lr": 6e-5,
        "betas": [0.9, 0.99],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip_norm": 1.5,
        "groups": [{"match": "heads.*", "lr_factor": 10.0}],
        "schedule": {"name": "multi_step", "milestones": [3, 5], "factor": 0.2},
    }
    assert (found["num_epochs"], found["val_every_epochs"], found["seed"]) == (7, 2, 3)
    assert found["runtime"]["precision"] == "float16"
    assert {"name": "ema", "decay": 0.99, "warmup": False, "buffers": "copy"} in found["hooks"]


def test_visualisation_backends_become_trackers_and_no_folder_a_store(tmp_path: Path) -> None:
    changes = """
vis_backends = [
    dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend'),
    dict(type='WandbVisBackend', init_kwargs=dict(
        project='roads', name='first', entity='me', tags=['a', 'b'], dir='x')),
    dict(type='MLflowVisBackend', exp_name='roads', run_name='first', tags=dict(a='b'), tracking_uri='./mlruns'),
    dict(type='ClearMLVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer', alpha=0.5)
"""
    found = converted(tmp_path, changes=changes)
    assert found.values["hooks"][3:] == [
        {"name": "tensorboard", "every": 50},
        {"name": "wandb", "project": "roads", "entity": "me", "run_name": "first", "tags": ["a", "b"], "every": 50},
        {"name": "mlflow", "experiment": "roads", "run_name": "first", "tags": {"a": "b"}, "every": 50},
    ]
    assert "visualizer.vis_backends[4].type" in [note.path for note in found.notes]


def test_losses_of_several_kinds_become_a_sum(tmp_path: Path) -> None:
    found = converted(tmp_path, "enc").values["loss"]
    assert found["losses"] == [
        {"name": "cross_entropy", "heads": ["main", "aux"], "head_weights": {"main": 1.0, "aux": 0.4}},
        {"name": "presence", "heads": ["main.se"], "head_weights": {"main.se": 0.2}},
    ]


def test_a_sampler_of_hard_pixels_becomes_a_loss(tmp_path: Path) -> None:
    changes = "model = dict(decode_head=dict(sampler=dict(type='OHEMPixelSampler', thresh=0.6, min_kept=500)))"
    found = converted(tmp_path, changes=changes)
    hard, plain = found.values["loss"]["losses"]
    assert (hard["name"], hard["threshold"], hard["heads"]) == ("ohem_cross_entropy", 0.6, ["main"])
    assert hard["min_kept"] == 500 * 8, "of the whole batch here, of an image there"
    assert (plain["name"], plain["heads"]) == ("cross_entropy", ["aux"])
    assert not found.lost


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ("model = dict(decode_head=dict(chanels=3))", "model.decode_head.chanels"),
        ("model = dict(backbone=dict(norm_eval=True))", "model.backbone.norm_eval"),
        ("model = dict(backbone=dict(style='caffe'))", "model.backbone.style"),
        ("model = dict(backbone=dict(dilations=(1, 1, 2, 8)))", "model.backbone.dilations"),
        (
            "model = dict(decode_head=dict(loss_decode=dict(use_sigmoid=True)))",
            "model.decode_head.loss_decode.use_sigmoid",
        ),
        ("optim_wrapper = dict(accumulative_counts=4)", "optim_wrapper.accumulative_counts"),
        ("optim_wrapper = dict(optimizer=dict(type='Ranger'))", "optim_wrapper.optimizer.type"),
        ("custom_hooks = [dict(type='MyHook')]", "custom_hooks[0].type"),
        ("import os\nmodel = dict(pretrained=os.environ['W'])", "model.pretrained"),
        ("lr = open('x').read()\noptim_wrapper = dict(optimizer=dict(lr=lr))", "optim_wrapper.optimizer.lr"),
        (
            "train_dataloader = dict(dataset=dict(pipeline=[dict(type='Albu', transforms=[])]))",
            "train_dataloader.dataset.pipeline[0].type",
        ),
        ("train_cfg = dict(max_iters='long')", "train_cfg.max_iters"),
        ("model = dict(auxiliary_head=dict(num_convs=None))", "model.auxiliary_head.num_convs"),
    ],
)
def test_what_changes_numbers_and_has_no_equivalent_is_named_by_its_path(
    tmp_path: Path, changes: str, path: str
) -> None:
    assert path in lost(tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("model = dict(backbone=dict(type='MyNet'))", "model.backbone.type"),
        ("model = dict(decode_head=dict(type='MyHead'))", "model.decode_head.type"),
        (
            "train_dataloader = dict(dataset=dict(type='Mine', data_prefix=dict(_delete_=True)))",
            "train_dataloader.dataset",
        ),
        ("model = 3", "model"),
        ("model = open('model.py').read()", r"model: `open\('model\.py'\)\.read\(\)` \(.*line 2\)"),
    ],
)
def test_without_a_model_or_data_there_is_no_config(tmp_path: Path, changes: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        convert_file(mmseg_files.write(tmp_path, "psp", changes))


def test_the_number_of_processes_is_asked_for_where_the_name_does_not_tell_it(tmp_path: Path) -> None:
    path = mmseg_files.write(tmp_path, name="mine.py")
    with pytest.raises(ConfigError, match="--processes"):
        convert_file(path)
    assert convert_file(path, processes=3).values["batch_size"] == 6


def test_an_unknown_data_set_becomes_folders(tmp_path: Path) -> None:
    changes = """
train_dataloader = dict(dataset=dict(type='Fields', data_root='data/fields', reduce_zero_label=True,
    metainfo=dict(classes=('soil', 'crop')), data_prefix=dict(img_path='images', seg_map_path='labels'),
    seg_map_suffix='_mask.png'))
"""
    train = convert_file(mmseg_files.write(tmp_path, "psp", changes)).values["dataset"]["train"]
    assert (train["images"], train["masks"]) == ("fields/images", "fields/labels")
    assert train["classes"] == ["soil", "crop"]
    assert train["mask_suffix"] == "_mask"
    assert train["label_map"] == {0: 255, 1: 0, 2: 1}


def tensor_of(key: str, shape: list[int]) -> torch.Tensor:
    """What stands in a file under `key`: it depends on the key alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    if key.endswith("running_var"):
        return (values + 0.5).float()
    return (values - 0.5 + 0.5 * key.endswith(("bn.weight", "bn1.weight", "bn2.weight"))).float()


@pytest.mark.parametrize("head", mmseg_files.SMALL)
def test_a_checkpoint_of_mmsegmentation_gives_its_logits_in_the_converted_model(tmp_path: Path, head: str) -> None:
    golden = json.loads((GOLDENS / "mmsegmentation_heads.json").read_text())
    shapes = {key: shape for key, shape in golden["fcn"]["shapes"].items() if key.startswith("backbone.")}
    state = {key: tensor_of(key, shape) for key, shape in (shapes | golden[head]["shapes"]).items()}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "iter_40000.pth")
    values = converted(tmp_path, head, mmseg_files.SMALL[head]).values["model"]
    model = build_model({**values, "weights": None}, num_classes=5)
    report = load_weights(model, tmp_path / "iter_40000.pth")
    assert report.library == "mmsegmentation"
    assert not report.new_heads
    image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        logits = model.eval()(image)["main"]
        aux = model.heads["aux"](list(model.extract_features(image).values())[3:4])
    wanted = golden[head]["logits"]
    assert logits.flatten()[::7][: len(wanted)].tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert aux.flatten()[::7][:4].tolist() == pytest.approx(golden[head]["aux"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", mmseg_files.NETWORKS)
def test_a_checkpoint_of_another_network_gives_its_logits(tmp_path: Path, name: str) -> None:
    golden = json.loads((GOLDENS / "mmsegmentation_networks.json").read_text())[name]
    state = {key: tensor_of(key, shape) for key, shape in golden["shapes"].items()}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "iter_40000.pth")
    found = converted(tmp_path, *mmseg_files.NETWORKS[name])
    assert not found.lost
    values = {**found.values["model"], "weights": None}
    model = build_model(values, num_classes=5)
    report = load_weights(model, tmp_path / "iter_40000.pth")
    assert (report.library, report.new_heads) == ("mmsegmentation", ())
    image = torch.linspace(-1, 1, 3 * 96 * 96).view(1, 3, 96, 96)
    with torch.no_grad():
        logits = model.eval()(image)["main"]
        features = model.extract_features(image)
    wanted = golden["logits"]
    scale = max(map(abs, wanted))
    assert logits.flatten()[::7][: len(wanted)].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4 * scale)
    if "aux" in golden:
        with torch.no_grad():
            aux = model.heads["aux"]([features[block] for block in values["heads"]["aux"]["blocks"]])
        assert aux.flatten()[::7][:4].tolist() == pytest.approx(golden["aux"], rel=1e-4, abs=1e-4 * scale)


def test_a_checkpoint_with_another_head_gives_the_backbone_alone(tmp_path: Path) -> None:
    golden = json.loads((GOLDENS / "mmsegmentation_heads.json").read_text())
    torch.save({"state_dict": {k: tensor_of(k, v) for k, v in golden["fcn"]["shapes"].items()}}, tmp_path / "fcn.pth")
    values = converted(tmp_path, "psp", mmseg_files.SMALL["psp"]).values["model"]
    model = build_model({**values, "weights": None}, num_classes=5)
    assert load_weights(model, tmp_path / "fcn.pth").new_heads == ("main", "aux")

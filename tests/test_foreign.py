"""The words of other libraries as overrides: each is answered with our key, or name, and where it goes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from classyseg import foreign
from classyseg.cli.train import checked_config
from classyseg.config import ConfigError
from classyseg.engine.runtime import RuntimeConfig
from classyseg.registry import MODELS, REGISTRIES

QUICKSTART = str(Path(__file__).parents[1] / "task_configs" / "quickstart.yaml")

KEYS = {
    "learning_rate=0.1": "write optimizer.lr.",
    "lr=0.1": "write optimizer.lr.",
    "optimizer.learning_rate=0.1": "did you mean 'lr'?",
    "momentum=0.9": "write optimizer.momentum.",
    "weight_decay=0.1": "write optimizer.weight_decay.",
    "optimizer.clip_grad=1": "did you mean 'clip_norm'?",
    "optimizer.type=SGD": "did you mean 'name'?",
    "lr_scheduler=poly": "write optimizer.schedule, such as",
    "optimizer.lr_scheduler=poly": "did you mean 'schedule'?",
    "optimizer.schedule={name: cosine, T_max: 3}": "a schedule takes the whole run",
    "amp=true": "write runtime.precision:",
    "fp16=true": "write runtime.precision:",
    "runtime.amp=true": "did you mean 'precision'?",
    "gpus=2": "torchrun --nproc-per-node=N",
    "device=cuda:0": "write runtime.device.",
    "num_workers=4": "write runtime.workers.",
    "sync_bn=true": "write runtime.sync_batch_norm.",
    "gradient_accumulation_steps=2": "write runtime.accumulate_steps.",
    "epochs=3": "did you mean 'num_epochs'?",
    "max_epochs=3": "did you mean 'num_epochs'?",
    "total_iters=1000": "did you mean 'num_steps'?",
    "batch_size_per_gpu=2": "did you mean 'batch_size'?",
    "samples_per_gpu=2": "did you mean 'batch_size'?",
    "dataset.train.batch_size=2": "write at the top of the config: batch_size",
    "eval_interval=2": "did you mean 'val_every_epochs'?",
    "resume_from=x": "`--resume`",
    "work_dir=x": "`--output DIR`",
    "load_from=x": "write model.weights.",
    "pretrained=true": "write model.weights.",
    "model.pretrained=true": "did you mean 'weights'?",
    "model.encoder_weights=imagenet": "did you mean 'weights'?",
    "encoder_name=resnet50": "write model.name.",
    "model.backbone=resnet50": "did you mean 'name'?",
    "backbone=resnet50": "write model.name.",
    "decode_head={}": "write model.heads, such as",
    "model.decode_head={}": "did you mean 'heads'?",
    "in_channels=4": "write model.in_channels.",
    "model.heads.main.in_channels=4": "takes its channels from its blocks",
    "model.heads.main.dropout_ratio=0.1": "did you mean 'dropout'?",
    "model.num_classes=4": "those of dataset.train",
    "dice_loss=true": "loss: dice",
    "loss.ignore_index=0": "write dataset.train.ignore_index, of {name: folder}",
    "ignore_label=255": "write dataset.train.ignore_index, of {name: folder}",
    "val={}": "write dataset.val.",
    "dataset.testset={}": "did you mean 'test'?",
    "validation={}": "write dataset.val.",
    "crop_size=[64,64]": "write dataset.train.transforms, such as",
    "dataset.train.img_dir=x": "write dataset.train.images, of {name: folder}",
    "dataset.train.ann_dir=x": "write dataset.train.masks, of {name: folder}",
    "dataset.train.reduce_zero_label=true": "dataset.train.label_map, of {name: folder}",
    "SOLVER.BASE_LR=0.1": "for 'BASE_LR' write optimizer.lr.",
    "DATALOADER={NUM_WORKERS: 2, SAMPLER: x}": "for 'NUM_WORKERS' write runtime.workers.",
    "trainer={max_epochs: 3, devices: 2}": "for 'max_epochs' write num_epochs; 'devices': several GPUs are `torchrun",
    "train_cfg.max_iters=80000": "for 'max_iters' write num_steps",
    "optimzer={name: sgd, lr: 0.1}": "did you mean 'optimizer'?",
    "modle={name: resnet18, weights: x}": "did you mean 'model'?",
    "INPUT.CROP.SIZE=[2, 2]": "for 'CROP' write dataset.train.transforms",
    "eval_strategy=steps": "did you mean 'val_every_epochs'?",
    "save_total_limit=2": "Write hooks, such as [{name: checkpoint",
    "metric_for_best_model=miou": "Write hooks, such as [{name: checkpoint",
    "logging_steps=10": "Write hooks, such as [{name: log",
    "report_to=wandb": "Write hooks, such as [tensorboard], [wandb]",
    "use_wandb=true": "Write hooks, such as [{name: wandb",
    "tensorboard=true": "Write hooks, such as [tensorboard]",
    "loggers=[]": "Write hooks, such as [{name: log",
    "lr_scheduler_type=cosine": "write optimizer.schedule, such as",
    "adam_epsilon=1e-8": "write optimizer.eps, of {name: adamw}.",
    "num_nodes=2": "torchrun --nproc-per-node=N",
    "steps_per_epoch=100": "an epoch takes every image",
    "fast_dev_run=true": "`classyseg config check CONFIG`",
    "start_epoch=3": "`--resume`",
    "exist_ok=true": "`--overwrite`",
    "early_stopping=true": "{name: early_stopping, best: mean_iou",
    "ema_decay=0.99": "{name: ema, decay: 0.999}",
    "mode=max": "write hooks.best_is, of {name: checkpoint}.",
    "remode=pixel": "write dataset.train.transforms, such as [random_erasing].",
    "fliplr=0.5": "write dataset.train.transforms, such as [horizontal_flip].",
    "mixup=0.1": "write dataset.train.transforms, such as [{name: mix_up, alpha: 0.2}], or mixing",
    "lrf=0.01": "write optimizer.schedule.end_factor",
    "nc=3": "those of dataset.train",
    "id2label={}": "write dataset.train.classes, of {name: folder}",
    "cudnn_benchmark=true": "unless runtime.deterministic",
    "validation_split=0.1": "dataset.train and dataset.val are two data sets",
    "tta=true": "measured whole, and once",
    "activation=softmax": "heads give logits",
    "loss.from_logits=true": "heads give logits",
    "model.test_cfg={mode: slide}": "measured whole, and once",
    "model.dilations=[1, 1, 2, 4]": "did you mean 'output_stride'?",
    "model.dropout=0.1": "write model.heads.main.dropout.",
    "dataset.train.split_file=x": "write dataset.train.list, of {name: folder}",
    "dataset.train.img_suffix=.jpg": "belong together by their name",
    "dataset.train.times=3": "takes every image of the data set once",
}
NAMES = {
    "loss=CrossEntropyLoss": "did you mean 'cross_entropy'?",
    "loss=dice_loss": "did you mean 'dice'?",
    "optimizer.name=SGD": "did you mean 'sgd'?",
    "optimizer.name=AdamW": "did you mean 'adamw'?",
    "optimizer.schedule=PolyLR": "did you mean 'polynomial'?",
    "optimizer.schedule=CosineAnnealingLR": "did you mean 'cosine'?",
    "meters=[mIoU]": "did you mean 'mean_iou'?",
    "meters=[TopK]": "did you mean 'accuracy'?",
    "model.norm.name=SyncBN": "did you mean 'batch'?",
    "model.norm=BatchNorm": "such as {name: batch}",
    "model.name=segformer_b2": "did you mean 'mit_b2'?",
    "model.name=MixVisionTransformer": "did you mean 'mix_transformer'?",
    "model.name=vit_base_patch16_224": "did you mean 'vit_b_16'?",
    "model.name=deeplabv3plus_r50": "{name: resnet50, heads: {main: {name: deeplabv3plus, blocks: [stage1, stage4]}}}",
    "model.name=unet": "'unet' is a head; write model: {name: resnet34, heads: {main: {name: unet, blocks: [stage1,",
    "model.name=swin_tiny_patch4_window7_224": "did you mean 'swin_t'?",
    "model.name=tf_efficientnet-b0": "did you mean 'efficientnet_b0'?",
    "model.heads.main.name=FCNHead": "did you mean 'fcn'?",
    "model.heads.main.name=resnet50": "it is the name of a model",
    "dataset.train.name=CityscapesDataset": "did you mean 'cityscapes'?",
    "loss=torch.nn.CrossEntropyLoss": "did you mean 'cross_entropy'?",
    "loss=smp.losses.DiceLoss": "did you mean 'dice'?",
    "loss=categorical_crossentropy": "did you mean 'cross_entropy'?",
    "optimizer.name=torch.optim.AdamW": "did you mean 'adamw'?",
    "optimizer.name=adamw_torch": "did you mean 'adamw'?",
    "optimizer.schedule=WarmupPolyLR": "did you mean 'polynomial'?",
    "optimizer.schedule=LinearWarmupCosineAnnealingLR": "did you mean 'cosine'?",
    "meters=[MulticlassJaccardIndex]": "did you mean 'mean_iou'?",
    "model.name=torchvision://resnet50": "did you mean 'resnet50'?",
    "model.name=open-mmlab://resnet50_v1c": "did you mean 'resnet50s'?",
    "model.name=microsoft/resnet-50": "did you mean 'resnet50'?",
    "model.name=timm/resnet50.a1_in1k": "did you mean 'resnet50'?",
    "model.name=convnext_tiny.fb_in22k": "did you mean 'convnext_tiny'?",
    "model.name=nvidia/mit-b0": "did you mean 'mit_b0'?",
    "model.name=build_resnet_backbone": "did you mean 'resnet'?",
    "model.name=nnUNet": "'unet' is a head",
    "model.heads.main.name=UnetDecoder": "did you mean 'unet'?",
    "model.heads.main.name=SemSegFPNHead": "did you mean 'semantic_fpn'?",
    "dataset.train.transforms=[LoadImageFromFile]": "made tensors without being told",
    "dataset.train.transforms=[ResizeStepScaling]": "did you mean 'random_scale_crop'?",
    "hooks=[EarlyStopping]": "did you mean 'early_stopping'?",
    "hooks=[WandbLogger]": "did you mean 'wandb'?",
    "hooks=[TensorboardLoggerHook]": "did you mean 'tensorboard'?",
    "hooks=[MLFlowLogger]": "did you mean 'mlflow'?",
    "hooks=[CSVLogger]": "did you mean 'csv'?",
    "hooks=[LearningRateMonitor]": "metrics.jsonl",
}
UNANSWERED = ["push_to_hub=true", "size=[64, 64]", "hooks=[mosaic]", "optimizer.name=Adadelta", "drop_path_rate=0.1"]
"""Words for what we do not have: the list of what there is, and no guess."""


def message_of(override: str) -> str:
    with pytest.raises(ConfigError) as caught:
        checked_config(QUICKSTART, [override])
    return str(caught.value)


@pytest.mark.parametrize(("override", "hint"), [*KEYS.items(), *NAMES.items()])
def test_a_word_of_another_library_is_answered_with_ours(override: str, hint: str) -> None:
    assert hint in message_of(override)


@pytest.mark.parametrize("override", UNANSWERED)
def test_a_word_for_what_we_lack_gets_no_guess(override: str) -> None:
    message = message_of(override)
    assert "did you mean" not in message
    assert "write " not in message
    assert "Known: " in message


def exists(path: str) -> bool:
    """Whether some component has the key that a path of a task config names."""
    places = sorted(foreign.PLACES.items(), key=lambda item: -len(item[1]))
    path = (
        path.replace("dataset.val", "dataset.train")
        .replace("dataset.test", "dataset.train")
        .replace(".NAME.", ".main.")
    )
    for kind, place in places:
        if place and not path.startswith(f"{place}."):
            continue
        key = path.removeprefix(f"{place}.") if place else path
        if kind in REGISTRIES:
            registry = REGISTRIES[kind]
            if any(key in registry.config_model(name, placed=True).model_fields for name in registry.names()):
                return True
        elif kind == "runtime":
            return key in RuntimeConfig.model_fields
        elif kind == "dataset" and key in ("train", "val", "test"):
            return True
    return False


def test_every_answer_is_a_key_that_exists() -> None:
    answers = {answer for table in (foreign.KEYS, *foreign.AT.values()) for answer in table.values()}
    paths = {re.split(r"[,:; ]", answer, maxsplit=1)[0] for answer in answers} - {"nothing"}
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not exists(path)] == []


def test_every_name_that_is_answered_is_registered() -> None:
    for kind, table in foreign.NAMES.items():
        names = [name for name in table.values() if not name.startswith(foreign.NOTHING)]
        assert [name for name in names if name not in REGISTRIES[kind]] == []
    families = [family.split()[0] for _, family in foreign.FAMILIES]
    assert [name for name in families if name not in MODELS] == []


OF_PIXELS = (
    "fcn",
    "psp",
    "deeplabv3",
    "deeplabv3plus",
    "unet",
    "upernet",
    "segformer",
    "semantic_fpn",
    "fcfpn",
    "lraspp",
)


@pytest.mark.parametrize("head", [*OF_PIXELS, "jpu", "ocr", "atten"])
def test_what_is_written_for_a_head_in_a_models_place_is_a_config(head: str) -> None:
    written = re.search(r"write model: (\{.*?\}\}\})", message_of(f"model.name={head}"))
    assert written is not None
    checked_config(QUICKSTART, [f"model={written[1]}"])

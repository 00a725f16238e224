"""Small configs in the form of mmsegmentation's: a model, data and a schedule as bases, and a config over them."""

from __future__ import annotations

from pathlib import Path

MODEL = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5, 102, 76.5], std=[51, 51.0, 25.5], bgr_to_rgb=True,
        pad_val=0, seg_pad_val=255, size=(96, 128)),
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c', depth=50, out_indices=(0, 1, 2, 3), dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg, norm_eval=False, style='pytorch', contract_dilation=True),
    decode_head=dict(
        in_channels=2048, in_index=3, channels=512, dropout_ratio=0.1, num_classes=19, norm_cfg=norm_cfg,
        align_corners=False, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0), {head}),
    auxiliary_head=dict(
        type='FCNHead', in_channels=1024, in_index=2, channels=256, num_convs=1, concat_input=False,
        dropout_ratio=0.1, num_classes=19, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(96, 128), stride=(64, 85)))
"""
DATA = """
crop = (96, 128)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(256, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=3, persistent_workers=True, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CityscapesDataset', data_root='data/cityscapes/',
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'), pipeline=pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=3, persistent_workers=True, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CityscapesDataset', data_root='data/streets/',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=[
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=(256, 128), keep_ratio=True),
            dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""
SCHEDULE = """
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=400, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=400, val_interval=40)
default_hooks = dict(
    timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=80))
default_scope = 'mmseg'
"""
HEADS = {
    "fcn": "type='FCNHead', num_convs=2, concat_input=True",
    "psp": "type='PSPHead', pool_scales=(1, 2, 3, 6)",
    "aspp": "type='ASPPHead', dilations=(1, 12, 24, 36)",
    "sep_aspp": "type='DepthwiseSeparableASPPHead', dilations=(1, 12, 24, 36), c1_in_channels=256, c1_channels=48",
    "enc": "type='EncHead', num_codes=32, use_se_loss=True, add_lateral=False, "
    "loss_se_decode=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.2)",
}

HEADS["uper"] = "type='UPerHead', pool_scales=(1, 2, 3)"
HEADS |= {
    "nl": "type='NLHead', reduction=2, use_scale=True, mode='embedded_gaussian'",
    "dnl": "type='DNLHead', reduction=2, use_scale=True, mode='embedded_gaussian'",
    "gc": "type='GCHead', ratio=1 / 4., pooling_type='att', fusion_types=('channel_add', )",
    "cc": "type='CCHead', recurrence=2",
}
HEADS["segformer"] = "type='SegformerHead'"
_SMALL = """
model = dict(
    backbone=dict(depth=18, dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2)),
    decode_head=dict(channels=8, num_classes=5{more}), auxiliary_head=dict(in_channels=256, channels=8, num_classes=5))
"""
SMALL = {
    "fcn": _SMALL.replace("{more}", ", in_channels=512"),
    "psp": _SMALL.replace("{more}", ", in_channels=512"),
    "aspp": _SMALL.replace("{more}", ", in_channels=512, dilations=(1, 2, 3)"),
    "sep_aspp": _SMALL.replace("{more}", ", in_channels=512, dilations=(1, 2, 3), c1_in_channels=64, c1_channels=4"),
    "enc": _SMALL.replace("{more}", ", in_channels=[128, 256, 512], in_index=[1, 2, 3], num_codes=4"),
    "uper": _SMALL.replace("{more}", ", in_channels=[64, 128, 256, 512], in_index=[0, 1, 2, 3]"),
}
"""Changes for small models of each head, on a ResNet-18 at stride 32."""


def write(folder: Path, head: str = "psp", changes: str = "", name: str = "net_4xb2-400.py") -> Path:
    """A config of `HEADS[head]` in `folder`, with `changes`, lines of Python, over its bases."""
    bases = folder / "_base_"
    bases.mkdir(exist_ok=True)
    (bases / "model.py").write_text(MODEL.replace("{head}", HEADS[head]))
    (bases / "data.py").write_text(DATA)
    (bases / "schedule.py").write_text(SCHEDULE)
    path = folder / name
    path.write_text(f"_base_ = ['_base_/model.py', '_base_/data.py', '_base_/schedule.py']\n{changes}\n")
    return path


NETWORKS = {
    "segformer": (
        "segformer",
        """
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True, type='MixVisionTransformer', in_channels=3, embed_dims=8, num_stages=4, num_layers=[1, 2, 1, 1],
        num_heads=[1, 2, 5, 8], patch_sizes=[7, 3, 3, 3], sr_ratios=[8, 4, 2, 1], out_indices=(0, 1, 2, 3), mlp_ratio=4,
        qkv_bias=True, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.1),
    decode_head=dict(in_channels=[8, 16, 40, 64], in_index=[0, 1, 2, 3], channels=8, num_classes=5),
    auxiliary_head=dict(in_channels=40, channels=8, num_classes=5))
""",
    ),
    "swin": (
        "uper",
        """
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True, type='SwinTransformer', pretrain_img_size=224, embed_dims=8, patch_size=4, window_size=2,
        mlp_ratio=4, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], strides=(4, 2, 2, 2), out_indices=(0, 1, 2, 3),
        qkv_bias=True, qk_scale=None, patch_norm=True, drop_rate=0., attn_drop_rate=0., drop_path_rate=0.3,
        use_abs_pos_embed=False, act_cfg=dict(type='GELU'), norm_cfg=dict(type='LN', requires_grad=True)),
    decode_head=dict(in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], channels=8, num_classes=5),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=5))
""",
    ),
    "resnet18_dilated": (
        "fcn",
        """
model = dict(
    backbone=dict(depth=18),
    decode_head=dict(in_channels=512, channels=8, num_classes=5),
    auxiliary_head=dict(in_channels=256, channels=8, num_classes=5))
""",
    ),
}
NETWORKS["unet"] = (
    "fcn",
    """
norm = dict(type='BN')
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True, type='UNet', in_channels=3, base_channels=4, num_stages=5, strides=(1, 1, 1, 1, 1),
        enc_num_convs=(2, 2, 2, 2, 2), dec_num_convs=(2, 2, 2, 2), downsamples=(True, True, True, True),
        enc_dilations=(1, 1, 1, 1, 1), dec_dilations=(1, 1, 1, 1), with_cp=False, conv_cfg=None, norm_cfg=norm,
        act_cfg=dict(type='ReLU'), upsample_cfg=dict(type='InterpConv'), norm_eval=False),
    decode_head=dict(in_channels=4, in_index=4, channels=8, num_classes=5, num_convs=1, concat_input=False),
    auxiliary_head=dict(in_channels=8, in_index=3, channels=8, num_classes=5))
""",
)
NETWORKS |= {
    head: (
        head,
        NETWORKS["segformer"][1].replace(
            "[8, 16, 40, 64], in_index=[0, 1, 2, 3], channels=8", "16, in_index=1, channels=16"
        ),
    )
    for head in ("nl", "dnl", "gc", "cc")
}
"""Small networks: the name of a head, and changes of the config. Their backbones differ from those of `SMALL`."""

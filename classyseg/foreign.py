"""What other libraries call our keys and components, and what to write here instead: tables and how they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from classyseg.config import same_word, squashed

PLACES = {
    "tasks": "",
    "dataset": "dataset",
    "datasets": "dataset.train",
    "transforms": "dataset.train.transforms",
    "models": "model",
    "heads": "model.heads.main",
    "losses": "loss",
    "meters": "meters",
    "optimizers": "optimizer",
    "schedulers": "optimizer.schedule",
    "hooks": "hooks",
    "runtime": "runtime",
}
"""Where each kind of record stands in a task config."""

_TRANSFORMS = "dataset.train.transforms, such as [{name: random_scale_crop, size: [512, 512]}, {name: horizontal_flip}]"
_HEADS = "model.heads, such as {main: {name: fcn, blocks: [stage4]}}"
_CLASSES = "nothing: the classes are those of dataset.train"
_PROCESSES = (
    "nothing: several GPUs are `torchrun --nproc-per-node=N classy_train.py`, and runtime.device names a single one"
)
_OUTPUT = "nothing: the folder of a run is `--output DIR` of the command"
_RESUME = "nothing: a run continues with `--resume` of the command"
_ROOT = "nothing: the root of data sets is `--data-root DIR` of the command, or $CLASSYSEG_DATA"
_CHECKPOINT = "hooks, such as [{name: checkpoint, every_epochs: 1, best: mean_iou}]"
_LOG = "hooks, such as [{name: log, every: 50}]"
_FOLDER_IMAGES = "dataset.train.images, of {name: folder}"
_FOLDER_MASKS = "dataset.train.masks, of {name: folder}"
_IGNORE = "dataset.train.ignore_index, of {name: folder}; other data sets know theirs"
_EPOCHS = "num_epochs: a run is counted in epochs, of (number of images) / batch_size steps each"
_BATCH = "batch_size, of all processes together"
_GROUPS = "optimizer.groups, such as [{match: heads.*, lr_factor: 10}]"
_SCHEDULE = "optimizer.schedule, such as {name: polynomial, power: 0.9}"

KEYS: dict[str, str] = {
    # the run
    "epochs max_epochs n_epochs nb_epochs total_epochs num_train_epochs nepochs epoch n_epoch": "num_epochs",
    "total_iters max_iters iterations iters num_iters num_iterations num_steps max_steps train_steps": _EPOCHS,
    "batch bs train_batch_size batch_size_per_gpu samples_per_gpu imgs_per_gpu per_gpu_batch_size "
    "per_device_train_batch_size batch_size_train images_per_gpu ims_per_batch batch_size": _BATCH,
    "val_batch_size eval_batch_size test_batch_size batch_size_val batch_size_test "
    "per_device_eval_batch_size": "runtime.eval_batch_size",
    "random_seed manual_seed rng_seed seed_everything seed": "seed",
    "eval_interval val_interval check_val_every_n_epoch eval_every val_every val_freq eval_freq eval_period "
    "evaluation_interval val_every_epochs test_every_epochs": "test_every_epochs",
    "work_dir workdir output_dir save_dir out_dir exp_dir log_dir logdir save_path output exp_name run_name "
    "checkpoint_dir ckpt_dir": _OUTPUT,
    "resume resume_from auto_resume resume_from_checkpoint": _RESUME,
    # the machine
    "amp fp16 bf16 use_amp use_fp16 mixed_precision half autocast amp_dtype precision dtype half_precision": (
        "runtime.precision: float32, bfloat16 or float16"
    ),
    "gpus num_gpus n_gpu n_gpus gpu gpu_ids devices world_size accelerator strategy local_rank dist_backend "
    "launcher distributed": _PROCESSES,
    "device cuda use_cuda": "runtime.device",
    "num_workers workers_per_gpu n_workers dataloader_num_workers nworkers num_worker workers": "runtime.workers",
    "num_threads n_threads cpu_threads threads": "runtime.threads",
    "sync_bn syncbn use_sync_bn sync_batchnorm sync_batch_norm convert_sync_batchnorm": "runtime.sync_batch_norm",
    "torch_compile use_compile compile": "runtime.compile",
    "deterministic cudnn_deterministic use_deterministic_algorithms": "runtime.deterministic",
    "channels_last memory_format": "runtime.channels_last",
    "accumulate_grad_batches gradient_accumulation_steps gradient_accumulation accum_iter accum_steps grad_accum "
    "grad_accum_steps accumulation_steps accumulate accumulative_counts accumulate_steps": "runtime.accumulate_steps",
    # data
    "data datasets dataset_train": "dataset, such as {train: {name: folder, ...}, test: {name: folder, ...}}",
    "train train_dataset train_dataloader train_data train_loader trainset train_set": "dataset.train",
    "val valid validation eval val_dataset val_dataloader valid_dataset validation_dataset val_data val_loader "
    "test_dataset test_dataloader valset testset validation_data test": "dataset.test",
    "data_root dataroot data_path data_dir dataset_dir dataset_root datadir": _ROOT,
    "transform augmentation augmentations augment aug augs pipeline train_pipeline train_transform "
    "train_transforms transforms": "dataset.train.transforms",
    "test_pipeline val_pipeline val_transform val_transforms test_transforms": "dataset.test.transforms",
    "crop_size cropsize image_size img_size input_size imgsz train_size img_scale crop base_size": _TRANSFORMS,
    "img_dir image_dir images_dir img_path image_path image_root img_root images_path imgs img_prefix "
    "images": _FOLDER_IMAGES,
    "ann_dir mask_dir masks_dir label_dir labels_dir gt_dir seg_dir ann_file ann_path annotations annotation_dir "
    "mask_path labels_path seg_map_path seg_prefix seg_map_dir masks": _FOLDER_MASKS,
    "seg_map_suffix label_suffix ann_suffix mask_suffix": "dataset.train.mask_suffix, of {name: folder}",
    "reduce_zero_label": (
        "dataset.train.label_map, of {name: folder}, such as {0: 255, 1: 0, 2: 1}; ade20k does so itself"
    ),
    "class_names class_list names labels metainfo classes": "dataset.train.classes, of {name: folder}",
    "num_classes n_classes nclass nclasses num_class number_of_classes classes_num": _CLASSES,
    "ignore_label ignore_value void_label ignore_idx ignore_lb ignore_id ignore_index": _IGNORE,
    "mean std img_norm_cfg norm_mean norm_std img_mean img_std image_mean image_std pixel_mean pixel_std "
    "data_preprocessor": "normalize, such as {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}",
    "cache cache_images": "dataset.train.cache_samples",
    # model
    "arch architecture model_name encoder encoder_name backbone net network": "model.name",
    "pretrained pretrained_backbone pretrain encoder_weights weights_backbone init_cfg load_from weights "
    "pretrained_weights init_weights checkpoint_path finetune": "model.weights",
    "decode_head decoder decoder_head auxiliary_head aux_head aux_heads aux_params segmentation_head neck head "
    "heads decoder_channels decoder_name": _HEADS,
    "in_channel in_chans in_ch input_channels n_channels num_channels input_nc in_channels": "model.in_channels",
    "encoder_output_stride os outstride replace_stride_with_dilation output_stride": "model.output_stride",
    "freeze freeze_backbone freeze_encoder frozen_stages frozen": "model.frozen",
    "freeze_bn norm_eval bn_frozen frozen_bn freeze_norm frozen_norm": "model.frozen_norm",
    "gradient_checkpointing with_cp use_checkpoint grad_checkpointing grad_checkpoint "
    "activation_checkpointing": "model.activation_checkpointing",
    "norm_cfg norm_layer batch_norm batchnorm bn use_bn use_batchnorm normalization": (
        "model.norm, such as {name: group}; heads have their own"
    ),
    # loss
    "criterion loss_fn loss_func loss_function losses loss_name loss_type objective": "loss",
    "dice_loss use_dice": "loss: dice, alone or in {name: sum_arbitrary, losses: [cross_entropy, dice]}",
    "ce_loss loss_ce cross_entropy_loss": "loss: cross_entropy",
    "focal_loss use_focal": "loss: focal",
    "loss_decode": "loss",
    "aux_weight aux_loss aux_loss_weight auxiliary_weight aux_lambda auxiliary_loss_weight deep_supervision": (
        "loss.head_weights, such as {main: 1.0, aux: 0.4}"
    ),
    "class_weight weight ce_weight class_weights": "loss.class_weights",
    "label_smooth smoothing label_smoothing": "loss: label_smoothing",
    # optimizer
    "optim optimiser optim_wrapper opt optimizer_name optimizer_cfg": "optimizer",
    "learning_rate base_lr lr0 initial_lr init_lr lr_init start_lr lr max_lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "wd weight_decay l2 l2_reg decay weightdecay": "optimizer.weight_decay",
    "beta1 adam_betas betas": "optimizer.betas, of {name: adamw}",
    "grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val gradient_clipping grad_norm_clip "
    "clip_gradients clip_norm": "optimizer.clip_norm",
    "paramwise_cfg param_groups parameter_groups lr_mult backbone_lr_mult backbone_lr head_lr head_lr_mult "
    "layer_decay custom_keys": _GROUPS,
    "scheduler lr_scheduler lr_policy lr_config lr_schedule param_scheduler sched schedule policy lr_decay": _SCHEDULE,
    "warmup warmup_iters warmup_steps warmup_epoch num_warmup_steps warmup_ep warm_up "
    "warmup_epochs": "optimizer.schedule.warmup_epochs",
    "warmup_ratio start_factor warmup_start_factor warmup_factor": "optimizer.schedule.warmup_factor",
    "lr_power poly_power power": "optimizer.schedule.power, of {name: polynomial}",
    "min_lr eta_min lr_min end_lr final_lr": "optimizer.schedule.end_factor, of {name: cosine}: a share of the lr",
    "lr_steps step_epochs milestones": "optimizer.schedule.milestones, of {name: multi_step}",
    "t_max t_initial": "nothing: a schedule takes the whole run",
    # measuring, hooks
    "metric metrics eval_metric eval_metrics evaluation evaluator val_evaluator test_evaluator": "meters",
    "callbacks default_hooks custom_hooks hook": "hooks",
    "checkpoint checkpoint_config ckpt save_interval save_freq save_every save_best monitor save_top_k "
    "checkpoint_interval keep_checkpoint_max max_keep_ckpts": _CHECKPOINT,
    "log_config log_interval log_every_n_steps print_freq log_freq log_every logger loggers": _LOG,
}
"""What to write instead of a key, wherever it stands: a path of a task config, and what there is to say of it."""

AT: dict[str, dict[str, str]] = {
    "tasks": {"type task": "name"},
    "models": {
        "type model": "model.name",
        "stride dilated": "model.output_stride",
        "num_classes classes n_classes": _CLASSES,
        "depth": "model.name, such as resnet50 for a ResNet of depth 50",
        "out_indices": "model.heads.NAME.blocks: a head names the blocks that it reads",
        "norm_layer norm_cfg batch_norm bn norm_type": "model.norm, such as {name: group}",
        "img_size input_size": "model.image_size",
        "drop_path drop_path_rate": "model.stochastic_depth",
        "checkpoint": "model.weights",
    },
    "heads": {
        "type head": "model.heads.main.name",
        "in_index in_features input_features feature_layers in_layers layers inputs from": "model.heads.main.blocks",
        "in_channels input_channels in_channel": "nothing: a head takes its channels from its blocks",
        "num_classes classes n_classes out_channels": _CLASSES,
        "num_channels hidden_channels embed_dim mid_channels decoder_channels": "model.heads.main.channels",
        "dropout_ratio drop_rate dropout_p drop dropout_rate": "model.heads.main.dropout",
        "dilations atrous_rates aspp_dilations dilation": "model.heads.main.rates",
        "pool_scales pool_sizes pool_bins sizes": "model.heads.main.bins",
        "norm_cfg norm_layer batch_norm bn norm_type": "model.heads.main.norm, such as {name: group}",
        "loss_decode loss": "loss, and loss.head_weights for each head",
        "loss_weight weight": "loss.head_weights, such as {main: 1.0, aux: 0.4}",
        "auxiliary aux is_aux": "model.heads.main.train_only",
    },
    "losses": {
        "type loss": "loss.name",
        "weights weight pos_weight alpha": "loss.class_weights",
        "weight_dict loss_weights loss_weight": "loss.head_weights, such as {main: 1.0, aux: 0.4}",
        "gamma focusing": "loss.gamma",
        "smooth": "loss.smooth",
        "thresh": "loss.threshold",
        "reduction": "nothing: a loss is the mean over all valid pixels of the batch",
        "ignore_index ignore_label": _IGNORE,
    },
    "optimizers": {
        "type optimizer": "optimizer.name",
        "eta": "optimizer.lr",
        "max_norm": "optimizer.clip_norm",
        "params": _GROUPS,
    },
    "schedulers": {
        "type policy by_epoch": "optimizer.schedule.name",
        "gamma": "optimizer.schedule.factor",
        "min_lr eta_min end_lr": "optimizer.schedule.end_factor",
        "steps step milestone": "optimizer.schedule.milestones",
        "exponent": "optimizer.schedule.power",
        "max_iters total_iters epochs num_epochs": "num_epochs: a schedule takes the whole run",
    },
    "datasets": {
        "type dataset": "dataset.train.name",
        "size image_size img_size": "dataset.train.size",
        "image_set mode phase subset": "dataset.train.split",
        "train val": "nothing: one data set is dataset.train, another one dataset.test",
        "label_mapping": "dataset.train.label_map",
        "path dir folder data_root root_dir": "dataset.train.root",
        "image_folder": _FOLDER_IMAGES,
        "mask_folder label_folder targets": _FOLDER_MASKS,
        "n_samples length": "dataset.train.num_samples",
        "shuffle drop_last": "nothing: training shuffles and drops the last short batch, measuring does neither",
        "batch_size": _BATCH,
        "num_channels in_channels": "dataset.train.channels, of {name: folder}",
    },
    "transforms": {
        "type transform": "dataset.train.transforms.name",
        "p prob": "dataset.train.transforms.probability",
        "crop_size img_scale output_size height width": "dataset.train.transforms.size",
        "ratio_range scale_range scales ratio": "dataset.train.transforms.scale",
        "cat_max_ratio": "dataset.train.transforms.max_class_fraction",
        "degree angle limit": "dataset.train.transforms.degrees",
        "pad_val padding_value fill_value": "dataset.train.transforms.fill",
        "size_divisor divisor": "dataset.train.transforms.multiple",
    },
    "meters": {"type metric": "meters.name", "k top_k": "meters.topk"},
    "hooks": {
        "type hook": "hooks.name",
        "interval every_n_epochs": "hooks.every_epochs, of {name: checkpoint}",
        "every_n_steps every_n_train_steps": "hooks.every_steps, of {name: checkpoint}",
        "max_keep_ckpts save_top_k keep_last": "hooks.keep, of {name: checkpoint}",
        "save_best monitor": "hooks.best, of {name: checkpoint}",
        "mode rule": "hooks.best_is, of {name: checkpoint}",
        "dirpath": _OUTPUT,
    },
    "runtime": {"pin_memory persistent_workers prefetch_factor": "nothing: the loader decides it"},
}
"""Words that mean something else, or something more, in one kind of record: looked up before `KEYS`."""

NAMES: dict[str, dict[str, str]] = {
    "losses": {
        "ce xent nll nll_loss cross_entropy_loss crossentropy softmax_loss softmax_cross_entropy bce bce_loss "
        "bce_with_logits bce_with_logits_loss binary_cross_entropy": "cross_entropy",
        "dice_loss soft_dice soft_dice_loss f1_loss generalized_dice": "dice",
        "focal_loss sigmoid_focal_loss": "focal",
        "tversky_loss jaccard jaccard_loss iou_loss focal_tversky": "tversky",
        "lovasz lovasz_loss lovasz_hinge": "lovasz_softmax",
        "ohem ohem_loss ohem_cross_entropy_loss ohem_ce hard_mining": "ohem_cross_entropy",
        "boundary_loss surface_loss": "boundary",
        "label_smoothing_loss label_smoothing_cross_entropy": "label_smoothing",
        "dice_ce ce_dice dice_ce_loss combo combo_loss": "sum_arbitrary",
        "soft_ce soft_cross_entropy soft_target": "soft_target_cross_entropy",
    },
    "optimizers": {"adam nadam adamax radam lion lamb": "adamw", "momentum sgdm nesterov": "sgd"},
    "schedulers": {
        "poly poly_lr polynomial_lr polynomial_decay": "polynomial",
        "cosine_annealing_lr cosine_annealing cosine_lr cosine_decay one_cycle one_cycle_lr": "cosine",
        "multi_step_lr step step_lr multistep": "multi_step",
        "constant_lr fixed none": "constant",
        "linear linear_lr": "polynomial",
    },
    "meters": {
        "miou iou mean_io_u iou_metric jaccard jaccard_index io_u mean_iou_score": "mean_iou",
        "mdice f1 f1_score dice_score mfscore fscore": "dice",
        "acc aacc overall_accuracy pixel_acc all_acc": "pixel_accuracy",
        "macc mean_accuracy per_class_accuracy class_acc": "class_accuracy",
        "top_k topk top1 top5 topk_accuracy": "accuracy",
        "confmat confusion": "confusion_matrix",
        "biou boundary": "boundary_iou",
    },
    "datasets": {
        "custom custom_dataset base_seg_dataset image_mask folder_dataset my_dataset seg_dataset": "folder",
        "ade ade_dataset ade20k_dataset": "ade20k",
        "cityscapes_dataset city": "cityscapes",
        "voc voc2012 pascal pascal_voc12 pascal_voc_dataset voc_segmentation voc12": "pascal_voc",
        "voc_aug sbd pascal_voc_aug": "pascal_aug",
        "pascal_context_dataset pcontext pascal_context59": "pascal_context",
        "coco_stuff164k coco_stuff_dataset coco_stuff10k": "coco_stuff",
        "coco_dataset coco2017 coco_detection coco_seg": "coco",
        "concat_dataset repeat_dataset": "concat",
        "synthetic fake fake_data dummy": "synthetic_shapes",
        "cam_vid cam_vid_dataset": "camvid",
    },
    "transforms": {
        "random_flip random_horizontal_flip hflip flip horizontalflip": "horizontal_flip",
        "random_vertical_flip vflip": "vertical_flip",
        "photo_metric_distortion": "photometric_distortion",
        "random_resized_crop random_crop_resize random_scale": "random_scale_crop",
        "rotate random_rotate rotation": "random_rotation",
        "resize_short_edge resize_shortest_edge scale longest_max_size smallest_max_size": "resize",
        "random_cut_out": "cutout",
        "pad_if_needed": "pad",
        "rand_aug randaug": "rand_augment",
        "auto_aug": "auto_augment",
        "blur random_gaussian_blur": "gaussian_blur",
        "image_normalize": "normalize",
    },
    "hooks": {
        "checkpoint_hook model_checkpoint checkpoint_config": "checkpoint",
        "logger_hook text_logger text_logger_hook": "log",
        "tqdm tqdm_progress_bar progress": "progress_bar",
    },
    "heads": {
        "deeplab deeplabv3_head aspp aspp_head": "deeplabv3",
        "deeplabv3p deeplab_v3_plus depthwise_separable_aspp_head sep_aspp deeplabv3+": "deeplabv3plus",
        "pspnet psp_net ppm pyramid_pooling": "psp",
        "fcn_net fully_convolutional": "fcn",
        "uper_head uper_net upper_net": "upernet",
        "u_net unet_plus_plus unetplusplus unet++ linknet manet": "unet",
        "mlp_head all_mlp segformer_head": "segformer",
        "fpn fpn_head panoptic_fpn": "semantic_fpn",
        "enc_head enc_net": "encnet",
        "ocrnet ocr_net ocr_head": "ocr",
        "point_head pointrend": "point_rend",
        "lraspp_head lr_aspp": "lraspp",
        "classifier cls_head linear_cls_head": "linear",
    },
    "tasks": {
        "semantic_segmentation segmentation_task semseg seg semantic segmentor encoder_decoder train": "segmentation"
    },
}
"""What other libraries call a component; the registered name of ours."""

HEAD_BLOCKS = {
    "deeplabv3plus": "stage1, stage4",
    "lraspp": "stage2, stage4",
    "jpu": "stage2, stage3, stage4",
    **dict.fromkeys(("fcfpn", "segformer", "semantic_fpn", "unet", "upernet"), "stage1, stage2, stage3, stage4"),
}
"""The blocks of a ResNet that a head reads, where it is not the deepest alone."""

_SIZES = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
_LETTERS = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_REGNET = {"016": "1_6gf", "032": "3_2gf", "080": "8gf", "160": "16gf", "320": "32gf", "004": "400mf", "008": "800mf"}
_Rule = tuple[str, Callable[[re.Match[str]], str]]
MODEL_RULES: tuple[_Rule, ...] = (
    (r"(\w+)_tv", lambda m: f"{m[1]}_torchvision"),
    (r"(?:vit|deit3?|beit\w*?)_(tiny|small|base|large|huge)_patch(\d+)\w*", lambda m: f"vit_{_SIZES[m[1]]}_{m[2]}"),
    (r"swin(v2)?_(tiny|small|base)\w*", lambda m: f"swin_{'v2_' if m[1] else ''}{m[2][0]}"),
    (r"(?:resnet_?v1c|resnet_v1c)_?(\d+)|resnet_?(\d+)_?v1c", lambda m: f"resnet{m[1] or m[2]}s"),
    (r"(?:resnet_?v1d|resnet_v1d)_?(\d+)|resnet_?(\d+)_?v1d", lambda m: f"resnet{m[1] or m[2]}d"),
    (r"r_?(\d+)", lambda m: f"resnet{m[1]}"),
    (r"regnet_?([xy])_(\d{3})", lambda m: f"regnet_{m[1]}_{_REGNET.get(m[2], '')}"),
    (r"mobilenet_?v2\w*", lambda m: "mobilenet_v2"),
    (r"mobilenet_?v3_(large|small)\w*", lambda m: f"mobilenet_v3_{m[1]}_x1_0"),
    (r"hrnet_?v?2?p?_?w?(\d+)\w*", lambda m: f"hrnet_w{m[1]}"),
    (r"convnext_(t|s|b|l)", lambda m: f"convnext_{_LETTERS[m[1]]}"),
    (r"se_?resnet(\d+)", lambda m: f"resnet{m[1]}"),
    (r"res2net(\d+)\w*", lambda m: f"resnet{m[1]}"),
    (r"resnest_?(\d+)\w*", lambda m: f"resnest{m[1]}"),
    (r"efficientnet_?v2_?r?w?_?(s|m|l)\w*", lambda m: f"efficientnet_v2_{m[1]}"),
)
"""How other libraries write models that we have."""

FAMILIES: tuple[tuple[str, str], ...] = (
    (r"mit_?b\d|mix_?(vision_?)?transformer\w*|pvt\w*|segformer_?b\d\w*", "swin_t with the head segformer"),
    (r"vit\w*|deit\w*|beit\w*|dino\w*|clip\w*|eva\w*|sam\w*|vision_?transformer\w*", "vit_b_16"),
    (r"swin\w*|mask2?former\w*", "swin_b with the head upernet"),
    (r"convnext\w*", "convnext_tiny"),
    (r"hrnet\w*|hrformer\w*", "hrnet_w18"),
    (r"vgg\w*|alexnet|googlenet|inception\w*|darknet\w*|cspdarknet\w*|resnet_?v?\w*|res2net\w*|yolo\w*", "resnet50"),
    (r"mobileone\w*|mobilenet\w*|ghostnet\w*|shufflenet\w*|mnasnet\w*|bisenet\w*|stdc\w*|ddrnet\w*", "mobilenet_v2"),
    (r"efficientnet\w*|gernet\w*|nfnet\w*", "efficientnet_b0"),
    (r"regnet\w*", "regnet_y_800mf"),
    (r"dpn\w*|xception\w*|senet\w*|resnext\w*", "resnext50_32x4d"),
)
"""Families that we lack, and what is closest to them."""

_PREFIX = re.compile(r"^(?:timm|tu|tv|tf|torchvision|mmseg|smp)[_/]")
_BACKBONE_AFTER = re.compile(r"(?:_on)?_+(?P<backbone>[a-z].*)")


def _by_word(table: Mapping[str, str]) -> dict[str, str]:
    return {squashed(word): answer for words, answer in table.items() for word in words.split()}


_KEYS = _by_word(KEYS)
_AT = {place: _by_word(table) for place, table in AT.items()}
_NAMES = {kind: _by_word(table) for kind, table in NAMES.items()}


def instead_of_key(place: str, word: object, keys: Collection[str]) -> str:
    """What to write instead of the unknown key `word` in a record at `place` with `keys`; empty where unknown."""
    own = same_word(word, keys)
    if own is not None:
        return f"did you mean '{own}'?"
    here = PLACES.get(place)
    for table in (_AT.get(place, {}), _KEYS) if here is not None else ():
        answer = table.get(squashed(word))
        if answer is None:
            continue
        path = re.split(r"[,:; ]", answer, maxsplit=1)[0]
        parent, _, key = path.rpartition(".")
        if path == "nothing":
            return f"{answer.removeprefix('nothing: ')}."
        if parent == here:
            if key in keys:
                return f"did you mean '{key}'?{f' Write {answer}.' if answer != path else ''}"
            if ", of {" in answer:
                return f"write {answer}."
        elif path != here:
            return f"write {answer}." if parent else f"write at the top of the config: {answer}."
    return ""


def instead_of_name(kind: str, word: str, names: Collection[str], heads: Callable[[], Collection[str]]) -> str:
    """What to write instead of the unknown name `word` of a component; empty where we do not know.

    `names` are the registered ones of its kind; `heads` gives those of the heads.
    """
    own = same_word(word, names)
    known = own or _NAMES.get(kind, {}).get(squashed(word)) or _without_suffix(kind, word, names)
    if known is not None and known in names:
        return f"did you mean '{known}'?"
    return _instead_of_model(word, names, heads()) if kind == "models" else ""


SUFFIXES = {"heads": "head", "losses": "loss", "meters": "metric", "datasets": "dataset", "hooks": "hook"}


def _without_suffix(kind: str, word: str, names: Collection[str]) -> str | None:
    suffix = SUFFIXES.get(kind, "\0")
    short = squashed(word)
    return same_word(short.removesuffix(suffix), names) if short.endswith(suffix) else None


def _instead_of_model(word: str, names: Collection[str], heads: Collection[str]) -> str:
    plain = _PREFIX.sub("", re.sub(r"[\s.\-]+", "_", word.lower()))
    found = our_model(plain, names)
    if found is not None:
        return f"did you mean '{found}'?"
    head, backbone = _head_and_backbone(plain, names, heads)
    if head is not None:
        blocks = HEAD_BLOCKS.get(head, "stage4")
        what = f"'{head}' is a head" if head in squashed(plain) else f"'{word}' is a head, '{head}' here"
        return f"{what}; write model: {{name: {backbone}, heads: {{main: {{name: {head}, blocks: [{blocks}]}}}}}}."
    for pattern, family in FAMILIES:
        if re.fullmatch(pattern, plain):
            return f"there is none of that family; the closest is {family}."
    return ""


def our_model(word: str, names: Collection[str]) -> str | None:
    """The registered name of a model that other libraries call `word`."""
    same = same_word(word, names)
    if same is not None:
        return same
    for pattern, name in MODEL_RULES:
        match = re.fullmatch(pattern, word)
        if match and name(match) in names:
            return name(match)
    return None


def _head_and_backbone(word: str, names: Collection[str], heads: Collection[str]) -> tuple[str | None, str]:
    """The head that `word` begins with, and the backbone that it goes on with, else a common one."""
    aliases = {**{squashed(head): head for head in heads}, **_NAMES["heads"]}
    parts = word.split("_")
    for end in range(len(parts), 0, -1):
        head = aliases.get(squashed("".join(parts[:end])))
        if head in heads:
            return head, our_model("_".join(parts[end:]), names) or "resnet34"
    return None, ""

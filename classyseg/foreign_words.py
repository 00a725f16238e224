"""The words that other libraries use for our keys and components: tables, which `foreign` reads."""

from __future__ import annotations

NOTHING = "nothing: "
"""How an answer begins where there is nothing to write instead; the rest says why."""
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
_LOG = "hooks, such as [{name: log, every: 50}] or [tensorboard]"
_FOLDER_IMAGES = "dataset.train.images, of {name: folder}"
_FOLDER_MASKS = "dataset.train.masks, of {name: folder}"
_IGNORE = "dataset.train.ignore_index, of {name: folder}; other data sets know theirs"
_BATCH = "batch_size, of all processes together"
_GROUPS = "optimizer.groups, such as [{match: heads.*, lr_factor: 10}]"
_SCHEDULE = "optimizer.schedule, such as {name: polynomial, power: 0.9}"
_LIST = "dataset.train.list, of {name: folder}: a text file with the name of an image a line"
_RECORDS = "nothing: a run writes its numbers to metrics.jsonl and, with the hook log, steps.jsonl in its folder"
_TRACKERS = "hooks, such as [tensorboard], [wandb], [mlflow] or [csv]"
_OTHER_TRACKERS = "nothing: the trackers here are tensorboard, wandb, mlflow and csv"
_STOPPING = "hooks, such as [{name: early_stopping, best: mean_iou, patience: 5}]"
_AVERAGE = "hooks, such as [{name: ema, decay: 0.999}]"
_NO_WINDOWS = "nothing: images are measured whole, and once"
_LOADER = "nothing: the loader decides it"
_SHUFFLED = "nothing: training shuffles and drops the last short batch, measuring does neither"
_WHOLE_EPOCHS = "nothing: an epoch takes every image of the data set once, and so does a measurement"
_LOGITS = "nothing: heads give logits, of all classes, and losses and meters take them as they are"

KEYS: dict[str, str] = {
    # the run
    "epochs max_epochs n_epochs nb_epochs total_epochs num_train_epochs nepochs epoch n_epoch "
    "max_epoch epoch_num training_epochs train_epochs num_epoch": "num_epochs",
    "total_iters max_iters iterations iters num_iters num_iterations num_steps max_steps train_steps "
    "max_iter total_steps total_iterations n_iters train_iters training_steps max_train_steps": "num_steps",
    "steps_per_epoch iters_per_epoch limit_train_batches limit_val_batches validation_steps eval_iters "
    "num_sanity_val_steps": _WHOLE_EPOCHS,
    "batch bs train_batch_size batch_size_per_gpu samples_per_gpu imgs_per_gpu per_gpu_batch_size "
    "per_device_train_batch_size batch_size_train images_per_gpu ims_per_batch batch_size": _BATCH,
    "val_batch_size eval_batch_size test_batch_size batch_size_val batch_size_test "
    "per_device_eval_batch_size": "runtime.eval_batch_size",
    "random_seed manual_seed rng_seed seed_everything seed": "seed",
    "eval_interval val_interval check_val_every_n_epoch eval_every val_every val_freq eval_freq eval_period "
    "evaluation_interval val_every_epochs eval_strategy evaluation_strategy validation_freq "
    "validation_interval test_freq test_interval val_every_epochs": "val_every_epochs",
    "eval_steps val_every_steps val_steps val_check_interval": "val_every_steps",
    "work_dir workdir output_dir save_dir out_dir exp_dir log_dir logdir save_path output exp_name run_name "
    "checkpoint_dir ckpt_dir project experiment experiment_name exp default_root_dir logging_dir run_dir": _OUTPUT,
    "exist_ok overwrite overwrite_output_dir": "nothing: a run replaces another one with `--overwrite` of the command",
    "resume resume_from auto_resume resume_from_checkpoint initial_epoch start_epoch resume_checkpoint "
    "resume_path": _RESUME,
    "fast_dev_run dry_run": "nothing: `classyseg config check CONFIG` looks at a config without training",
    # the machine
    "amp fp16 bf16 use_amp use_fp16 mixed_precision half autocast amp_dtype precision dtype half_precision": (
        "runtime.precision: float32, bfloat16 or float16"
    ),
    "gpus num_gpus n_gpu n_gpus gpu gpu_ids devices world_size accelerator strategy local_rank dist_backend "
    "launcher distributed num_nodes nnodes dist_url dist_cfg find_unused_parameters data_parallel dataparallel ddp": (
        _PROCESSES
    ),
    "device cuda use_cuda": "runtime.device",
    "num_workers workers_per_gpu n_workers dataloader_num_workers nworkers num_worker workers": "runtime.workers",
    "num_threads n_threads cpu_threads threads": "runtime.threads",
    "sync_bn syncbn use_sync_bn sync_batchnorm sync_batch_norm convert_sync_batchnorm": "runtime.sync_batch_norm",
    "torch_compile use_compile compile": "runtime.compile",
    "deterministic cudnn_deterministic use_deterministic_algorithms": "runtime.deterministic",
    "cudnn_benchmark benchmark cudnn": "nothing: training lets cuDNN choose, unless runtime.deterministic is true",
    "pin_memory persistent_workers prefetch_factor dataloader_pin_memory dataloader_persistent_workers": _LOADER,
    "shuffle drop_last dataloader_drop_last": _SHUFFLED,
    "channels_last memory_format": "runtime.channels_last",
    "accumulate_grad_batches gradient_accumulation_steps gradient_accumulation accum_iter accum_steps grad_accum "
    "grad_accum_steps accumulation_steps accumulate accumulative_counts nbs "
    "accumulate_steps": "runtime.accumulate_steps",
    # data
    "data datasets dataset_train": "dataset, such as {train: {name: folder, ...}, val: {name: folder, ...}}",
    "train train_dataset train_dataloader train_data train_loader trainset train_set": "dataset.train",
    "val valid validation eval val_dataset val_dataloader valid_dataset validation_dataset val_data val_loader "
    "valset validation_data": "dataset.val",
    "test_dataset test_dataloader test_loader test_data test_set testset test": "dataset.test",
    "data_root dataroot data_path data_dir dataset_dir dataset_root datadir": _ROOT,
    "transform augmentation augmentations augment aug augs pipeline train_pipeline train_transform "
    "train_transforms target_transform target_transforms joint_transform transforms": "dataset.train.transforms",
    "hflip fliplr horizontal_flip random_flip flip": "dataset.train.transforms, such as [horizontal_flip]",
    "vflip flipud vertical_flip": "dataset.train.transforms, such as [vertical_flip]",
    "mixup mixup_alpha mix_up": (
        "dataset.train.transforms, such as [{name: mix_up, alpha: 0.2}], or mixing, of {name: classification}"
    ),
    "cutmix cutmix_alpha cut_mix": "dataset.train.transforms, such as [cut_mix], or mixing, of {name: classification}",
    "reprob random_erasing erasing remode recount": "dataset.train.transforms, such as [random_erasing]",
    "color_jitter jitter hsv_h hsv_s hsv_v": "dataset.train.transforms, such as [color_jitter]",
    "rotation_range rotate degrees max_rotation": "dataset.train.transforms, such as [random_rotation]",
    "aa auto_augment autoaugment rand_augment randaugment": "dataset.train.transforms, such as [rand_augment]",
    "multi_scale scale_range zoom_range scale_limit": (
        "dataset.train.transforms, such as [{name: random_scale_crop, size: [512, 512], scale: [0.5, 2.0]}]"
    ),
    "val_pipeline val_transform val_transforms": "dataset.val.transforms",
    "test_pipeline test_transform test_transforms": "dataset.test.transforms",
    "crop_size cropsize image_size img_size input_size imgsz train_size img_scale crop base_size": _TRANSFORMS,
    "img_dir image_dir images_dir img_path image_path image_root img_root images_path imgs img_prefix "
    "data_prefix x_dir images": _FOLDER_IMAGES,
    "ann_dir mask_dir masks_dir label_dir labels_dir gt_dir seg_dir ann_file ann_path annotations annotation_dir "
    "mask_path labels_path seg_map_path seg_prefix seg_map_dir y_dir masks": _FOLDER_MASKS,
    "file_list image_list split_file list_file img_list train_list train_path train_txt": _LIST,
    "val_list val_path val_txt": "dataset.val.list, of {name: folder}",
    "test_list test_path test_txt": "dataset.test.list, of {name: folder}",
    "validation_split val_split train_val_split split_ratio val_ratio val_fraction": (
        "nothing: dataset.train and dataset.val are two data sets; a list, or a table and its split, names the images "
        "of each"
    ),
    "img_suffix image_suffix": "nothing: an image and its mask belong together by their name, whatever their suffix",
    "palette colormap": "dataset.train.palette, of {name: folder}",
    "download": "nothing: `classyseg data prepare NAME` downloads a data set",
    "seg_map_suffix label_suffix ann_suffix mask_suffix": "dataset.train.mask_suffix, of {name: folder}",
    "reduce_zero_label do_reduce_labels reduce_labels": (
        "dataset.train.label_map, of {name: folder}, such as {0: 255, 1: 0, 2: 1}; ade20k does so itself"
    ),
    "class_names class_list names labels metainfo id2label label2id label_names "
    "classes": "dataset.train.classes, of {name: folder}",
    "num_classes n_classes nclass nclasses num_class number_of_classes classes_num nc num_labels": _CLASSES,
    "ignore_label ignore_value void_label ignore_idx ignore_lb ignore_id semantic_loss_ignore_index "
    "ignore_index": _IGNORE,
    "mean std img_norm_cfg norm_mean norm_std img_mean img_std image_mean image_std pixel_mean pixel_std "
    "data_preprocessor": "normalize, such as {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}",
    "cache cache_images": "dataset.train.cache_samples",
    # model
    "arch architecture model_name encoder encoder_name backbone net network": "model.name",
    "pretrained pretrained_backbone pretrain encoder_weights weights_backbone init_cfg load_from weights "
    "pretrained_weights init_weights checkpoint_path finetune": "model.weights",
    "decode_head decoder decoder_head auxiliary_head aux_head aux_heads aux_params segmentation_head neck head "
    "heads decoder_channels decoder_name decoder_attention_type": _HEADS,
    "in_channel in_chans in_ch input_channels n_channels num_channels input_nc in_channels": "model.in_channels",
    "encoder_output_stride os outstride replace_stride_with_dilation output_stride": "model.output_stride",
    "freeze freeze_backbone freeze_encoder frozen_stages frozen": "model.frozen",
    "freeze_bn norm_eval bn_frozen frozen_bn freeze_norm frozen_norm": "model.frozen_norm",
    "gradient_checkpointing with_cp use_checkpoint grad_checkpointing grad_checkpoint "
    "activation_checkpointing": "model.activation_checkpointing",
    "norm_cfg norm_layer batch_norm batchnorm bn use_bn use_batchnorm normalization "
    "decoder_use_batchnorm decoder_use_norm": ("model.norm, such as {name: group}; heads have their own"),
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
    "label_smooth smoothing label_smoothing label_smoothing_factor": "loss: label_smoothing",
    "activation": _LOGITS,
    # optimizer
    "optim optimiser optim_wrapper opt optimizer_name optimizer_cfg": "optimizer",
    "learning_rate base_lr lr0 initial_lr init_lr lr_init start_lr lr max_lr": "optimizer.lr",
    "momentum": "optimizer.momentum",
    "momentum_config momentum_scheduler momentum_schedule": (
        "optimizer.schedules, such as {momentum: {name: cosine, end_factor: 0.9}}"
    ),
    "wd weight_decay l2 l2_reg decay weightdecay": "optimizer.weight_decay",
    "beta1 beta2 adam_beta1 adam_beta2 adam_betas opt_betas betas": "optimizer.betas, of {name: adamw}",
    "eps epsilon adam_epsilon opt_eps": "optimizer.eps, of {name: adamw}",
    "grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val gradient_clipping grad_norm_clip "
    "clip_gradients clip_mode clip_norm": "optimizer.clip_norm",
    "clip_value clip_grad_value gradient_clip_value": "optimizer.clip_value",
    "paramwise_cfg param_groups parameter_groups lr_mult backbone_lr_mult backbone_lr head_lr head_lr_mult "
    "custom_keys": _GROUPS,
    "layer_decay layer_decay_rate llrd layer_wise_lr_decay layer_lr_decay lr_decay_rate": "optimizer.layer_decay",
    "zero zero_redundancy use_zero zero_optimizer zero_redundancy_optimizer": "optimizer.zero",
    "scheduler lr_scheduler lr_policy lr_config lr_schedule param_scheduler sched schedule policy lr_decay "
    "lr_scheduler_type learning_rate_scheduler lr_scheduler_name lr_scheduler_kwargs scheduler_type cos_lr cosine_lr "
    "decay_epochs decay_rate lr_gamma lr_drop step_size decay_steps gamma": _SCHEDULE,
    "warmup warmup_epoch warmup_ep warm_up warmup_epochs": "optimizer.schedule.warmup_epochs",
    "warmup_iters warmup_steps num_warmup_steps warmup_iterations": "optimizer.schedule.warmup_steps",
    "warmup_ratio start_factor warmup_start_factor warmup_lr warmup_factor": "optimizer.schedule.warmup_factor",
    "lr_power poly_power power": "optimizer.schedule.power, of {name: polynomial}",
    "min_lr eta_min lr_min end_lr final_lr": "optimizer.schedule.min_lr, of {name: cosine}",
    "lrf": "optimizer.schedule.end_factor, of {name: cosine}: a share of the lr",
    "step_epochs milestones": "optimizer.schedule.milestones, of {name: multi_step}",
    "lr_steps milestone_steps": "optimizer.schedule.milestone_steps, of {name: multi_step}",
    "t_max t_initial": "nothing: a schedule takes the whole run",
    # measuring, hooks
    "metric metrics eval_metric eval_metrics evaluation evaluator val_evaluator test_evaluator "
    "compute_metrics": "meters",
    "callbacks default_hooks custom_hooks hook": "hooks",
    "checkpoint checkpoint_config ckpt save_interval save_freq save_every save_best monitor save_top_k "
    "checkpoint_interval keep_checkpoint_max max_keep_ckpts save_strategy save_steps save_total_limit save_period "
    "save_best_only load_best_model_at_end metric_for_best_model greater_is_better checkpoint_hist checkpoint_period "
    "enable_checkpointing save_weights_only": _CHECKPOINT,
    "log_config log_interval log_every_n_steps print_freq log_freq log_every logging_steps log_steps logger "
    "loggers": _LOG,
    "tensorboard use_tensorboard tensorboard_log": "hooks, such as [tensorboard]",
    "wandb use_wandb": "hooks, such as [{name: wandb, project: NAME}]",
    "mlflow use_mlflow": "hooks, such as [{name: mlflow, experiment: NAME}]",
    "csv csv_logger": "hooks, such as [csv]",
    "report_to tracker trackers track vis_backends visualizer": _TRACKERS,
    "enable_progress_bar progress_bar progress_bar_refresh_rate verbose": "hooks, such as [progress_bar]",
    "mode": "hooks.best_is, of {name: checkpoint}",
    "early_stopping early_stop patience early_stopping_patience": _STOPPING,
    "ema model_ema use_ema ema_decay ema_rate averaging swa": _AVERAGE,
    "tta use_tta tta_model flip_test test_time_augmentation slide_window sliding_window": _NO_WINDOWS,
}
"""What to write instead of a key, wherever it stands: a path of a task config, and what there is to say of it."""

AT: dict[str, dict[str, str]] = {
    "tasks": {"type task": "name"},
    "models": {
        "type model": "model.name",
        "stride dilated strides dilations dilation contract_dilation": "model.output_stride",
        "num_classes classes n_classes": _CLASSES,
        "depth": "model.name, such as resnet50 for a ResNet of depth 50",
        "out_indices": "model.heads.NAME.blocks: a head names the blocks that it reads",
        "norm_layer norm_cfg batch_norm bn norm_type": "model.norm, such as {name: group}",
        "img_size input_size": "model.image_size",
        "drop_path drop_path_rate": "model.stochastic_depth",
        "checkpoint": "model.weights",
        "dropout drop_rate dropout_rate": "model.heads.main.dropout",
        "test_cfg": _NO_WINDOWS,
        "global_pool features_only num_stages encoder_depth backbone_indices": (
            "nothing: a model gives its blocks, and each head names those that it reads"
        ),
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
        "types loss_list": "loss.losses, of {name: sum_arbitrary}",
        "use_sigmoid from_logits mode activation multi_class": _LOGITS,
        "avg_non_ignore": "nothing: a loss is the mean over all valid pixels of the batch",
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
        "min_lr eta_min lr_min end_lr": "optimizer.schedule.min_lr",
        "param_schedulers": "optimizer.schedule, and optimizer.schedules for other options",
        "params": _GROUPS,
    },
    "schedulers": {
        "type policy by_epoch": "optimizer.schedule.name",
        "gamma": "optimizer.schedule.factor",
        "eta_min end_lr lr_min": "optimizer.schedule.min_lr",
        "steps step milestone": "optimizer.schedule.milestones",
        "step_size": "optimizer.schedule.every_epochs, of {name: step}",
        "schedulers": "optimizer.schedule.schedules, of {name: composite}",
        "start_value base_value": "optimizer.lr: a schedule has factors of it, such as start_factor",
        "end_value": "optimizer.schedule.min_lr, or end_factor: a share of the lr",
        "values": "optimizer.schedule.factors: shares of the lr",
        "num_updates": "nothing: a schedule takes the whole run",
        "exponent": "optimizer.schedule.power",
        "max_iters total_iters epochs num_epochs": "num_epochs: a schedule takes the whole run",
    },
    "datasets": {
        "type dataset": "dataset.train.name",
        "size image_size img_size": "dataset.train.size",
        "image_set mode phase subset": "dataset.train.split",
        "train val": "nothing: one data set is dataset.train, another one dataset.val",
        "label_mapping": "dataset.train.label_map",
        "path dir folder data_root root_dir": "dataset.train.root",
        "image_folder": _FOLDER_IMAGES,
        "mask_folder label_folder targets": _FOLDER_MASKS,
        "n_samples length": "dataset.train.num_samples",
        "repeat times repeats": _WHOLE_EPOCHS,
        "separator delimiter": "nothing: the columns of a table have commas between them",
        "batch_size": _BATCH,
        "num_channels in_channels img_channels": "dataset.train.channels, of {name: folder}",
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
        "num_iters num_items": "hooks.num_batches, of {name: precise_batch_norm}",
        "momentum": "hooks.decay, of {name: ema}, as 1 - momentum",
        "max_time duration": "hooks.minutes, of {name: time_limit}",
        "every_n_steps every_n_train_steps": "hooks.every_steps, of {name: checkpoint}",
        "max_keep_ckpts save_top_k keep_last": "hooks.keep, of {name: checkpoint}",
        "save_best monitor": "hooks.best, of {name: checkpoint} or {name: early_stopping}",
        "mode rule": "hooks.best_is, of {name: checkpoint} or {name: early_stopping}",
        "dirpath": _OUTPUT,
    },
}
"""Words that mean something else, or something more, in one kind of record: looked up before `KEYS`."""

NAMES: dict[str, dict[str, str]] = {
    "losses": {
        "ce xent nll nll_loss cross_entropy_loss crossentropy softmax_loss softmax_cross_entropy bce bce_loss "
        "bce_with_logits bce_with_logits_loss binary_cross_entropy categorical_crossentropy "
        "sparse_categorical_crossentropy binary_crossentropy soft_bce soft_bce_with_logits_loss": "cross_entropy",
        "dice_loss soft_dice soft_dice_loss f1_loss generalized_dice": "dice",
        "focal_loss sigmoid_focal_loss": "focal",
        "tversky_loss jaccard jaccard_loss iou_loss focal_tversky": "tversky",
        "lovasz lovasz_loss lovasz_hinge": "lovasz_softmax",
        "ohem ohem_loss ohem_cross_entropy_loss ohem_ce hard_mining": "ohem_cross_entropy",
        "boundary_loss surface_loss": "boundary",
        "label_smoothing_loss label_smoothing_cross_entropy": "label_smoothing",
        "dice_ce ce_dice dice_ce_loss combo combo_loss mixed mixed_loss": "sum_arbitrary",
        "soft_ce soft_cross_entropy soft_target": "soft_target_cross_entropy",
    },
    "optimizers": {
        "nadam adamax radam lion adamw_torch adamw_hf adamw_torch_fused adamw_fused adamw_mt adamw_8bit": "adamw",
        "fused_adam": "adam",
        "fused_lamb nvlamb lambc": "lamb",
        "larc lars_sgd lars_optimizer": "lars",
        "momentum sgdm nesterov": "sgd",
    },
    "schedulers": {
        "poly poly_lr polynomial_lr polynomial_decay warmup_poly warmup_poly_lr warmup_polynomial_lr": "polynomial",
        "cosine_annealing_lr cosine_annealing cosine_lr cosine_decay one_cycle one_cycle_lr warmup_cosine "
        "warmup_cosine_lr linear_warmup_cosine_annealing_lr cosine_annealing_warm_restarts "
        "cosine_with_restarts": "cosine",
        "multi_step_lr multistep warmup_multi_step_lr piecewise_constant piecewise_decay": "multi_step",
        "step_lr step_with_fixed_gamma step_decay": "step",
        "exponential_lr exp exponential_decay": "exponential",
        "sequential_lr chained sequential": "composite",
        "constant_lr fixed none constant_with_warmup": "constant",
        "linear_lr linear_decay": "linear",
    },
    "meters": {
        "miou iou mean_io_u iou_metric jaccard jaccard_index io_u mean_iou_score "
        "multiclass_jaccard_index binary_jaccard_index one_hot_io_u one_hot_mean_io_u iou_score sem_seg": "mean_iou",
        "mdice f1 f1_score dice_score mfscore fscore multiclass_f1_score dice_metric": "dice",
        "acc aacc overall_accuracy pixel_acc pix_acc all_acc sparse_categorical_accuracy": "pixel_accuracy",
        "macc mean_accuracy per_class_accuracy class_acc": "class_accuracy",
        "top_k topk top1 top5 topk_accuracy": "accuracy",
        "confmat confusion": "confusion_matrix",
        "biou boundary": "boundary_iou",
    },
    "datasets": {
        "custom custom_dataset base_seg_dataset image_mask folder_dataset my_dataset seg_dataset dataset "
        "segmentation_dataset optic_disc_seg": "folder",
        "ade ade_dataset ade20k_dataset ade20k_sem_seg_train scene_parse150": "ade20k",
        "cityscapes_dataset city cityscapes_fine_sem_seg_train": "cityscapes",
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
        "photo_metric_distortion random_distort random_brightness_contrast "
        "hue_saturation_value": "photometric_distortion",
        "random_resized_crop random_crop_resize random_scale random_padding_crop "
        "resize_step_scaling": "random_scale_crop",
        "rotate random_rotate rotation shift_scale_rotate random_affine": "random_rotation",
        "resize_short_edge resize_shortest_edge scale longest_max_size smallest_max_size": "resize",
        "random_cut_out": "cutout",
        "pad_if_needed": "pad",
        "rand_aug randaug": "rand_augment",
        "auto_aug": "auto_augment",
        "blur random_gaussian_blur": "gaussian_blur",
        "image_normalize": "normalize",
        "load_image_from_file load_annotations load_image pack_seg_inputs to_tensor to_tensor_v2 default_format_bundle "
        "collect": "nothing: samples are read and made tensors without being told",
    },
    "hooks": {
        "checkpoint_hook model_checkpoint checkpoint_config": "checkpoint",
        "logger_hook text_logger text_logger_hook": "log",
        "tqdm tqdm_progress_bar progress": "progress_bar",
        "early_stop early_stopper early_stopping_hook early_stopping_callback": "early_stopping",
        "profile profiler_hook pytorch_profiler torch_profiler": "profiler",
        "complexity flops model_summary flops_counter": "model_complexity",
        "precise_bn precise_bn_hook update_bn": "precise_batch_norm",
        "timer max_time time_stopper wall_time": "time_limit",
        "throughput throughput_monitor device_stats_monitor gpu_stats_monitor speed_monitor memory memory_monitor "
        "memory_profiler_hook": "log",
        "ema_hook exponential_moving_average ema_model_weights model_ema averaged_model weight_averaging swa": "ema",
        "tensor_board tensorboard_logger_hook tensorboard_logger tensorboard_vis_backend tensorboard_plot "
        "tensorboard_callback summary_writer tb": "tensorboard",
        "wandb_logger wandb_logger_hook wandb_vis_backend wandb_callback wandb_metrics_logger mmseg_wandb_hook "
        "weights_and_biases": "wandb",
        "mlflow_logger ml_flow_logger mlflow_logger_hook ml_flow_logger_hook mlflow_callback mlflow_vis_backend "
        "ml_flow_vis_backend": "mlflow",
        "csv_logger csv_logger_hook": "csv",
        "clear_ml clearml comet neptune aim dvclive visdom": _OTHER_TRACKERS,
        "seg_visualization_hook image_plot log_prediction_samples": "sample_predictions",
        "learning_rate_monitor lr_monitor iter_timer_hook": _RECORDS,
        "lr_scheduler_hook param_scheduler_hook lr_updater_hook": "nothing: optimizer.schedule sets the lr",
    },
    "heads": {
        "deeplab deeplabv3_head aspp aspp_head": "deeplabv3",
        "deeplabv3p deeplab_v3_plus deeplabv3plus_decoder depthwise_separable_aspp_head sep_aspp "
        "deeplabv3+": "deeplabv3plus",
        "pspnet psp_net ppm pyramid_pooling": "psp",
        "fcn_net fully_convolutional": "fcn",
        "uper_head uper_net upper_net": "upernet",
        "u_net unet_plus_plus unetplusplus unet++ linknet manet nn_unet attention_unet res_unet unet_decoder": "unet",
        "mlp_head all_mlp segformer_head": "segformer",
        "fpn fpn_head panoptic_fpn sem_seg_fpn_head fpn_decoder": "semantic_fpn",
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

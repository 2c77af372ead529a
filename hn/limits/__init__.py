"""What settings may be, alone and together, checked before anything is loaded; standard library."""

import math
import re

from hn.config import Config, DataConfig
from hn.errors import OptionError, shown
from hn.limits.hub import hub_faults
from hn.limits.inpainting import inpainting_faults
from hn.limits.learning import learning_faults
from hn.limits.memory import memory_faults
from hn.limits.network import network_faults
from hn.limits.processes import process_faults
from hn.limits.saving import saving_faults

MAX_NAME = 200  # bytes; the names of files have at most 255, and endings and steps follow


def check(config: Config) -> None:
    """Refuse impossible settings and combinations, all of them at once, before anything is loaded.

    Raises `OptionError` with one line for each.
    """
    faults = [*_range_faults(config), *_combination_faults(config)]
    faults += process_faults(config.training)
    if faults:
        raise OptionError("\n".join(faults))


def data_faults(data: DataConfig) -> list[str]:
    """What cannot work in how a folder of pictures is to be read, one line each."""
    return [
        *_size_faults(data),
        *_bucket_faults(data),
        *_word_faults(data),
        *_tag_faults(data),
    ]


def _range_faults(config: Config) -> list[str]:
    data, training, output, optimizer = (
        config.data,
        config.training,
        config.output,
        config.optimizer,
    )
    validation = config.validation
    positive = {
        "max_train_steps": training.max_train_steps,
        "train_batch_size": training.train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "clip_skip": config.model.clip_skip,
        "crops_per_image": data.crops_per_image,
        "vae_batch_size": data.vae_batch_size,
        "min_side": data.min_side,
        "shuffle_buffer": data.shuffle_buffer,
        "logging_steps": output.logging_steps,
        "validation_inference_steps": validation.validation_inference_steps,
    }
    not_negative = {
        "prompt_variants": data.prompt_variants,
        "text_cache_gib": data.text_cache_gib,
        "keep_tags": data.keep_tags,
        "lr_warmup_steps": optimizer.lr_warmup_steps,
        "checkpointing_steps": output.checkpointing_steps,
        "validation_steps": validation.validation_steps,
        "early_stop_patience": validation.early_stop_patience,
        "seed": training.seed,
    }
    shares = {"tag_dropout": data.tag_dropout, "caption_dropout": data.caption_dropout}
    faults = [
        f"{name} must be at least 1; found {value}" for name, value in positive.items() if value < 1
    ]
    faults += [
        f"{name} must not be negative; found {value}"
        for name, value in not_negative.items()
        if not (value >= 0 and math.isfinite(value))
    ]
    faults += [
        f"{name} must be from 0 to 1; found {value}"
        for name, value in shares.items()
        if not 0 <= value <= 1
    ]
    faults += data_faults(data)
    faults += [*learning_faults(config), *memory_faults(config)]
    return [*faults, *saving_faults(config)]


def _size_faults(data: DataConfig) -> list[str]:
    sides = data.resolution
    if len(sides) in (1, 2) and all(side >= 16 and side % 8 == 0 for side in sides):
        return []
    return [
        "resolution must be one multiple of 8, at least 16, or two (width and height); found "
        f"{' '.join(map(str, sides)) or 'none'}"
    ]


def _bucket_faults(data: DataConfig) -> list[str]:
    names = ("bucket_step", "max_aspect_ratio", "no_upscale", "native_size")
    given = [name for name in names if getattr(data, name) != getattr(DataConfig(), name)]
    if given and data.resize_mode != "bucket":
        return [f"{', '.join(given)}: for resize_mode bucket; found {data.resize_mode}"]
    faults, step = [], data.bucket_step
    if step is not None and (step < 8 or step % 8):
        faults.append(f"bucket_step must be a multiple of 8, 64 is usual; found {step}")
    if not (data.max_aspect_ratio >= 1 and math.isfinite(data.max_aspect_ratio)):
        faults.append(f"max_aspect_ratio must be at least 1; found {data.max_aspect_ratio}")
    if data.no_upscale and data.native_size:
        faults.append("native_size resizes nothing, so no_upscale is part of it: give one of them")
    return faults


def _word_faults(data: DataConfig) -> list[str]:
    setting = f"filename_word_regex '{data.filename_word_regex}'"
    try:
        groups = re.compile(data.filename_word_regex).groups
    except (re.error, OverflowError) as error:
        return [f"{setting} is not a regular expression: {error}"]
    if groups > 1:
        return [f"{setting} has {groups} groups, so it is not one word; write them as (?:...)"]
    if data.missing_caption == "template" and data.template == "none":
        return [
            "missing_caption template takes what the template says: give template style, subject, "
            "or a text file; found none"
        ]
    from_names = data.missing_caption == "filename" or data.train_folders is not None
    if data.filename_word_regex and not from_names:
        return [f"{setting} is for missing_caption filename; found {data.missing_caption}"]
    return []


def _tag_faults(data: DataConfig) -> list[str]:
    faults = []
    if not data.tag_separator:
        faults.append("tag_separator must not be empty; a comma is usual")
    if data.keep_separator and data.keep_separator == data.tag_separator:
        faults.append(
            f"keep_separator and tag_separator must differ; found '{data.tag_separator}' for both"
        )
    if data.prompt_variants > 0 and not (data.shuffle_tags or data.tag_dropout or data.wildcards):
        faults.append(
            f"prompt_variants {data.prompt_variants} is for shuffle_tags, tag_dropout and "
            "wildcards; all are off"
        )
    if data.keep_tags > 0 and not data.shuffle_tags and not data.tag_dropout:
        faults.append(
            f"keep_tags {data.keep_tags} is for shuffle_tags or tag_dropout; found neither"
        )
    return faults


def _tracker_faults(names: tuple[str, ...]) -> list[str]:
    if len(set(names)) == len(names) and ("none" not in names or len(names) == 1):
        return []
    return [f"report_to must be trackers, each once, or none alone; found {' '.join(names)}"]


def _source_faults(data: DataConfig) -> list[str]:
    """Where pictures come from, and what does not go with it."""
    faults = []
    settings = ("train_data_dir", "train_folders", "dataset_name", "cached_data_dir")
    given = [name for name in settings if getattr(data, name)]
    if len(given) != 1:
        faults.append(
            f"give one of {', '.join(settings)}; found {' and '.join(given) or 'none of them'}"
        )
    if data.cached_data_dir and data.validation_data_dir:
        faults.append(
            "validation_data_dir is for pictures, but cached_data_dir has held-out ones of its own "
            "if it was made with them: give one of the two"
        )
    if data.use_mask_files and data.dataset_name:
        faults.append(
            "use_mask_files is for files beside the pictures of a folder; found dataset_name "
            f"{data.dataset_name}"
        )
    if data.use_mask_files and data.use_alpha_weights:
        faults.append(
            "use_mask_files and use_alpha_weights both say how much each place counts: give one of "
            "the two"
        )
    return faults


def _held_out_faults(config: Config) -> list[str]:
    """What does not go with held-out pictures, or needs them."""
    data, split, faults = config.data, config.data.validation_split, []
    if split and not (0 < split < 1 or (split >= 1 and split == int(split))):
        faults.append(
            f"validation_split must be a share below 1 or a whole number of pictures; found {split}"
        )
    if split and data.validation_data_dir:
        faults.append("validation_data_dir and validation_split both hold out: give one of the two")
    if split and data.streaming:
        faults.append(
            "validation_split divides pictures that are known beforehand, streaming knows none: "
            "give held-out ones in validation_data_dir"
        )
    if split and data.cached_data_dir:
        faults.append(
            "validation_split divides pictures, but those of cached_data_dir are encoded already: "
            "leave it out, and make the cache with it instead"
        )
    held_out = split or data.validation_data_dir or data.cached_data_dir
    needing = {
        "keep_best": config.output.keep_best,
        "early_stop_patience": config.validation.early_stop_patience,
    }
    for name in (name for name, value in needing.items() if value):
        if not held_out:
            faults.append(
                f"{name} goes by the held-out loss: give validation_split or validation_data_dir"
            )
        if not config.validation.validation_steps:
            faults.append(f"{name} goes by what is measured while training: give validation_steps")
    return faults


def _streaming_faults(data: DataConfig) -> list[str]:
    default = DataConfig()
    if not data.streaming:
        if data.shuffle_buffer == default.shuffle_buffer:
            return []
        return [f"shuffle_buffer {data.shuffle_buffer} is for streaming; found streaming off"]
    faults = []
    if data.dataset_name is None:
        faults.append("streaming reads an HF dataset: give dataset_name instead of train_data_dir")
    if data.prompt_variants:
        faults.append("streaming keeps no variants of captions: leave prompt_variants out")
    if data.latent_cache_dir is not None:
        faults.append(
            "streaming keeps nothing, latent_cache_dir keeps what is encoded: give one of the two"
        )
    if data.crops_per_image != default.crops_per_image:
        faults.append(
            f"crops_per_image {data.crops_per_image} is for pictures that are encoded once; with "
            "streaming every sample is a new crop: leave it out"
        )
    return faults


def _crop_faults(data: DataConfig) -> list[str]:
    if data.random_crop and data.resize_mode in ("pad", "stretch"):
        return [
            f"random_crop is for resize_mode crop or bucket, since {data.resize_mode} leaves "
            "nothing to cut off: give one of the two"
        ]
    default = DataConfig().crops_per_image
    if data.crops_per_image != default and not (
        data.random_crop or data.streaming or data.cached_data_dir
    ):
        return [f"crops_per_image {data.crops_per_image} is for random_crop; found it off"]
    return []


def _combination_faults(config: Config) -> list[str]:
    faults = [*_streaming_faults(config.data), *hub_faults(config.hub)]
    faults += inpainting_faults(config)
    if not config.model.pretrained_model_name_or_path:
        faults.append(
            "pretrained_model_name_or_path is missing: give a diffusers folder or hub id, or "
            "--config demo"
        )
    faults += _tracker_faults(config.output.report_to)
    faults += _source_faults(config.data)
    faults += _crop_faults(config.data)
    faults += _held_out_faults(config)
    name = config.network.name
    if not name or name.startswith(".") or not all(c.isalnum() or c in "._- " for c in name):
        faults.append(
            "name may hold letters, digits and ._- and blanks, since it names files; found "
            f"{shown(name)}"
        )
    if len(name.encode()) > MAX_NAME:
        faults.append(f"name must have at most {MAX_NAME} bytes, since it names files")
    faults += network_faults(config)
    optimizer = config.optimizer
    if optimizer.use_8bit_adam and optimizer.optimizer != "AdamW":
        faults.append(
            f"use_8bit_adam is for the optimizer AdamW; found {optimizer.optimizer}: give one of "
            "the two"
        )
    if config.output.save_optimizer_state and (
        optimizer.use_8bit_adam or "." in optimizer.optimizer
    ):
        faults.append(
            "save_optimizer_state writes what the web UI reads, the state of a class of "
            f"torch.optim; found {'AdamW8bit' if optimizer.use_8bit_adam else optimizer.optimizer}"
        )
    return faults

"""The web UI's `settings-*.json`, which it writes beside a training, as settings of ours."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hn.config import Config, OptimizerConfig
from hn.data.words.captions import TEMPLATES
from hn.errors import OptionError, printable
from hn.limits.learning import HIGH_RATE, is_high

# Its name for a setting, and section and name here; the values are the same.
_SAME = {
    "hypernetwork_name": ("network", "name"),
    "layer_structure": ("network", "layer_structure"),
    "activation_func": ("network", "activation_func"),
    "weight_init": ("network", "weight_initialization"),
    "add_layer_norm": ("network", "is_layer_norm"),
    "learn_rate": ("optimizer", "learning_rate"),
    "clip_grad_value": ("optimizer", "clip_grad_value"),
    "data_root": ("data", "train_data_dir"),
    "latent_sampling_method": ("data", "latent_sampling"),
    "steps": ("training", "max_train_steps"),
    "save_hypernetwork_every": ("output", "checkpointing_steps"),
    "create_image_every": ("validation", "validation_steps"),
    "preview_negative_prompt": ("validation", "validation_negative_prompt"),
    "preview_steps": ("validation", "validation_inference_steps"),
    "preview_cfg_scale": ("validation", "validation_guidance_scale"),
}
# Read below, one by one.
_OTHERS = {
    "batch_size",
    "gradient_step",
    "num_of_dataset_images",
    "training_width",
    "training_height",
    "clip_grad_mode",
    "template_file",
    "preview_prompt",
    "preview_seed",
}
_TEXTS = ("learn_rate", "clip_grad_value", "activation_func")
_HASH = re.compile(r"\s*\([0-9a-f]{8,10}\)$")  # old versions showed it behind the name
_CHOICES = {"style_filewords": "style", "subject_filewords": "subject"}
# What the web UI always does, and what is another choice here.
_ITS_WAYS: dict[str, dict[str, Any]] = {
    "data": {"resize_mode": "stretch", "missing_caption": "filename"},
    "model": {"prompt_syntax": "webui"},
    "network": {"activation_func": "linear"},  # where it stores none
}


@dataclass(frozen=True)
class Imported:
    """The settings as values by section and name, and what a person should know about them."""

    sections: dict[str, dict[str, Any]]
    notes: list[str]  # one line each, printable

    def config(self, **model: Any) -> Config:
        """As a configuration; `model` are settings of the base model, which the file lacks."""
        config = Config()
        for section, values in self.sections.items():
            config = replace(config, **{section: replace(getattr(config, section), **values)})
        return replace(config, model=replace(config.model, **model))


def read(path: Path) -> Imported:
    """Read the file. Raises `OptionError` if it is no such file, or a value is of another kind."""
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error
    if not isinstance(given, dict) or "hypernetwork_name" not in given:
        raise OptionError(
            f"{path} is no settings file of a hypernetwork's training in the web UI: it has no "
            "hypernetwork_name"
        )
    try:
        return Imported(_sections(given), list(map(printable, _notes(given))))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise OptionError(
            f"{path}: a value is of another kind than the web UI's ({error})"
        ) from error


def _sections(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections = {section: dict(values) for section, values in _ITS_WAYS.items()}
    for theirs, (section, ours) in _SAME.items():
        if given.get(theirs) is not None:
            value = given[theirs]
            value = str(value) if theirs in _TEXTS else value
            value = tuple(value) if isinstance(value, list) else value
            value = _HASH.sub("", str(value)) if theirs == "hypernetwork_name" else value
            sections.setdefault(section, {})[ours] = value
    batch_size, accumulation = clamped(
        int(given.get("batch_size", 1)),
        int(given.get("gradient_step", 1)),
        int(given.get("num_of_dataset_images", 10**9)),
    )
    sections["training"] |= {
        "train_batch_size": batch_size,
        "gradient_accumulation_steps": max(1, accumulation),
    }
    width, height = (int(given.get(f"training_{side}", 512)) for side in ("width", "height"))
    sections["data"]["resolution"] = (width,) if width == height else (width, height)
    sections["data"]["template"] = _template(given)
    optimizer = sections.setdefault("optimizer", {})
    optimizer["allow_high_learning_rate"] = is_high(OptimizerConfig(**optimizer))
    mode = given.get("clip_grad_mode", "disabled")
    optimizer["clip_grad_mode"] = "none" if mode == "disabled" else mode
    if given.get("preview_prompt"):
        sections["validation"]["validation_prompt"] = (given["preview_prompt"],)
        sections["validation"]["validation_seed"] = max(0, int(given.get("preview_seed", 0)))
    return sections


def _template(given: dict[str, Any]) -> str:
    """The file it names, if it is here; else ours of the same purpose."""
    path = str(given.get("template_file") or "")
    stem = path.replace("\\", "/").rpartition("/")[2].removesuffix(".txt")
    if path and Path(path).is_file():
        return path
    ours = _CHOICES.get(stem, stem)
    return ours if (TEMPLATES / f"{ours}.txt").is_file() else "none"


def clamped(batch_size: int, accumulation: int, pictures: int) -> tuple[int, int]:
    """The batch size and accumulation that the web UI trains with where it has few pictures.

    It shows none twice in a step; our own batches keep their size and go on into the next epoch.
    """
    batch_size = min(batch_size, pictures)
    return batch_size, min(accumulation, pictures // batch_size)


def _notes(given: dict[str, Any]) -> list[str]:
    notes = [
        "the web UI does not record: shuffled tags, tag dropout, alpha weights, sizes that were "
        'kept ("Do not resize images"), widths, dropout structure, seed; set them if you used them'
    ]
    known = {*_SAME, *_OTHERS, "initial_step", "use_dropout", "model_name", "model_hash"}
    left = sorted(key for key in given if key not in known)
    if left:
        notes.append(f"not taken over: {', '.join(left)}")
    notes.append(
        f"its base model was {given.get('model_name')} [{given.get('model_hash')}]; name it here "
        "as pretrained_model_name_or_path"
    )
    if given.get("initial_step"):
        notes.append(
            f"it went on at step {given['initial_step']}: give the file as hypernetwork_path"
        )
    if given.get("use_dropout"):
        notes.append("it used dropout: give dropout_structure, such as 0 0.3 0")
    if given.get("clip_grad_mode", "disabled") != "disabled":
        notes.append(
            "it clipped gradients that were multiplied by a loss scale of up to 65536, so "
            f"clip_grad_value {given.get('clip_grad_value')} clips far less here"
        )
    if is_high(OptimizerConfig(learning_rate=str(given.get("learn_rate", "")))):
        notes.append(f"its rate is {HIGH_RATE:g} or more, which often ends in noise; it is allowed")
    template = str(given.get("template_file") or "")
    if template and _template(given) != template:
        ours = f"our {_template(given)}, in other words and always with the caption"
        notes.append(f"the template {template} is not here; taken instead: {ours}")
    return notes

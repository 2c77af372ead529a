"""The card of a pushed hypernetwork: what it is, how to use it, and what was measured of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hn.config import SECTIONS, Config
from hn.demo import NAME as DEMO
from hn.hub import measurements
from hn.hub.checkpoints import checkpoint_path
from hn.hub.public import is_remote, public, public_settings, shown_as_is, table
from hn.network import families, files, portability, sharing
from hn.network.contents import Contents
from hn.network.families import SD_1, SD_2, XL, XL_REFINER, Family
from hn.network.remote import NAMED

PREVIEW = "preview.png"
MARK = "hypernetwork"  # the tag by which a card is known as one of these
_CALL = 'pipeline("a prompt")'
_PIPELINES = {
    SD_1: ("StableDiffusionPipeline", _CALL),
    SD_2: ("StableDiffusionPipeline", _CALL),
    XL: ("StableDiffusionXLPipeline", _CALL),
    XL_REFINER: ("StableDiffusionXLImg2ImgPipeline", 'pipeline("a prompt", image=picture)'),
}
"""Diffusers' class for a family of base models, and how it is asked for a picture."""


@dataclass(frozen=True)
class Subject:
    """What a card is of: a run, and what of it is (or will be) in the repository.

    `artifact`: path of the hypernetwork that stands for all, in the repository; `file`: the same
    here. `steps`: of the checkpoints there. `base_model`: its id or name, never a path.
    """

    folder: Path
    config: Config
    repo_id: str
    artifact: str
    file: Path
    steps: Sequence[int]
    preview: bool

    @cached_property
    def contents(self) -> Contents:
        """What the file holds."""
        return files.read(self.file)

    @property
    def families(self) -> list[Family]:
        """The base models that have its widths; none of those known, if it is for another."""
        return families.candidates(self.contents.config.dims)

    @property
    def base_model(self) -> str:
        """Its id on the hub, else its bare name."""
        name = self.config.model.pretrained_model_name_or_path
        if name == DEMO:
            return "the demo model that comes with hn"
        return name if is_remote(name) else Path(name).name


def write_run_card(subject: Subject) -> str:
    """The text of `README.md`; the same for the same run and files."""
    report = measurements.read_report(subject.folder)
    sections = {
        "": _opening(subject),
        "Use": _use(subject, report),
        "Where it runs": _hosts(subject),
        "Prompts of the pictures": _prompts(subject),
        "Evaluation": measurements.in_words(subject.folder, report),
        "Checkpoints": _checkpoints(subject),
        "Settings": _settings(subject.config),
        "Licence": _licence(subject.config),
    }
    body = "\n\n".join(
        f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text
    )
    return (
        f"---\n{_front_matter(subject)}\n---\n\n# {public(subject.config.network.name)}\n\n{body}\n"
    )


def _front_matter(subject: Subject) -> str:
    model = subject.config.model.pretrained_model_name_or_path
    remote, possible = is_remote(model), set(subject.families)
    xl = ["stable-diffusion-xl"] if possible and possible <= {XL, XL_REFINER} else []
    data = ModelCardData(
        license=subject.config.hub.hub_license or "unknown",
        base_model=model if remote else None,
        pipeline_tag="text-to-image",
        tags=[MARK, "stable-diffusion", *xl, "hn"],
    )
    data[NAMED] = subject.artifact
    if remote:
        data["base_model_relation"] = "adapter"
    return data.to_yaml()


def _opening(subject: Subject) -> str:
    contents = subject.contents
    config, provenance = contents.config, contents.provenance
    rows = [
        ("base model", subject.base_model),
        ("family", families.made_for(config.dims)),
        ("steps", provenance.step),
        ("context widths", " ".join(map(str, config.dims))),
        ("layers", " ".join(f"{multiplier:g}" for multiplier in config.layer_structure)),
        ("activation", config.activation_func or "linear"),
        *([("read", config.reach)] if config.reach else []),
        ("parameters", f"{sum(tensor.numel() for tensor in contents.tensors.values()):,}"),
    ]
    picture = f"![Prompts in rows, strengths in columns]({PREVIEW})" if subject.preview else ""
    words = (
        "A hypernetwork for Stable Diffusion: small networks that rewrite what the attention of "
        "the base model reads. The base model itself stays as it is."
    )
    return "\n\n".join(filter(None, [picture, words, table(("", ""), rows)]))


def _use(subject: Subject, report: dict[str, Any]) -> str:
    name = public(Path(subject.artifact).stem)
    strength = measurements.recommended_strength(report)
    python = f"Python, with diffusers:\n\n```python\n{_code(subject, strength)}\n```"
    if sharing.obstacle(subject.contents) is not None:  # there is no .pt
        return python
    return (
        f"AUTOMATIC1111's web UI: put `{name}.pt` into `models/hypernetworks` and write "
        f"`<hypernet:{name}:{strength}>` into the prompt.\n\n"
        f"ComfyUI: put `{name}.pt` into `models/hypernetworks` and add the node Hypernetwork "
        f"Loader with strength {strength}.\n\n{python}"
    )


def _code(subject: Subject, strength: str) -> str:
    """What draws with it; of several families that it may be of, or none, diffusers finds out."""
    ways = {_PIPELINES[family] for family in subject.families}
    kind, call = ways.pop() if len(ways) == 1 else ("DiffusionPipeline", _CALL)
    is_demo = subject.config.model.pretrained_model_name_or_path == DEMO
    base = "hn.demo.MODEL" if is_demo else json.dumps(public(subject.base_model))
    return (
        f"import {'hn.demo' if is_demo else 'hn'}\nfrom diffusers import {kind}\n\n"
        f"pipeline = {kind}.from_pretrained({base})\n"
        f"net = hn.load({json.dumps(subject.repo_id)})\n"
        f"with hn.attach(pipeline.unet, [(net, {strength})]):\n    picture = {call}.images[0]"
    )


def _hosts(subject: Subject) -> str:
    verdicts = portability.in_words(portability.judge(subject.contents))
    return table(("host", ""), [(it["host"], it["outcome"]) for it in verdicts])


def _prompts(subject: Subject) -> str:
    prompts = subject.config.validation.validation_prompt
    if not prompts:
        return ""
    lines = shown_as_is("\n".join(" ".join(prompt.split()) for prompt in prompts))
    negative = subject.config.validation.validation_negative_prompt
    return lines + (f"\n\nNegative:\n\n{shown_as_is(negative)}" if negative else "")


def _checkpoints(subject: Subject) -> str:
    if not subject.steps:
        return ""
    step, name = subject.steps[-1], public(subject.config.network.name)
    lines = [
        f"Of the steps {', '.join(map(str, subject.steps))}, each in a folder, such as "
        f"`{checkpoint_path(step)}/{name}-{step}.safetensors`."
    ]
    if subject.config.hub.hub_strategy == "all":
        lines.append(f"Training goes on with `--resume_from_checkpoint hub:{subject.repo_id}`.")
    return " ".join(lines)


def _settings(config: Config) -> str:
    """Those that are not the defaults, but for what is said elsewhere."""
    kept, default = public_settings(config), Config()
    rows = [
        (f.name, " ".join(map(str, value)) if isinstance(value, tuple) else value)
        for section in SECTIONS
        if section not in ("validation", "hub")
        for f in fields(getattr(kept, section))
        if (value := getattr(getattr(kept, section), f.name))
        != getattr(getattr(default, section), f.name)
    ]
    return table(("setting", "value"), rows)


def _licence(config: Config) -> str:
    licence = config.hub.hub_license
    return (
        f"The hypernetwork: {licence}. " if licence else "None was given. "
    ) + "The base model has a licence of its own."

"""The answer first: which file, where to, at which strength, and why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hn.evaluation.report.findings import Findings, missing, section
from hn.evaluation.report.markup import Markup, element
from hn.evaluation.report.wording import (
    UNKNOWN,
    checkpoint_name,
    flag_meaning,
    interval,
    is_number,
    number,
    percent,
)


def advice(findings: Findings) -> Markup:
    """The recommendation and what speaks for it."""
    if not findings.recommendation:
        return section("advice", "Recommendation", _nothing(findings))
    return section(
        "advice",
        "Recommendation",
        _answer(findings),
        element("p", findings.recommendation.get("reason"), class_="reason"),
        _facts(findings.recommended),
        _warnings(findings.recommended),
        element("h3", "How to use it"),
        _steps(findings),
    )


def _nothing(findings: Findings) -> Markup:
    if not findings.checkpoints:
        return missing("No checkpoint was evaluated, so none can be recommended.")
    return missing(
        "None of the checkpoints can be recommended: the table below says what is wrong with each."
    )


def _answer(findings: Findings) -> Markup:
    recommendation = findings.recommendation
    path = _file(findings.run, recommendation)
    known = recommendation.get("artifact", checkpoint_name(recommendation))
    return element(
        "p",
        "Use ",
        element("strong", known if path is None else Path(path).name),
        " at strength ",
        element("strong", _strength(recommendation)),
        class_="answer",
    )


def _facts(checkpoint: Mapping[str, Any]) -> Markup | None:
    """The numbers that matter most."""
    if not checkpoint:
        return None
    train = checkpoint.get("train") or {}
    facts = [
        ("Gain on unseen pictures", percent(checkpoint.get("gain")), "of the base model's loss"),
        ("Gain on training pictures", percent(train.get("gain")), "of the base model's loss"),
        (
            "Held-out loss",
            number(checkpoint.get("loss")),
            f"base model {number(checkpoint.get('base_loss'))}",
        ),
        ("Loss minus base", *_split(interval(checkpoint.get("difference")))),
        ("Drift", percent(checkpoint.get("drift")), "change on unrelated prompts"),
    ]
    groups = [
        element("div", element("dt", name), element("dd", element("b", value), " ", detail))
        for name, value, detail in facts
        if value != UNKNOWN
    ]
    return element("dl", groups, class_="facts")


def _split(words: str) -> tuple[str, str]:
    """A mean, and its interval as the detail beside it."""
    mean, _, ends = words.partition(" ")
    return mean, f"95\u202f% {ends}" if ends else ""


def _warnings(checkpoint: Mapping[str, Any]) -> list[Markup]:
    return [
        element("p", element("strong", f"Flag: {flag}. "), flag_meaning(flag), class_="warning")
        for flag in checkpoint.get("flags", [])
    ]


def _steps(findings: Findings) -> Markup:
    """From the file to a prompt, in each host."""
    recommendation = findings.recommendation
    path = _file(findings.run, recommendation)
    stem = Path(recommendation.get("artifact", "")).stem
    if path is None:
        return missing(
            f"The file {recommendation.get('artifact', 'of this step')} is not in the run's "
            "folder. It may have been removed since (checkpoints_total_limit keeps the newest)."
        )
    strength = _strength(recommendation)
    return element(
        "ol",
        element(
            "li",
            "Copy ",
            element("code", path),
            " from the run's folder into ",
            element("code", "models/hypernetworks"),
            " of the AUTOMATIC1111 web UI or of ComfyUI.",
        ),
        element(
            "li",
            "In the web UI, add ",
            element("code", f"<hypernet:{stem}:{strength}>"),
            " to the prompt. In ComfyUI, choose the file in a HypernetworkLoader and set its "
            "strength to ",
            element("code", strength),
            ".",
        ),
        class_="steps",
    )


def _strength(recommendation: Mapping[str, Any]) -> str:
    strength = recommendation.get("strength", 1.0)
    return f"{strength:g}" if is_number(strength) else UNKNOWN


def _file(run: Path, recommendation: Mapping[str, Any]) -> str | None:
    """The recommended artifact within the run's folder: the .pt that every host reads, if any."""
    name, step = Path(recommendation.get("artifact", "")).name, recommendation.get("step")
    folders = [run]
    if isinstance(step, int):
        folders.insert(0, run / "checkpoints" / f"step-{step:08d}")
    for ending in (".pt", ".safetensors"):
        for folder in folders:
            path = (folder / name).with_suffix(ending) if name else folder
            if path.is_file():
                return path.relative_to(run).as_posix()
    return None

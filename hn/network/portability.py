"""Which host runs a hypernetwork, which computes something else, and what to change.

Hosts: AUTOMATIC1111's web UI (2023), Forge (2025), ComfyUI (2026), and diffusers through `hn`.
A file counts as running the same in ComfyUI only if the layers that it would build there are the
web UI's (`comfyui`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from hn.errors import shown
from hn.network import comfyui, container, files, sharing
from hn.network.a1111 import named_values, unread
from hn.network.contents import Contents
from hn.network.families import XL
from hn.network.numpy_numbers import SCALAR

OVER_BATCH = ("softmax", "softmax2d", "softmin", "logsoftmax")
HALF_MAX = 65504.0
_CONVERT = "tools/convert.py writes it as every host reads it"
_RECORDS = re.compile(r"data\.pkl|version|data/\d+")
_NAMES = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(Float|Half|BFloat16|Double|Int|Long|Byte)Storage|(__builtin__|builtins)\.set"
    r"|numpy\.core\.multiarray\.scalar|numpy\.dtype|_codecs\.encode"
)


class Outcome(IntEnum):
    """What becomes of a file in a host; the worst finding decides."""

    SAME = 0
    OTHER = 1
    IGNORED = 2
    REFUSED = 3

    @property
    def words(self) -> str:
        """The outcome in words."""
        return ("runs the same", "computes something else", "silently ignored", "refused")[self]


@dataclass(frozen=True)
class Finding:
    """One reason, and its remedy ("" where there is none)."""

    outcome: Outcome
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """What one host makes of a file, and why."""

    host: str
    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst of the findings."""
        return max((finding.outcome for finding in self.findings), default=Outcome.SAME)


def judge(contents: Contents, path: Path | None = None) -> list[Verdict]:
    """The verdicts of all hosts: on the file at `path`, or on the `.pt` that would be written."""
    everywhere = [*_spoilt(contents), *_depends_on_batch(contents)]
    without = list(_without_form(contents))
    if without:
        in_a1111 = in_comfyui = without
    else:
        in_file = list(_file_findings(path, contents)) if path is not None else []
        shared = sharing.by_width(contents)
        in_a1111 = [*in_file, *_a1111(shared)]
        in_comfyui = list(_comfyui_file(path)) or list(_comfyui(shared))
    hosts = {
        "A1111": in_a1111,
        "Forge": [
            Finding(
                Outcome.IGNORED,
                "it reads hypernetworks and does nothing with them",
                "use A1111, ComfyUI, or diffusers with hn; or a LoRA of it (tools/export_lora.py)",
            )
        ],
        "ComfyUI": in_comfyui,
        "diffusers": [],
    }
    return [Verdict(host, (*found, *everywhere)) for host, found in hosts.items()]


def in_words(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """The verdicts in plain words, for reports and programs."""
    return [
        {
            "host": verdict.host,
            "outcome": verdict.outcome.words,
            "reasons": [finding.reason for finding in verdict.findings],
            "remedies": list(dict.fromkeys(f.remedy for f in verdict.findings if f.remedy)),
        }
        for verdict in verdicts
    ]


def as_lines(verdicts: list[dict[str, Any]]) -> str:
    """What `in_words` gives, one host below the other, with reasons and remedies."""
    lines = []
    for verdict in verdicts:
        lines.append(f"  {verdict['host']:<10} {verdict['outcome']}")
        lines += [f"{'':<13}- {reason}" for reason in verdict["reasons"]]
        lines += [f"{'':<13}-> {remedy}" for remedy in verdict["remedies"]]
    return "\n".join(lines)


def _without_form(contents: Contents) -> Iterator[Finding]:
    """Why there is no `.pt` of it, if there is none."""
    reason = sharing.obstacle(contents)
    if reason is not None:
        yield Finding(
            Outcome.REFUSED,
            f"no .pt can be written of it: {reason}",
            "use diffusers with hn; or bake it into a model (tools/bake.py), or export a LoRA of "
            "it (tools/export_lora.py)",
        )


def _file_findings(path: Path, contents: Contents) -> Iterator[Finding]:
    """What the web UI's listing and its safety check make of the file itself."""
    if path.suffix != ".pt":
        yield Finding(
            Outcome.IGNORED,
            f"it lists .pt files only, and this is a '{path.suffix}'",
            f"tools/convert.py {path.name} -o {path.stem}.pt",
        )
    elif files.is_safetensors(path):
        yield Finding(Outcome.REFUSED, "it is a .safetensors file named .pt", _CONVERT)
    else:
        wrapping = container.examine(path)
        foreign = [n for n in sorted(wrapping.records) if not _RECORDS.fullmatch(n)]
        foreign += [n for n in sorted(wrapping.names) if not _NAMES.fullmatch(n)]
        if foreign:
            yield Finding(
                Outcome.REFUSED, f"its safety check does not know {', '.join(foreign)}", _CONVERT
            )
    if path.stem == "None":
        yield Finding(Outcome.IGNORED, "the name None means no hypernetwork there", "rename it")
    if contents.provenance.name not in ("", path.stem):
        yield Finding(
            Outcome.SAME,
            f"it is called {shown(contents.provenance.name)} inside, which is what the web UI "
            "remembers it by: after another file called so, that one is used",
            _CONVERT,
        )


def _a1111(contents: Contents) -> Iterator[Finding]:
    widths = _apparent_widths(contents)
    if widths:
        yield Finding(
            Outcome.OTHER,
            f"the widths {shown(widths)} are no ints: it ignores them, as this program does",
        )
    others = [key for key in unread(contents) if key not in widths]
    if others:
        yield Finding(Outcome.SAME, f"it does not read {shown(others)}")
    if XL.text in contents.config.dims:
        yield Finding(
            Outcome.SAME,
            f"from version 1.5 on: older ones know no Stable Diffusion XL (width {XL.text})",
        )
    yield from _too_large_for_half(contents)


def _comfyui_file(path: Path | None) -> Iterator[Finding]:
    if path is not None and files.is_safetensors(path):
        yield Finding(
            Outcome.IGNORED,
            "it finds no widths in a .safetensors file, and patches nothing",
            f"tools/convert.py {path.name} -o {path.stem}.pt",
        )
    elif path is not None and SCALAR in container.examine(path).names:
        yield Finding(
            Outcome.REFUSED, "it loads as torch does safely, without numbers of numpy", _CONVERT
        )


def _comfyui(contents: Contents) -> Iterator[Finding]:
    """What ComfyUI makes of the flags as stored and of the tensors in their stored order."""
    values = contents.values or named_values(contents, "")
    activation = values.get("activation_func", "linear")
    if _apparent_widths(contents):
        yield Finding(Outcome.REFUSED, "widths that are no ints stop it", _CONVERT)
    if activation not in comfyui.ACTIVATIONS:
        yield Finding(
            Outcome.REFUSED,
            f"it knows no activation {activation!r}",
            _CONVERT
            if named_values(sharing.mended(contents), "")["activation_func"] in comfyui.ACTIVATIONS
            else f"tools/distil.py, or train with one of {', '.join(comfyui.ACTIVATIONS)}",
        )
        return
    if comfyui.differs(contents, values):
        yield from _reasons(contents, values)
    yield from _too_large_for_half(contents)


def _too_large_for_half(contents: Contents) -> Iterator[Finding]:
    if any(float(t.abs().max()) > HALF_MAX for t in contents.tensors.values() if t.numel()):
        yield Finding(
            Outcome.OTHER,
            "it computes in half precision, where some weights are infinite",
            "start A1111 with --no-half, ComfyUI with --force-fp32",
        )


def _apparent_widths(contents: Contents) -> list[Any]:
    """Keys such as "768" or 768.5, which ComfyUI takes for widths and then does not find."""
    return [key for key in contents.values if _reads_as_int(key)]


def _reads_as_int(key: Any) -> bool:
    try:
        int(key)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _reasons(contents: Contents, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Why the layers differ; there is always at least one reason."""
    config = contents.config
    curved = config.activation_func not in ("linear", None)
    found = []
    if values.get("use_dropout", False):
        found.append(
            Finding(
                Outcome.OTHER,
                "it draws dropout while it paints",
                "tools/convert.py --fix removes what only training needs",
            )
        )
    if curved and config.activate_output and not values.get("activate_output", False):
        found.append(
            Finding(
                Outcome.OTHER,
                "activate_output is not stored, and it assumes the opposite",
                _CONVERT,
            )
        )
    if curved and config.is_layer_norm and not values.get("activate_output", False):
        found.append(
            Finding(
                Outcome.OTHER,
                "with layer norm it activates the last layer too",
                "tools/convert.py --fix, since the activation is not used"
                if sharing.mended(contents).config.activation_func == "linear"
                else "tools/distil.py, or train without layer norm, or with activate_output",
            )
        )
    if list(contents.tensors) != list(contents.packed()):
        found.append(
            Finding(
                Outcome.OTHER, "it takes the layers in the order in which they are stored", _CONVERT
            )
        )
    yield from found or [Finding(Outcome.OTHER, "it builds other layers from this file")]


def _spoilt(contents: Contents) -> Iterator[Finding]:
    spoilt = contents.spoilt
    if spoilt:
        yield Finding(
            Outcome.REFUSED,
            f"{len(spoilt)} tensors hold NaN or infinity ({spoilt[0]}); a host that loads it "
            "paints black",
            "go back to an earlier checkpoint",
        )


def _depends_on_batch(contents: Contents) -> Iterator[Finding]:
    if contents.config.activation_func in OVER_BATCH:
        yield Finding(
            Outcome.SAME,
            f"{contents.config.activation_func} runs over the batch: what is painted together "
            "changes each other, in every host",
        )

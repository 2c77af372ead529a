"""LoRAs as files, by the names that programs look for, and in words."""

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from hn.diffusion.strength import Choices
from hn.diffusion.surgery.baking import METADATA, told
from hn.diffusion.surgery.lora import Lora
from hn.storage import write_bytes

Format = Literal["kohya", "diffusers"]
"""kohya: of kohya's trainer, which the web UI and ComfyUI read. diffusers: of PEFT."""


def write(lora: Lora, path: Path, kind: Format, rank: int, stack: Choices) -> None:
    """Write the file, with what it is of in its header. Raises `StorageError`."""
    metadata = {
        "format": "pt",
        METADATA: json.dumps(told(stack)),
        **({} if kind == "diffusers" else _read_by_web_ui(rank)),
    }
    write_bytes(path, save(tensors_of(lora, kind), metadata))


def _read_by_web_ui(rank: int) -> dict[str, str]:
    size = {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return {"ss_network_module": "networks.lora", **size}


def tensors_of(lora: Lora, kind: Format) -> dict[str, Tensor]:
    """The tensors of the file, by the names that programs look for."""
    named: dict[str, Tensor] = {}
    for name, factors in lora.factors.items():
        down, up = (it.float().contiguous() for it in (factors.down, factors.up))
        if kind == "kohya":
            stem = f"lora_unet_{name.replace('.', '_')}"
            named[f"{stem}.lora_down.weight"] = down
            named[f"{stem}.lora_up.weight"] = up
            named[f"{stem}.alpha"] = torch.tensor(float(len(down)))
        else:
            named[f"unet.{name}.lora_A.weight"] = down
            named[f"unet.{name}.lora_B.weight"] = up
    return named


def as_text(lora: Lora) -> str:
    """What is lost, width by width."""
    lines = []
    for dim in sorted({dim for dim, _ in lora.shares}):
        keys, values = (lora.shares[dim, side].error for side in "kv")
        bias = lora.biases.get(dim)
        lost = "" if bias is None else f"; the bias of values, {bias.error:.2%} of them, is lost"
        lines.append(f"width {dim:<8} error of keys {keys:.2%}, of values {values:.2%}{lost}")
    lines.append(f"all together   {lora.error:.2%}")
    return "\n".join(lines)

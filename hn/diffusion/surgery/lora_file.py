"""LoRAs as files, by the names that programs look for, and in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from hn.diffusion.attending.strength import Choices
from hn.diffusion.attention import attention_layers
from hn.diffusion.single_file.names import UNetNames
from hn.diffusion.surgery.baking import METADATA, told
from hn.diffusion.surgery.lora import Lora
from hn.network.families import SD_2
from hn.storage import write_bytes

Format = Literal["kohya", "diffusers"]
"""kohya: of kohya's trainer, which the web UI and ComfyUI read. diffusers: of PEFT."""


def write(lora: Lora, path: Path, kind: Format, rank: int, stack: Choices, unet: Any) -> None:
    """Write the file, with what it is of in its header. Raises `StorageError`.

    `unet`: the one that it was made for, which decides what programs call its layers.
    """
    metadata = {
        "format": "pt",
        METADATA: json.dumps(told(stack)),
        **({} if kind == "diffusers" else _read_by_web_ui(rank, unet)),
    }
    write_bytes(path, save(tensors_of(lora, kind, unet), metadata))


def _read_by_web_ui(rank: int, unet: Any) -> dict[str, str]:
    """It lists a LoRA only beside base models of its kind, which is the first without a word."""
    kind = {"ss_v2": str(unet.config["cross_attention_dim"] == SD_2.text)}
    if _is_xl(unet):
        kind |= {"ss_base_model_version": "sdxl_base_v1-0"}
    size = {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return {"ss_network_module": "networks.lora", **size, **kind}


def _is_xl(unet: Any) -> bool:
    return unet.config["addition_embed_type"] == "text_time"


def kohya_names(unet: Any) -> Callable[[str], str]:
    """What kohya's trainer calls a layer: as diffusers does, but of Stable Diffusion XL as the
    original code does.
    """
    if not _is_xl(unet):
        return lambda name: name
    return UNetNames.of(unet.config["layers_per_block"], attention_layers(unet))


def tensors_of(lora: Lora, kind: Format, unet: Any) -> dict[str, Tensor]:
    """The tensors of the file, by the names that programs look for."""
    named: dict[str, Tensor] = {}
    called = kohya_names(unet)
    for name, factors in lora.factors.items():
        down, up = (it.float().contiguous() for it in (factors.down, factors.up))
        if kind == "kohya":
            stem = f"lora_unet_{called(name).replace('.', '_')}"
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

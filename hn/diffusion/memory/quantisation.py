"""A frozen UNet stored in fewer bits.

`fp8`: every convolution and product in eight bits, half of bfloat16, for a rounding of each weight
by up to 6 %. Weights are turned into the dtype of the computation where they are used, one layer at
a time, and again in the backward pass; diffusers' own casting would leave all turned until then.
`int8` and `nf4`: products alone, by bitsandbytes, on a GPU; less rounding for the bits they take.
"""

from functools import partial
from typing import Any, Literal

import torch
from diffusers import BitsAndBytesConfig
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from hn.diffusion.memory import functions
from hn.errors import OptionError

Quantisation = Literal["none", "fp8", "int8", "nf4"]
EXACT = ("conv_in", "conv_out", "time_embedding", "add_embedding", "class_embedding")
NF4_BLOCK = 64  # weights that share a scale in float32


def store_in_float8(unet: UNet2DConditionModel) -> None:
    """Store the UNet's weights in float8 (4 bits of exponent, 3 of fraction), but for norms and
    biases, and for the small layers where values of pictures and times come in and go out.
    """
    for name, layer in unet.named_modules():
        operation: Any = {nn.Conv2d: functions.convolve, nn.Linear: functions.project}.get(
            type(layer)
        )
        if operation is not None and not name.startswith(EXACT):
            stored = layer.get_parameter("weight").to(torch.float8_e4m3fn)
            layer.weight = nn.Parameter(stored, requires_grad=False)
            layer.forward = partial(operation, layer)


def check_device(quantisation: Quantisation, device: torch.device | str) -> None:
    """Raises `OptionError` where the device cannot store a UNet so."""
    if quantisation in ("int8", "nf4") and torch.device(device).type != "cuda":
        raise OptionError(
            f"quantize_base {quantisation} is done by bitsandbytes on a GPU, and there is none: "
            "give quantize_base fp8, which works everywhere"
        )


def loading_options(quantisation: Quantisation, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs, to compute in `dtype`."""
    if quantisation in ("none", "fp8"):
        return {}
    if quantisation == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": nf4}


def stored_nbytes(unet: UNet2DConditionModel, quantisation: Quantisation) -> int:
    """The bytes of a UNet's weights: of one as it is, or as bitsandbytes will make it."""
    nbytes = sum(parameter.nbytes for parameter in unet.parameters())
    if quantisation in ("none", "fp8"):
        return nbytes
    products = [layer.weight for layer in unet.modules() if type(layer) is nn.Linear]
    for weight in products:
        scales = weight.numel() // NF4_BLOCK if quantisation == "nf4" else len(weight)
        kept = weight.numel() // (2 if quantisation == "nf4" else 1) + 4 * scales
        nbytes += kept - weight.nbytes
    return nbytes

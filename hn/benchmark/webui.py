"""The step of the AUTOMATIC1111 web UI, for comparison: what it computes, in the order and the kind
of operations in which it does so when a hypernetwork is trained.

Its optimised attention is off in training, so every score is held, and its softmax is float32 under
half precision. Every attention layer rewrites its own context. Every block of layers is
checkpointed, always. The host reads the loss of every micro-batch.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hn.benchmark.contender import Contender
from hn.benchmark.scene import Scene
from hn.diffusion.denoiser import predict
from hn.network.module import Hypernetwork


class PlainAttention:
    """An attention processor of two products and a softmax, which rewrites the context itself."""

    def __init__(self, network: Hypernetwork) -> None:
        self.network = network

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attention of `hidden_states` (B, N, C) to a context (B, T, D), or to themselves."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        context_k, context_v = self.network(context, context)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))  # (B * H, N, C/H)
        key = attn.head_to_batch_dim(attn.to_k(context_k))  # (B * H, T, C/H)
        value = attn.head_to_batch_dim(attn.to_v(context_v))
        scores = torch.einsum("bnc,btc->bnt", query, key) * attn.scale
        shares = scores.float().softmax(-1).to(value.dtype)  # (B * H, N, T)
        read = attn.batch_to_head_dim(torch.einsum("bnt,btc->bnc", shares, value))
        return attn.to_out[1](attn.to_out[0](read))


def webui(scene: Scene, *, unet_grads: bool = False) -> Contender:
    """With a frozen UNet, more than the web UI does: its own is not frozen, so that the gradients
    of all its weights are computed, too, and never used (`unet_grads`).
    """
    unet, network = scene.make_unet(), scene.make_network()
    processor: Any = PlainAttention(network)  # diffusers' annotations know only its own
    unet.set_attn_processor(processor)
    unet.enable_gradient_checkpointing()
    unet.train().requires_grad_(unet_grads)

    return Contender(
        scene,
        partial(predict, unet),
        list(network.parameters()),
        network=network,
        idle=[p for p in unet.parameters() if p.requires_grad],
        clips=False,
        loss_reads=1,
    )

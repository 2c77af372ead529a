"""Operations of frozen layers that keep for the backward pass only what they must.

torch keeps the input of a convolution even where its weight is frozen, and with a norm, an
activation and a gate one more tensor for each. The gradient of the input alone needs less: a
convolution's weight, a norm's input, a gate's input; the rest is computed again, pointwise. Values
and gradients are those of torch's own operations, by the same kernels.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hn.diffusion.memory import convolution
from hn.diffusion.memory.convolution import Geometry

Norm = tuple[Tensor, Tensor, int, float]  # weight, bias, groups, eps
_aten: Any = torch.ops.aten
_once: Any = once_differentiable  # its annotations know no methods


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`layer(x)` of x (B, C, h, w), keeping nothing but the weight, whatever that is stored in."""
    geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    if not _is_differentiated(x) or layer.weight.requires_grad:
        return convolution.convolve(x, _as(layer.weight, x), layer.bias, geometry)
    return _Convolution.apply(x, layer.weight, layer.bias, geometry)


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` of x (B, N, D), keeping nothing but the weight, whatever that is stored in."""
    if not _is_differentiated(x) or layer.weight.requires_grad:
        return F.linear(x, _as(layer.weight, x), layer.bias)
    return _Projection.apply(x, layer.weight, layer.bias)


def normalise(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`norm(x)` of x (B, C, ...) in the dtype of x."""
    with _own_dtype(x):
        return nn.GroupNorm.forward(norm, x)


def normalise_tokens(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm(x)` of x (B, N, C) in the dtype of x."""
    with _own_dtype(x):
        return nn.LayerNorm.forward(norm, x)


def convolve_activated(norm: nn.GroupNorm, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`layer(silu(norm(x)))` of x (B, C, h, w), keeping x."""
    with _own_dtype(x):
        if not _is_differentiated(x) or layer.weight.requires_grad or norm.weight.requires_grad:
            return convolve(layer, F.silu(nn.GroupNorm.forward(norm, x)))
        return _ActivatedConvolution.apply(
            x,
            (norm.weight, norm.bias, norm.num_groups, norm.eps),
            layer.weight,
            layer.bias,
            (layer.stride, layer.padding, layer.dilation, layer.groups),
        )


def gate(projected: Tensor) -> Tensor:
    """`values * gelu(gates)` (B, N, C) of both (B, N, 2 C), keeping both."""
    return _Gate.apply(projected)


def project_and_gate(projection: nn.Linear, x: Tensor) -> Tensor:
    """`gate(projection(x))` (B, N, C) of x (B, N, D), keeping x: the product is computed twice."""
    if not _is_differentiated(x) or projection.weight.requires_grad:
        return gate(project(projection, x))
    return _GatedProjection.apply(x, projection.weight, projection.bias)


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.geometry = x.shape, x.dtype, geometry
        return convolution.convolve(x, _as(weight, x), bias, geometry)

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _convolution_backward(grads[0], weight, ctx).to(ctx.dtype), None, None, None


class _ActivatedConvolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Norm, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        normal, mean, deviation = _normal(x, norm)
        ctx.save_for_backward(x, mean, deviation, weight)
        ctx.norm, ctx.shape, ctx.geometry = norm, x.shape, geometry
        return convolution.convolve(F.silu(normal), _as(weight, x), bias, geometry)

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, deviation, weight = ctx.saved_tensors
        grad = _convolution_backward(grads[0], weight, ctx)
        grad = _aten.silu_backward(grad, _normal(x, ctx.norm)[0])
        grad = _aten.native_group_norm_backward(
            grad,
            _laid_out(x),
            mean,
            deviation,
            ctx.norm[0],
            *_counts(x),
            ctx.norm[2],
            (True, False, False),
        )[0]
        return grad, None, None, None, None


class _Projection(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return F.linear(x, _as(weight, x), bias)

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return (grads[0] @ weight.to(grads[0].dtype)).to(ctx.dtype), None, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        values, gates = projected.chunk(2, dim=-1)
        return values * F.gelu(gates)

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _gate_backward(grads[0], ctx.saved_tensors[0])


class _GatedProjection(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        projected = F.linear(x, _as(weight, x), bias)
        ctx.save_for_backward(x, weight, bias)
        values, gates = projected.chunk(2, dim=-1)
        return values * F.gelu(gates)

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        weight = weight.to(grads[0].dtype)
        projected = F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight))
        grad = _gate_backward(grads[0], projected)
        return (grad @ weight).to(x.dtype), None, None


def _gate_backward(grad: Tensor, projected: Tensor) -> Tensor:
    """The gradient (B, N, 2 C) of what was gated, from that (B, N, C) of the result."""
    values, gates = projected.chunk(2, dim=-1)
    found = torch.empty_like(projected)
    for_values, for_gates = found.chunk(2, dim=-1)
    torch.mul(grad, F.gelu(gates), out=for_values)
    for_gates.copy_(_aten.gelu_backward(grad * values, gates))
    return found


def _convolution_backward(grad: Tensor, weight: Tensor, ctx: Any) -> Tensor:
    """The gradient of a convolution's input; of that input only the shape is read."""
    like = grad.new_empty_strided(ctx.shape, (0,) * len(ctx.shape))  # of one element
    return convolution.gradient(grad, like, weight.to(grad.dtype), ctx.geometry)


def _normal(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """X normalised in groups of channels, the means (B, groups) and 1 / deviations (B, groups)."""
    weight, bias, groups, eps = norm
    return _aten.native_group_norm(_laid_out(x), weight, bias, *_counts(x), groups, eps)


def _counts(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _laid_out(x: Tensor) -> Tensor:
    """X in an order that the norm's kernels read: of CPUs also channels last."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _as(weight: Tensor, x: Tensor) -> Tensor:
    """A weight as the computation needs it: one in float8 in the dtype of x, any other as it is."""
    return weight.to(x.dtype) if weight.dtype == torch.float8_e4m3fn else weight


def _is_differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _own_dtype(x: Tensor) -> AbstractContextManager[Any]:
    """Norms return what they are given. Autocast would have them return, and keep, float32 on CUDA;
    their kernels reckon in it anyhow.
    """
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)

"""One attention layer's weights with a stack of linear hypernetworks folded into them.

A layer reads K = W_k (A_k x + a_k) and V = W_v (A_v x + a_v). So W_k A_k and W_v A_v take the place
of its weights. W_k a_k adds the same number to all scores of a query, which the softmax takes out
again; W_v a_v is added to all values alike, whose weights sum to 1, so W_o W_v a_v joins the bias
of the output. Nothing is lost but what the precision of the weights rounds.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from hn.errors import ModelError
from hn.network.surgery.affine import WIDE, Affine

BATCH, QUERIES, TOKENS = 2, 32, 77
HEADS = 8


@dataclass(frozen=True)
class LayerWeights:
    """Weights to_q (E, C), to_k and to_v (E, D), to_out (C, E), and the bias of the output (C,)."""

    to_q: Tensor
    to_k: Tensor
    to_v: Tensor
    to_out: Tensor
    bias: Tensor

    @property
    def dim(self) -> int:
        """The width of the contexts it reads."""
        return self.to_k.shape[1]

    def wide(self) -> Self:
        """In float64 on the CPU."""
        return type(self)(*(getattr(self, f.name).detach().cpu().to(WIDE) for f in fields(self)))

    def stored(self, like: Self, dtype: torch.dtype | None) -> Self:
        """In a precision, or each in that of another. Raises `ModelError` if it has no room."""
        pairs = ((getattr(self, f.name), getattr(like, f.name).dtype) for f in fields(self))
        stored = type(self)(*(tensor.to(dtype or own) for tensor, own in pairs))
        if not all(bool(getattr(stored, f.name).isfinite().all()) for f in fields(self)):
            raise ModelError(
                f"folded weights do not fit into {stored.to_k.dtype}: use a smaller strength, or "
                "load or store them in float32 (--dtype fp32)"
            )
        return stored

    def fold(self, for_k: Affine, for_v: Affine) -> Self:
        """Of weights in float64: read contexts through these from now on."""
        return replace(
            self,
            to_k=self.to_k @ for_k.weight,
            to_v=self.to_v @ for_v.weight,
            bias=self.bias + self.to_out @ (self.to_v @ for_v.bias),
        )

    def attend(self, hidden: Tensor, context_k: Tensor, context_v: Tensor) -> Tensor:
        """Attention of `hidden` (B, N, C) to contexts (B, T, D), without dropout."""
        heads = HEADS if len(self.to_q) % HEADS == 0 else 1
        query, key, value = (
            (x @ weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)
            for x, weight in (
                (hidden, self.to_q), (context_k, self.to_k), (context_v, self.to_v),
            )
        )  # fmt: skip  # (B, H, N or T, E/H)
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return read @ self.to_out.T + self.bias


@dataclass(frozen=True)
class Exactness:
    """Relative errors (root mean square) of a folded layer's outputs on random contexts.

    `algebra`: of folding itself, all in float64. `stored`: after the weights were rounded to the
    precision in which they are kept.
    """

    algebra: float
    stored: float

    def worst(self, other: "Exactness") -> "Exactness":
        """The larger of each."""
        return Exactness(max(self.algebra, other.algebra), max(self.stored, other.stored))


def measure(
    before: LayerWeights, folded: LayerWeights, stored: LayerWeights, for_k: Affine, for_v: Affine
) -> Exactness:
    """Compare a layer that was folded, in float64 and as it is stored, with one that reads through
    its hypernetworks.

    Contexts are drawn as large as a layer norm leaves them.
    """
    generator = torch.Generator().manual_seed(before.dim)
    wide = before.wide()
    hidden = torch.randn(BATCH, QUERIES, wide.to_q.shape[1], generator=generator, dtype=WIDE)
    context = torch.randn(BATCH, TOKENS, before.dim, generator=generator, dtype=WIDE)
    truth = wide.attend(hidden, for_k(context), for_v(context))
    errors = (
        float((weights.attend(hidden, context, context) - truth).norm() / truth.norm())
        for weights in (folded, stored.wide())
    )
    return Exactness(*errors)

"""From prompts to contexts: the tokenizer and CLIP's text model."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hn.diffusion.prompts import Token, chunks, parse
from hn.errors import NumericsError, OptionError

Syntax = Literal["plain", "webui"]
SHOWN = 60  # characters of a prompt in a message
AT_ONCE = 8  # plain prompts


class TextEncoder:
    """Encodes prompts in a syntax: "plain" text, cut at one chunk as diffusers does, or "webui".

    `clip_skip` counts layers from the end: 1 is the last. Raises `OptionError` if there are fewer.
    `length` is that of a chunk with start and end, 77 tokens for Stable Diffusion.
    Names of special tokens, such as <|endoftext|>, are text like any other.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        model: CLIPTextModel,
        *,
        syntax: Syntax = "plain",
        clip_skip: int = 1,
    ) -> None:
        check_clip_skip(clip_skip, model.config.num_hidden_layers)
        self.tokenizer = tokenizer
        self.model = model.requires_grad_(False).eval()
        self.syntax = syntax
        self.clip_skip = clip_skip
        self.length: int = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        self._comma = token_ids(self.tokenizer, [","])[0][-1]
        empty = tokenizer("", padding="max_length", max_length=self.length).input_ids
        self._start, self._end, *self._padding = empty

    def to(self, device: torch.device | str) -> Self:
        """Move the model."""
        model: Any = self.model  # transformers' own annotation knows no device
        model.to(device)
        return self

    @property
    def nbytes(self) -> int:
        """What its weights take."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def context_nbytes(self) -> int:
        """What the context of a prompt of one chunk takes."""
        return self.length * self.model.config.hidden_size * self.model.dtype.itemsize

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> list[Tensor]:
        """The context (T, D) of each prompt; T is `length`, with "webui" a multiple of it."""
        # What is computed for a prompt must not depend on what stands beside it: so many at once,
        # always, or one by one.
        if self.syntax == "webui":
            return [self._encode_weighted(prompt) for prompt in prompts]
        contexts: list[Tensor] = []
        for start in range(0, len(prompts), AT_ONCE):
            chunk = prompts[start : start + AT_ONCE]
            padding = chunk[-1:] * (AT_ONCE - len(chunk))
            contexts += self._states(self._cut(chunk + padding))[: len(chunk)]
        return contexts

    def chunks(self, prompt: str) -> list[list[Token]]:
        """The tokens of a prompt in the web UI's syntax, without start, end and padding."""
        sections = []
        for runs in parse(prompt):
            numbers = token_ids(self.tokenizer, [run.text for run in runs]) if runs else []
            pairs = zip(runs, numbers, strict=True)
            sections.append([Token(number, run.weight) for run, ids in pairs for number in ids])
        return chunks(sections, self.length - 2, self._comma)

    def excess_tokens(self, prompt: str) -> int:
        """How many tokens of a plain prompt do not fit."""
        return max(0, len(token_ids(self.tokenizer, [prompt])[0]) + 2 - self.length)

    def remarks(self, prompts: list[str]) -> list[str]:
        """What should be known about these prompts: which are long, which name special tokens."""
        return [*self._on_length(prompts), *self._on_special_tokens(prompts)]

    def _on_length(self, prompts: list[str]) -> list[str]:
        if self.syntax == "plain":
            long = [prompt for prompt in prompts if self.excess_tokens(prompt)]
            outcome = f"are cut at {self.length} tokens"
        else:
            long = [prompt for prompt in prompts if len(self.chunks(prompt)) > 1]
            outcome = f"take more than one chunk of {self.length - 2} tokens"
        if not long:
            return []
        longest = max(long, key=len)[:SHOWN]
        return [f"{len(long)} of {len(prompts)} prompts {outcome}; the longest begins {longest!r}"]

    def _on_special_tokens(self, prompts: list[str]) -> list[str]:
        found = [
            prompt
            for prompt in prompts
            if self.tokenizer(prompt, add_special_tokens=False).input_ids
            != token_ids(self.tokenizer, [prompt])[0]
        ]
        if not found:
            return []
        return [
            f"{len(found)} of {len(prompts)} prompts name a special token, which is read as "
            f"text; the first begins {found[0][:SHOWN]!r}"
        ]

    def _cut(self, prompts: list[str]) -> Tensor:
        """Token numbers (B, T) of plain prompts, cut and padded as diffusers does."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            split_special_tokens=True,
            return_tensors="pt",
        )
        return tokens.input_ids

    def _states(self, ids: Tensor) -> Tensor:
        """What the UNet reads (B, T, D) for token numbers (B, T)."""
        ids = ids.to(self.model.device)
        if self.clip_skip == 1:
            return self.model(ids).last_hidden_state
        states = self.model(ids, output_hidden_states=True).hidden_states[-self.clip_skip]
        return self._final_norm(states)

    @property
    def _final_norm(self) -> Any:
        """Found by name: releases of transformers keep it in different places."""
        modules = self.model.named_modules()
        return next(module for name, module in modules if name.endswith("final_layer_norm"))

    def _encode_weighted(self, prompt: str) -> Tensor:
        """The context (N * T, D) of a prompt of N chunks. Raises `NumericsError`."""
        framed = [self._framed(chunk) for chunk in self.chunks(prompt)]
        states = self._states(torch.tensor([[token.id for token in chunk] for chunk in framed]))
        weights = torch.tensor(
            [[token.weight for token in chunk] for chunk in framed], device=states.device
        )
        context = emphasise(states, weights)  # (N, T, D)
        if not context.isfinite().all():
            raise NumericsError(
                f"the context of the prompt {prompt[:SHOWN]!r} is not finite; its weights "
                "may be too large"
            )
        return context.flatten(0, 1)

    def _framed(self, chunk: list[Token]) -> list[Token]:
        """A chunk with start, end and padding, which weigh 1."""
        after = [Token(number, 1.0) for number in (self._end, *self._padding[len(chunk) :])]
        return [Token(self._start, 1.0), *chunk, *after]


def check_clip_skip(clip_skip: int, layers: int) -> None:
    """Raises `OptionError` if a text encoder has fewer `layers`."""
    if not 1 <= clip_skip <= layers:
        raise OptionError(
            f"clip_skip must be from 1 to {layers}, the layers of this text encoder; found "
            f"{clip_skip}"
        )


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """Token numbers of texts, without start and end; a special token's name is text."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids


def emphasise(states: Tensor, weights: Tensor) -> Tensor:
    """Weigh each token's vector in states (N, T, D) by weights (N, T); keep each chunk's mean.

    The web UI's "Original" emphasis, computed in float32 and returned in the dtype of `states`.
    """
    before = states.float()
    after = before * weights.float()[..., None]  # (N, T, D)
    restored = before.mean(dim=(1, 2), keepdim=True) / after.mean(dim=(1, 2), keepdim=True)
    # An untrained model's mean can be 0: what is not weighed must not become 0/0.
    unweighted = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(unweighted, before, after * restored).to(states.dtype)


def stack_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts (T_i, D) as one batch (B, T, D), T the longest; others repeat their last vector.

    The web UI's rule. What a prompt's attention reads therefore depends on how long the longest
    prompt beside it is.
    """
    length = max(len(context) for context in contexts)
    return torch.stack(
        [
            context
            if len(context) == length
            else torch.cat([context, context[-1:].expand(length - len(context), -1)])
            for context in contexts
        ]
    )

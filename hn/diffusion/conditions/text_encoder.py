"""From prompts to contexts: the tokenizer and CLIP's text model, or two of each."""

from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.prompts import Token, chunks, parse
from hn.errors import ModelError, NumericsError, OptionError

Syntax = Literal["plain", "webui"]
SHOWN = 60  # characters of a prompt in a message
AT_ONCE = 8  # plain prompts


class TextEncoder:
    """Encodes prompts in a syntax: "plain" text, cut at one chunk as diffusers does, or "webui".

    `clip_skip` counts layers from the end: 1 is the last. Raises `OptionError` if there are fewer.
    `penultimate`: read as Stable Diffusion XL was trained, from the last layer but one, and without
    the norm after the last; `clip_skip` 2 is that, and 1 is no other.
    `length` is that of a chunk with start and end, 77 tokens for Stable Diffusion.
    Names of special tokens, such as <|endoftext|>, are text like any other.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        model: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        syntax: Syntax = "plain",
        clip_skip: int = 1,
        penultimate: bool = False,
    ) -> None:
        check_clip_skip(clip_skip, model.config.num_hidden_layers)
        self.tokenizer = tokenizer
        self.model = model.requires_grad_(False).eval()
        self.syntax = syntax
        self.clip_skip = clip_skip
        self.penultimate = penultimate
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
    def encoders(self) -> tuple[Self]:
        """Itself; of Stable Diffusion XL there are two."""
        return (self,)

    @property
    def nbytes(self) -> int:
        """What its weights take."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def context_nbytes(self) -> int:
        """What the context of a prompt of one chunk takes, with its pooled text if it has one."""
        projection: Any = getattr(self.model, "text_projection", None)
        pooled = 0 if projection is None else projection.out_features
        return (self.length * self.model.config.hidden_size + pooled) * self.model.dtype.itemsize

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> list[Condition]:
        """The context (1, T, D) of each prompt; T is `length`, with "webui" a multiple of it.

        A model with a projection adds the pooled text (1, P), of the first chunk and without
        weights, which is the web UI's rule.
        """
        # What is computed for a prompt must not depend on what stands beside it: so many at once,
        # always, or one by one.
        if self.syntax == "webui":
            return [self._encode_weighted(prompt) for prompt in prompts]
        found: list[Condition] = []
        for start in range(0, len(prompts), AT_ONCE):
            chunk = prompts[start : start + AT_ONCE]
            padding = chunk[-1:] * (AT_ONCE - len(chunk))
            states = self._states(self._cut(chunk + padding))
            found += [states[row : row + 1] for row in range(len(chunk))]
        return found

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

    def _states(self, ids: Tensor) -> Condition:
        """What the UNet reads (B, T, D) for token numbers (B, T)."""
        ids = ids.to(self.model.device)
        if self.clip_skip == 1 and not self.penultimate:
            return Condition(context=self.model(ids).last_hidden_state)
        read = self.model(ids, output_hidden_states=True)
        if self.penultimate:
            states = read.hidden_states[-max(self.clip_skip, 2)]
            return Condition(context=states, pooled=getattr(read, "text_embeds", None))
        return Condition(context=self._final_norm(read.hidden_states[-self.clip_skip]))

    @property
    def _final_norm(self) -> Any:
        """Found by name: releases of transformers keep it in different places."""
        modules = self.model.named_modules()
        return next(module for name, module in modules if name.endswith("final_layer_norm"))

    def _encode_weighted(self, prompt: str) -> Condition:
        """The context (1, N * T, D) of a prompt of N chunks. Raises `NumericsError`."""
        framed = [self._framed(chunk) for chunk in self.chunks(prompt)]
        states = self._states(torch.tensor([[token.id for token in chunk] for chunk in framed]))
        weights = torch.tensor(
            [[token.weight for token in chunk] for chunk in framed], device=self.model.device
        )
        context = emphasise(states.context, weights)  # (N, T, D)
        if not context.isfinite().all():
            raise NumericsError(
                f"the context of the prompt {prompt[:SHOWN]!r} is not finite; its weights "
                "may be too large"
            )
        pooled = None if states.pooled is None else states.pooled[:1]
        return Condition(context=context.flatten(0, 1)[None], pooled=pooled)

    def _framed(self, chunk: list[Token]) -> list[Token]:
        """A chunk with start, end and padding, which weigh 1."""
        after = [Token(number, 1.0) for number in (self._end, *self._padding[len(chunk) :])]
        return [Token(self._start, 1.0), *chunk, *after]


class TextPair:
    """The two text encoders of Stable Diffusion XL, asked as one.

    Their contexts stand side by side, the pooled text is that of the second. Raises `ModelError` if
    their tokenizers differ in more than the padding.
    """

    def __init__(self, first: TextEncoder, second: TextEncoder) -> None:
        same = first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
        if not same or first.length != second.length:
            raise ModelError("the two text encoders read different tokens: they are of two models")
        self.encoders = first, second
        self.syntax, self.clip_skip, self.length = first.syntax, first.clip_skip, first.length
        self.excess_tokens, self.remarks = first.excess_tokens, first.remarks

    def to(self, device: torch.device | str) -> Self:
        """Move both."""
        for encoder in self.encoders:
            encoder.to(device)
        return self

    @property
    def nbytes(self) -> int:
        """What their weights take."""
        return sum(encoder.nbytes for encoder in self.encoders)

    @property
    def context_nbytes(self) -> int:
        """What the context of a prompt of one chunk takes, with its pooled text."""
        return sum(encoder.context_nbytes for encoder in self.encoders)

    def encode(self, prompts: list[str]) -> list[Condition]:
        """The context (1, T, D1 + D2) and pooled text (1, P) of each prompt."""
        pairs = zip(*(encoder.encode(prompts) for encoder in self.encoders), strict=True)
        return [
            Condition(context=torch.cat([one.context, two.context], -1), pooled=two.pooled)
            for one, two in pairs
        ]


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

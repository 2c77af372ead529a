"""What the attention layers of a UNet read while it draws, and what hypernetworks add to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic

import torch
from torch import Tensor

from hn.diffusion.attending.places import place_of
from hn.diffusion.attending.strength import Choices, resolve
from hn.diffusion.attention import attention_layers
from hn.diffusion.surgery.noted import Begin, Kept, Noted, Texts
from hn.network.module import transform_context

WORDS = (
    ("a photo of", "a painting of", "a pencil sketch of", "a close-up of", "an illustration of"),
    (
        "a man", "a woman", "a child", "a dog", "a horse", "a bird", "a tree", "a house", "a car",
        "a ship", "a flower", "a mountain", "a river", "a bowl of fruit", "a street", "a robot",
        "a castle", "a dragon", "a chair", "a book", "a crowd of people", "a bridge", "a lamp",
        "a face with long hair",
    ),
    ("red", "blue and gold", "old", "very large", "broken", "shining", "made of wood", "white"),
    (
        "in the rain", "at night", "in a forest", "on a table", "by the sea", "in the snow",
        "in a dark room", "under a blue sky", "in a crowded city", "in soft light, highly detailed",
    ),
)  # fmt: skip
PROMPTS = (
    "a photo of a harbour in the morning fog",
    "a red bicycle leaning against a brick wall",
    "a watercolour of a village in the hills",
    "a portrait of a young woman in a green coat, soft light",
    "an old map of an island, ink on paper",
    "a fox running through deep snow",
    "a kitchen table with bread, cheese and a knife",
    "a futuristic city at sunset, wide angle",
    "a close-up of the eye of a bird",
    "a knight on a horse before a burning castle, oil painting",
    "two children playing at the beach",
    "a cup of coffee seen from above",
    "a steam train crossing a stone bridge",
    "a dense forest with rays of light",
    "a cartoon of a robot watering flowers",
    "a white cat on a black sofa",
)


class Probe(Generic[Kept]):
    """Notes what every layer reads, and what a stack would add to it, by the layers' names in the
    UNet; `make` begins the notes of a layer, of its width and device.

    Each sample of each forward counts once in every layer. Tokens of a text count by the attention
    that they get: that is how much a mistake about them matters.
    """

    def __init__(
        self, unet: Any, stack: Choices, make: Callable[[int, torch.device], Kept]
    ) -> None:
        self._layers = attention_layers(unet)
        stacks = resolve(stack, None, map(place_of, self._layers))
        self._stacks = {name: stacks[place_of(name)] for name in self._layers}
        texts = {id(it): Texts(it) for it in stacks.values()}  # once for all layers alike
        self._texts = {name: texts[id(it)] for name, it in self._stacks.items()}
        self._begin: dict[str, Begin[Kept]] = {
            name: partial(make, layer.to_k.in_features, _wide_device(layer.to_k.weight))
            for name, layer in self._layers.items()
        }
        self._noted = Noted(self._begin, self._texts)

    def taken(self) -> Noted[Kept]:
        """What was noted; from now on anew."""
        taken, self._noted = self._noted, Noted(self._begin, self._texts)
        return taken

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the forwards within."""
        hooks = [
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Any:
        def note(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            text = kwargs.get("encoder_hidden_states")
            if text is None:
                self._note_picture(name, hidden)
            else:
                self._note_text(name, layer, hidden, text)

        return note

    @torch.no_grad()
    def _note_picture(self, name: str, hidden: Tensor) -> None:
        for_k, for_v = transform_context(hidden, self._stacks[name])  # (B, N, D)
        added = {"k": (for_k - hidden).flatten(0, 1), "v": (for_v - hidden).flatten(0, 1)}
        batch, tokens, _ = hidden.shape
        weights = torch.full((batch * tokens,), 1 / tokens, device=hidden.device)
        self._noted.of_pictures(name).add(hidden.flatten(0, 1), added, weights)

    @torch.no_grad()
    def _note_text(self, name: str, layer: Any, hidden: Tensor, text: Tensor) -> None:
        places, for_k = self._texts[name].note(text)
        self._noted.note_text(name, places, _attention(layer, hidden, for_k))


def _attention(layer: Any, hidden: Tensor, context: Tensor) -> Tensor:
    """The share of attention (B, T) that each token of contexts (B, T, D) gets, over all heads."""
    query, key = (
        x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, H, N or T, C/H)
        for x in (layer.to_q(hidden), layer.to_k(context))
    )
    scores = (query @ key.transpose(2, 3)).float() * layer.scale
    return scores.softmax(-1).mean((1, 2))


def _wide_device(weight: Tensor) -> torch.device:
    """Where sums in float64 can be kept."""
    return torch.device("cpu") if weight.device.type == "mps" else weight.device

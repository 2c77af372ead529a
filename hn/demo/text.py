"""The demo's tokenizer and text encoder, learnt from the captions alone."""

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hn.demo.pictures import PALETTE, PLACES, SHAPES, SIZES, Scene, caption, sample_known_scene
from hn.demo.rates import cosine

TOKENS = 32  # enough for the longest caption the grammar makes, twice
CONTEXT_DIM = (
    80  # unlike every channel width of the UNet, so that each hypernetwork pair has one job
)
EMPTY_CAPTIONS = 0.1  # for classifier-free guidance
VARIANTS = 0.15  # chance of an outline, and of night
# What a caption may name: shape, colour, ground, size, place, and two variants.
QUESTIONS: list[list[str]] = [
    list(SHAPES),
    list(PALETTE),
    list(PALETTE),
    list(SIZES),
    list(PLACES),
    ["outlined"],
    ["night"],
]


def make_tokenizer(folder: Path, seed: int) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) that makes one token of each word of the captions."""
    if not folder.exists():
        rng = Random(seed)
        corpus = [caption(sample_known_scene(rng, variants=0.5), rng) for _ in range(4000)]
        learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        learner.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=700, initial_alphabet=sorted(letters), end_of_word_suffix="</w>"
        )
        learner.train_from_iterator(corpus, trainer)
        learnt = models_json(learner)
        merges: Any = [tuple(pair) for pair in learnt["merges"]]
        # CLIP's order: the bytes, the bytes that end a word, the merges, the two marks.
        words = sorted(letters) + [letter + "</w>" for letter in sorted(letters)]
        words += [left + right for left, right in merges]
        vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
        for mark in ("<|startoftext|>", "<|endoftext|>"):
            vocabulary[mark] = len(vocabulary)
        CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS).save_pretrained(
            folder
        )
    return CLIPTokenizer.from_pretrained(folder)


def models_json(tokenizer: Tokenizer) -> dict:
    """The BPE model of a tokenizer as its JSON description."""
    return json.loads(tokenizer.to_str())["model"]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers (B, TOKENS), padded with the end mark as SD 1 does."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def train_text_encoder(
    tokenizer: CLIPTokenizer, file: Path, seed: int, steps: int = 1500
) -> CLIPTextModel:
    """A two-layer CLIP text model, taught to say from its last states what the caption names."""
    torch.manual_seed(seed)
    encoder = _make_text_encoder(tokenizer)
    if file.exists():
        encoder.load_state_dict(torch.load(file, weights_only=True))
        return encoder.eval()
    heads = nn.ModuleList(nn.Linear(CONTEXT_DIM, len(answers) + 1) for answers in QUESTIONS)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    rng = Random(seed + 1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * cosine(step, steps)
        scenes, words = _captioned(rng, 128)
        # The end mark and its repetitions: they have seen the whole caption.
        states = encoder(tokenize(tokenizer, words)).last_hidden_state[:, -12:]
        answers = torch.tensor(
            [_answers(scene, text) for scene, text in zip(scenes, words, strict=True)]
        )
        losses = [
            F.cross_entropy(head(states).mean(1), answers[:, k]) for k, head in enumerate(heads)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"text encoder: step {step}, loss {loss.item():.4f}", flush=True)
    torch.save(encoder.state_dict(), file)
    return encoder.eval()


def _make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    marks: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CONTEXT_DIM,
        intermediate_size=4 * CONTEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=CONTEXT_DIM,
        **marks,
    )
    return CLIPTextModel(config)


def _captioned(rng: Random, count: int) -> tuple[list[Scene], list[str]]:
    scenes = [sample_known_scene(rng, variants=VARIANTS) for _ in range(count)]
    return scenes, [
        "" if rng.random() < EMPTY_CAPTIONS else caption(scene, rng) for scene in scenes
    ]


def _answers(scene: Scene, text: str) -> list[int]:
    """The number of the right answer to each question; 0 where the caption does not say."""

    def said(word: str, answers: list[str]) -> int:
        return 1 + answers.index(word) if word in text else 0

    return [
        said(scene.shape, list(SHAPES)),
        1 + list(PALETTE).index(scene.colour) if text else 0,
        1 + list(PALETTE).index(scene.background) if text else 0,
        said(scene.size, list(SIZES)),
        said(scene.place, list(PLACES)),
        int(", outlined" in text),
        int(", at night" in text),
    ]

"""A random BLIP of a few thousand weights, with its processor, saved as the hub's are."""

from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

_TEXT = "a red blue green star heart cat dog house on of with two small large"
WORDS = _TEXT.split()
_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make(folder: Path) -> Path:
    """As in the published ones, the start mark is a number that the tokenizer does not know."""
    words = [*_MARKS, *WORDS]
    text = {
        "vocab_size": len(words) + 1,
        "encoder_hidden_size": 16,
        "max_position_embeddings": 64,
        "bos_token_id": len(words),
        "eos_token_id": _MARKS.index("[SEP]"),
        "sep_token_id": _MARKS.index("[SEP]"),
        "pad_token_id": _MARKS.index("[PAD]"),
    }
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "initializer_range": 1.0,  # else every picture is described alike
    }
    config = BlipConfig(
        text_config=size | text, vision_config=size | {"image_size": 16, "patch_size": 4}
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():  # no mark but the end is ever likely
        bias = model.text_decoder.cls.predictions.decoder.bias
        bias[[0, 1, 2, 4, len(words)]] = -1e4
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    image_processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    BlipProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder

"""Contexts of prompts, with the demo's text encoder: two layers, chunks of 30 + 2 tokens."""

import shutil

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from hn import demo
from hn.diffusion.conditions.condition import stack_contexts
from hn.diffusion.conditions.text_encoder import TextEncoder, emphasise
from hn.errors import NumericsError, OptionError
from tests import golden

SIZE = 30
PROMPTS = ["a large red circle on a blue background", "", "red " * 40, "(red:1.3) [BREAK] star"]


def make(*, dtype=torch.float32, pad_token=None, **settings) -> TextEncoder:
    changes = {} if pad_token is None else {"pad_token": pad_token}
    tokenizer = CLIPTokenizer.from_pretrained(demo.MODEL / "tokenizer", **changes)
    model = CLIPTextModel.from_pretrained(demo.MODEL / "text_encoder", dtype=dtype)
    return TextEncoder(tokenizer, model, **settings)


@pytest.fixture(scope="module")
def plain():
    return make()


@pytest.fixture(scope="module")
def webui():
    return make(syntax="webui")


def contexts(encoder, prompts):
    return [found.context[0] for found in encoder.encode(prompts)]


def ids_of(encoder, text):
    return encoder.tokenizer(text, add_special_tokens=False).input_ids


def framed(encoder, ids):
    start, end, pad = (
        getattr(encoder.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    )
    return [start, *ids, end, *[pad] * (SIZE - len(ids))]


def states(encoder, rows):
    with torch.no_grad():
        return encoder.model(torch.tensor(rows)).last_hidden_state


def test_plain_prompts_have_the_bits_of_diffusers_formula(plain):
    tokens = plain.tokenizer(
        PROMPTS,
        padding="max_length",
        max_length=plain.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = plain.model(tokens.input_ids).last_hidden_state
    found = contexts(plain, PROMPTS)
    assert [context.shape for context in found] == [(SIZE + 2, 80)] * len(PROMPTS)
    assert torch.equal(torch.stack(found), expected)


@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_a_short_prompt_without_marks_is_the_same_in_both_syntaxes(plain, webui, prompt):
    assert torch.equal(contexts(webui, [prompt])[0], contexts(plain, [prompt])[0])


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("red " * SIZE, [30]),
        ("red " * (SIZE + 1), [30, 1]),
        ("red " * 14 + ", " + "red " * 15, [30]),
        ("red " * 14 + ", " + "red " * 16, [15, 16]),
        ("red " * 10 + ", " + "red " * 20, [11, 20]),  # the comma is the 20th from the end
        ("red " * 9 + ", " + "red " * 21, [30, 1]),  # the 21st
        ("red " * SIZE + ", red", [30, 2]),
        ("red, " * 40, [30, 30, 20]),
        ("red BREAK star", [1, 1]),
        ("red " * SIZE + "BREAK star", [30, 1]),
        ("red BREAK", [1]),
        ("BREAKFAST red", [10]),
    ],
)
def test_long_prompts_take_several_chunks(webui, prompt, lengths):
    assert [len(chunk) for chunk in webui.chunks(prompt)] == lengths
    (context,) = contexts(webui, [prompt])
    assert context.shape == (len(lengths) * (SIZE + 2), 80)


def test_each_chunk_is_encoded_by_itself(webui):
    first, second = ids_of(webui, "red " * 15 + ","), ids_of(webui, "blue " * 20)
    (context,) = contexts(webui, ["red " * 15 + ", " + "blue " * 20])
    expected = states(webui, [framed(webui, first), framed(webui, second)])
    assert torch.equal(context, expected.flatten(0, 1))


def test_padding_is_the_tokenizers_own():
    """Stable Diffusion 2 pads with token 0 after the end token."""
    encoder = make(syntax="webui", pad_token="!")
    assert encoder.tokenizer.pad_token_id == 0
    row = framed(encoder, ids_of(encoder, "red star"))
    assert row[3:6] == [encoder.tokenizer.eos_token_id, 0, 0]
    assert torch.equal(contexts(encoder, ["red star"])[0], states(encoder, [row])[0])


def test_weights_multiply_vectors_and_each_chunk_keeps_its_mean(webui):
    prompt = "a (large:1.5) [red] star BREAK on (a blue:0.3) background BREAK a star"
    (context,) = contexts(webui, [prompt])
    sections = [
        [("a", 1.0), ("large", 1.5), ("red", 1 / 1.1), ("star", 1.0)],
        [("on", 1.0), ("a blue", 0.3), ("background", 1.0)],
        [("a star", 1.0)],
    ]
    for number, section in enumerate(sections):
        ids = [token for text, _ in section for token in ids_of(webui, text)]
        weights = [w for text, w in section for _ in ids_of(webui, text)]
        weights = torch.tensor([1.0, *weights, *[1.0] * (SIZE + 1 - len(ids))]).double()
        before = states(webui, [framed(webui, ids)])[0].double()
        after = before * weights[:, None]
        expected = after * (before.mean() / after.mean())
        found = context[number * (SIZE + 2) : (number + 1) * (SIZE + 2)].double()
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
        assert found.mean().item() == pytest.approx(before.mean().item(), rel=1e-3)
        changed = (found - before).abs().amax() > 1e-3
        assert bool(changed) == (number < 2)


def test_weights_of_one_change_no_bit():
    values = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    values[0] = torch.tensor([1.0, -1.0, 2.0, -2.0])  # mean 0
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(emphasise(values.to(dtype), torch.ones(3, 5)), values.to(dtype))


def test_half_precision_stays(webui):
    (context,) = contexts(make(syntax="webui", dtype=torch.bfloat16), ["a (red:1.3) star"])
    assert context.dtype == torch.bfloat16
    reference = contexts(webui, ["a (red:1.3) star"])[0]
    assert float((context.float() - reference).norm() / reference.norm()) < 0.05


def test_a_weight_beyond_all_measure_names_the_prompt(webui):
    with pytest.raises(NumericsError, match=r"prompt 'a \(red:1000.*not finite"):
        contexts(webui, [f"a (red:1{'0' * 60}) star"])


@pytest.mark.parametrize("syntax", ["plain", "webui"])
def test_what_a_prompt_becomes_does_not_depend_on_its_neighbours(syntax):
    encoder = make(syntax=syntax)
    together = contexts(encoder, [*PROMPTS, "a star BREAK a heart"])
    for prompt, context in zip(PROMPTS, together, strict=False):
        tolerance = 0 if syntax == "webui" else 1e-5
        torch.testing.assert_close(contexts(encoder, [prompt])[0], context, rtol=0, atol=tolerance)


@pytest.mark.parametrize("syntax", ["plain", "webui"])
def test_clip_skip_2_is_the_encoder_without_its_last_layer(syntax):
    """The final layer norm follows the layer that is read."""
    model = CLIPTextModel.from_pretrained(demo.MODEL / "text_encoder", num_hidden_layers=1)
    tokenizer = CLIPTokenizer.from_pretrained(demo.MODEL / "tokenizer")
    shorter = TextEncoder(tokenizer, model, syntax=syntax)
    skipping, whole = make(syntax=syntax, clip_skip=2), make(syntax=syntax)
    for prompt in PROMPTS:
        (found,) = contexts(skipping, [prompt])
        assert torch.equal(found, contexts(shorter, [prompt])[0])
        assert not torch.allclose(found, contexts(whole, [prompt])[0], atol=0.01)


def test_clip_skip_reads_hidden_states_from_the_end(plain):
    rows = torch.tensor([framed(plain, ids_of(plain, "red star"))])
    with torch.no_grad():
        hidden = plain.model(rows, output_hidden_states=True).hidden_states
        for skip in (1, 2):
            expected = plain.model.final_layer_norm(hidden[-skip])[0]
            assert torch.equal(contexts(make(clip_skip=skip), ["red star"])[0], expected)


@pytest.mark.parametrize("skip", [0, 3])
def test_clip_skip_beyond_the_layers_is_refused(skip):
    with pytest.raises(OptionError, match=f"clip_skip must be from 1 to 2, .*; found {skip}"):
        make(clip_skip=skip)


@pytest.mark.parametrize("syntax", ["plain", "webui"])
def test_names_of_special_tokens_are_text(syntax):
    """As special tokens they would end the prompt there, for what reads it up to the end token."""
    encoder = make(syntax=syntax)
    prompt = "red <|endoftext|> star"
    special = encoder.tokenizer(prompt).input_ids
    assert special.count(encoder.tokenizer.eos_token_id) == 2
    row = encoder.tokenizer(prompt, split_special_tokens=True, add_special_tokens=False).input_ids
    assert encoder.tokenizer.eos_token_id not in row
    assert torch.equal(contexts(encoder, [prompt])[0], states(encoder, [framed(encoder, row)])[0])
    assert encoder.remarks(["red", prompt, "<|startoftext|>"]) == [
        "2 of 3 prompts name a special token, which is read as text; the first begins "
        "'red <|endoftext|> star'"
    ]


def test_remarks_count_and_name_long_prompts(plain, webui):
    fits, long = "red " * SIZE, "blue " * (SIZE + 1)
    assert plain.excess_tokens(fits) == 0
    assert plain.excess_tokens(long) == 1
    begins = f"the longest begins '{'blue ' * 12}'"
    assert plain.remarks([fits, long]) == [f"1 of 2 prompts are cut at 32 tokens; {begins}"]
    assert webui.remarks([fits, long]) == [
        f"1 of 2 prompts take more than one chunk of 30 tokens; {begins}"
    ]
    assert plain.remarks([fits]) == webui.remarks([fits]) == []


def test_a_tokenizer_without_a_length_gets_that_of_the_model(plain, tmp_path):
    shutil.copy(demo.MODEL / "tokenizer/tokenizer.json", tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length > 1e9
    encoder = TextEncoder(tokenizer, plain.model)
    assert encoder.length == 32
    assert torch.equal(contexts(encoder, ["red"])[0], contexts(plain, ["red"])[0])


def test_contexts_are_stacked_as_the_web_ui_stacks_them():
    tensors = golden.read_tensors("attention/stack_conds.safetensors")
    cases = {name.split("/")[1] for name in tensors}
    assert len(cases) == 4
    for case in cases:
        inputs = sorted(name for name in tensors if name.startswith(f"stack_conds/{case}/in"))
        stacked = stack_contexts([tensors[name] for name in inputs])
        assert torch.equal(stacked, tensors[f"stack_conds/{case}/out"])

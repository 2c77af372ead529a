"""Stable Diffusion XL and its refiner: what they are told, held against diffusers, and runs."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image

import hn
from hn.config import DataConfig
from hn.data.batches import Batches, Layout
from hn.data.cache.contexts import Contexts
from hn.data.cache.index import Index
from hn.data.cache.latents import Latents
from hn.data.cache.store import Store
from hn.data.pictures.decoding import Example
from hn.data.pictures.framing import Framing, to_tensor
from hn.data.pictures.images import read_folder
from hn.data.streaming.samples import Samples
from hn.data.words.prompts import Prompts
from hn.diffusion.attention import attach
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.views import View, time_ids
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.generation.samplers import make_scheduler
from hn.diffusion.memory.plan import Plan, blocks_of
from hn.diffusion.pipeline import Painter
from hn.errors import DataError, ModelError, OptionError
from hn.hub.selection import select
from hn.network.module import Hypernetwork
from tests import caches, runs, tiny

PROMPTS = ["a red star", "", "large " * 40]


@pytest.fixture(scope="module")
def base(xl):
    return BaseModel.load(str(xl))


@pytest.fixture(scope="module")
def refined(refiner):
    return BaseModel.load(str(refiner))


def pipeline(folder):
    """Diffusers' own, silent."""
    kind = StableDiffusionXLImg2ImgPipeline
    if (folder / "text_encoder").exists():
        kind = StableDiffusionXLPipeline
    own = kind.from_pretrained(folder)
    own.set_progress_bar_config(disable=True)
    return own


def net_of(base, **settings):
    net = Hypernetwork.create(base.dims, activation_func="mish", seed=1, **settings)
    for tensor in net.parameters():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
    return net


@pytest.mark.parametrize("which", ["xl", "refiner"])
def test_prompts_are_encoded_as_diffusers_does(which, request):
    folder = request.getfixturevalue(which)
    base, own = BaseModel.load(str(folder)), pipeline(folder)
    with torch.no_grad():
        texts, negative, pooled, _ = own.encode_prompt(PROMPTS, device="cpu")
    found = Condition.join(base.encode_prompts(PROMPTS))
    torch.testing.assert_close(found.context, texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)
    nothing = base.negative(found[1:2], "")
    torch.testing.assert_close(nothing.context, negative[1:2], rtol=0, atol=1e-6)
    assert bool(nothing.context.any()) == (which == "refiner")
    assert torch.equal(base.negative(found[:1], "a red star").context, found.context[:1])


def test_clip_skip_counts_from_what_the_model_was_trained_with(xl, base):
    """2 is the last layer but one, which is where 1 is; diffusers counts from there, from 0."""
    own = pipeline(xl)
    for clip_skip, theirs in ((1, None), (2, 0), (3, 1)):
        found = BaseModel.load(str(xl), clip_skip=clip_skip).encode_prompts(PROMPTS[:1])[0]
        with torch.no_grad():
            texts, _, pooled, _ = own.encode_prompt(PROMPTS[:1], device="cpu", clip_skip=theirs)
        torch.testing.assert_close(found.context, texts, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)
    with pytest.raises(OptionError, match=r"clip_skip must be from 1 to 3, .*; found 4"):
        BaseModel.load(str(xl), clip_skip=4)


def test_emphasis_weighs_each_context_and_the_first_chunk_is_pooled(xl, base):
    webui = BaseModel.load(str(xl), prompt_syntax="webui")
    (found,) = webui.encode_prompts(["a (red:1.5) star BREAK a heart"])
    first, second = webui.encode_prompts(["a red star", "a heart"])
    assert found.context.shape == (1, 64, sum(tiny.XL_TEXT_DIMS))
    torch.testing.assert_close(found.pooled, first.pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.context[:, 32:], second.context, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.context, base.encode_prompts(["a red star"])[0].context)
    weights = torch.ones(32, 1)
    red = base.text_encoder.encoders[0].tokenizer(["a", "a red"], add_special_tokens=False)
    weights[1 + len(red.input_ids[0]) : 1 + len(red.input_ids[1])] = 1.5
    for part in (slice(0, 24), slice(24, 40)):  # of each text encoder
        before = first.context[0, :, part]
        expected = before * weights * (before.mean() / (before * weights).mean())
        torch.testing.assert_close(found.context[0, :32, part], expected)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"projection_class_embeddings_input_dim": 60 + 1}, "input_dim 61, but .* make 68"),
        ("unet", {"cross_attention_dim": 32}, "cross_attention_dim 32, .* make 40 .*24 [+] 16"),
        ("unet", {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ("unet", {"addition_time_embed_dim": None}, "lack a number"),
        ("scheduler", {"sigma_data": 0.5}, "continuous noise"),
        ("vae", {"latents_mean": [0.0] * 4}, "shifts its latents"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(xl, tmp_path, part, change, words):
    folder = shutil.copytree(xl, tmp_path / "xl")
    (path,) = (folder / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=words):
        BaseModel.load(str(folder))


def test_a_folder_without_its_second_text_encoder_is_refused(xl, tmp_path):
    folder = shutil.copytree(xl, tmp_path / "xl")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ModelError, match="has no folder text_encoder_2; a diffusers model has"):
        BaseModel.load(str(folder))


def test_its_euler_scheduler_becomes_ddim_with_the_same_noise(xl, base, tmp_path):
    """What a scheduler does not say is as in all Stable Diffusions: DDIM's own would clip."""
    own = pipeline(xl).scheduler
    torch.testing.assert_close(base.alphas_cumprod, own.alphas_cumprod)
    folder = shutil.copytree(xl, tmp_path / "xl")
    path = folder / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in config if "sample" not in key}))
    for found in (base.scheduler, BaseModel.load(str(folder)).scheduler):
        assert found.config["timestep_spacing"] == "leading"
        assert not found.config["clip_sample"] and found.config["steps_offset"] == 1


def trained_script_ids(size, resolution):
    """By the formula of diffusers' train_text_to_image_sdxl.py, its crop centred."""
    width, height = size
    scale = resolution / min(width, height)
    across, down = int(width * scale), int(height * scale)
    top = max(0, round((down - resolution) / 2.0))
    left = max(0, round((across - resolution) / 2.0))
    return [height, width, top, left, resolution, resolution]


SIZES = [(16, 16), (24, 16), (16, 48), (40, 32), (8, 8), (64, 16)]


def saved(folder, sizes):
    """Pictures of these sizes; the last one lies on its side in its file."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        picture = Image.new("RGB", (width, height), (40 * number, 99, 9))
        exif = picture.getexif()
        if number == len(sizes) - 1:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
            exif[0x112] = 6  # to be turned back
        picture.save(folder / f"{number}.png", exif=exif)
        (folder / f"{number}.txt").write_text("a star")
    return read_folder(folder, "error", setting="train_data_dir")


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, [16, 64, 0, 24, 16, 16]),
        ({"resize_mode": "pad"}, [16, 64, 0, 0, 16, 16]),  # nothing is cut off
        ({"resize_mode": "stretch"}, [16, 64, 0, 0, 16, 16]),
        ({"resize_mode": "bucket", "bucket_step": 8, "max_aspect_ratio": 2.0}, None),
    ],
)
def test_sizes_are_those_of_the_pictures(base, tmp_path, changes, last):
    dataset = saved(tmp_path / "pictures", SIZES)
    config = DataConfig(resolution=(16,), **changes)
    latents = caches.encode(tmp_path / "cache", dataset, base, config)
    rows = range(len(SIZES))
    told = base.tell(Condition(context=torch.empty(0)), latents.views(rows, [0] * len(SIZES)))
    if not changes:
        assert told.time_ids.tolist() == [trained_script_ids(size, 16) for size in SIZES]
    for row, (height, width, top, left, down, across) in enumerate(told.time_ids.int().tolist()):
        assert (width, height) == SIZES[row]
        assert latents.moments(row).shape[-2:] == (down // 2, across // 2)
        assert top >= 0 and left >= 0
    if last is not None:
        assert told.time_ids[-1].tolist() == last


def places(size):
    """A picture whose pixels say where they are: red across, green down."""
    picture = Image.new("RGB", size)
    picture.putdata([(x, y, 0) for y in range(size[1]) for x in range(size[0])])
    return picture


@pytest.mark.parametrize("streamed", [False, True])
def test_corners_are_where_the_pixels_are_from(base, tmp_path, streamed):
    """In the picture, or in its mirror image; nothing is resized here."""
    places((57, 16)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a star")
    config = DataConfig(resolution=(16,), random_crop=True, random_flip=True, crops_per_image=4)
    seen = []
    if streamed:
        samples = Samples(Framing.of(config, 1), config, 0, downscaling=2)
        example = Example("0", {"path": str(tmp_path / "0.png"), "bytes": None}, "")
        drawn = [samples.draw(example, (16, 16), step, 0) for step in range(16)]
        seen = [(it.view, it.mirrored, it.pixels) for it in drawn]
    else:
        dataset = read_folder(tmp_path, "error", setting="train_data_dir")
        latents = caches.encode(tmp_path / "cache", dataset, base, config)
        views = latents.views([0] * 8, range(8))
        framing, picture = Framing.of(config, 1), places((57, 16))
        for number, view in enumerate(views):
            mirrored = number >= 4
            left = 57 - 16 - view.corner[0] if mirrored else view.corner[0]
            pixels = to_tensor(picture, framing.frame((57, 16), (left / 41, 0.5)))
            mean = base.encode_images((pixels.flip(-1) if mirrored else pixels)[None]).mean[0]
            torch.testing.assert_close(latents.moments(0, number)[0], mean, rtol=0, atol=0.01)
            seen.append((view, mirrored, pixels.flip(-1) if mirrored else pixels))
    assert len({view.corner for view, _, _ in seen}) >= 6
    assert {mirrored for _, mirrored, _ in seen} == {False, True}
    for view, mirrored, pixels in seen:
        across = round(float((pixels[0, 0, 0] + 1) * 127.5))
        assert view == View((57, 16), (56 - across if mirrored else across, 0), (16, 16))


def test_the_refiner_is_told_of_beauty(refiner, refined):
    view = View((64, 48), (3, 0), (16, 16))
    wanted, unwanted = pipeline(refiner)._get_add_time_ids(
        (48, 64), (0, 3), (16, 16), 6.0, 2.5, (48, 64), (0, 3), (16, 16),
        torch.float32, tiny.XL_POOLED_DIM,
    )  # fmt: skip
    told = refined.tell(Condition(context=torch.empty(0)), [view])
    assert torch.equal(told.time_ids, wanted)
    assert torch.equal(time_ids([view], 5, 2.5), unwanted)


def test_large_sizes_reach_the_unet_unrounded(base):
    """In bf16 1023 would be 1024."""
    (text,) = base.encode_prompts(["a star"])
    told = base.tell(text, [View((1023, 4095), (1, 2), (1024, 1024))])
    given = told.arguments(torch.device("cpu"), torch.bfloat16)["added_cond_kwargs"]
    assert given["time_ids"].tolist() == [[4095, 1023, 2, 1, 1024, 1024]]
    assert given["text_embeds"].dtype == torch.bfloat16


def test_pooled_texts_are_cached_beside_their_contexts(base, tmp_path):
    store = Store(tmp_path)
    assert Contexts(base, store).cache(["a star", "", "a star"]) == 2
    for path in tmp_path.glob("pooled-*"):
        path.unlink()  # as if a run had been killed between the two
    assert Contexts(base, Store(tmp_path)).cache(["a star", ""]) == 2
    hooks = [
        it.model.register_forward_hook(lambda *_: pytest.fail("encoded again"))
        for it in base.text_encoder.encoders
    ]
    found = Contexts(base, Store(tmp_path)).stack(["", "a star"], [View.whole((16, 16))] * 2)
    for hook in hooks:
        hook.remove()
    expected = Condition.join(base.encode_prompts(["", "a star"]))
    torch.testing.assert_close(found.context, expected.context)
    torch.testing.assert_close(found.pooled, expected.pooled)
    assert found.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert 2 * base.text_encoder.context_nbytes == found.context.nbytes + found.pooled.nbytes


def test_a_cache_from_before_serves_others_and_says_what_it_lacks(base, model, tmp_path):
    """Its keys are the same, so making it anew encodes nothing."""
    dataset = saved(tmp_path / "pictures", SIZES[:2])
    config = DataConfig(resolution=(16,))
    latents = caches.encode(tmp_path / "cache", dataset, base, config)
    path = tmp_path / "cache/pictures/train.arrow"
    table, about = latents.index.table, asdict(latents.index.about)
    Index.write(path, [table.drop_columns("corners")], about)
    earlier = Index.open(path)
    store = Store(tmp_path / "cache/tensors")
    earlier.check(store, base.vae_fingerprint)
    with pytest.raises(DataError, match=r"does not say what .* Make it anew"):
        earlier.check(store, base.vae_fingerprint, corners=True)
    one = BaseModel.load(str(model))
    prompts = Prompts([["a star"]] * 2, ["[filewords]"], "cat", config, 0)
    layout = Layout(batch_size=2, accumulation=1)
    batches = Batches(
        Latents(earlier, store, "deterministic", 0), prompts, Contexts(one), layout, 0
    )
    (batch,) = batches.at(0)
    assert batch.condition.time_ids is None and batch.condition.pooled is None
    assert len(store) == 2
    again = caches.encode(tmp_path / "cache", dataset, base, config)
    assert again.index.has_corners and len(Store(tmp_path / "cache/tensors")) == 2


@pytest.mark.parametrize("negative", ["", "a heart"])
def test_pictures_are_those_of_diffusers_pipeline(xl, base, negative):
    """With its own scheduler, and a hypernetwork on both."""
    own = pipeline(xl)
    own.unet, prompts = base.unet, ["a red star", "a circle"]
    stacked = Condition.join(base.encode_prompts([*prompts, negative]))
    painter = Painter(
        base,
        stacked[:-1],
        base.negative(stacked[-1:], negative),
        size=(24, 16),
        steps=3,
        guidance_scale=5.0,
        seed=7,
        scheduler=make_scheduler("Euler", base.scheduler),
    )
    with attach(base.unet, [(net_of(base), 1.0)]):
        found = painter.latents()
        expected = own(
            prompts,
            negative_prompt=[negative] * 2 if negative else None,
            width=24,
            height=16,
            num_inference_steps=3,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
            output_type="latent",
        ).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_refiner_draws_each_picture_by_its_own_score(refined):
    """What is drawn beside it changes nothing, nor is what it is led away from called beautiful."""
    stacked = Condition.join(refined.encode_prompts(["a star", "a heart", ""]))
    told = []
    hook = refined.unet.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    how = {"size": (16, 24), "steps": 2, "guidance_scale": 5.0}
    both = Painter(refined, stacked[:2], stacked[2:], seed=0, **how).latents()
    hook.remove()
    second = Painter(refined, stacked[1:2], stacked[2:], seed=1, **how).latents()
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-5)
    assert told[0].tolist() == [[24, 16, 0, 0, 2.5], [24, 16, 0, 0, 6.0]]


@pytest.mark.parametrize(
    ("which", "ways"),
    [
        ("base", ["blocks", "stacked"]),
        ("refined", ["blocks"]),
        pytest.param("base", ["compiled"], marks=pytest.mark.slow),
    ],
)
def test_gradients_do_not_depend_on_how_they_are_computed(which, ways, request):
    base = request.getfixturevalue(which)
    net = net_of(base)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = Condition.join(base.encode_prompts(["a star", "a heart"]))
    condition = base.tell(texts, [View((20, 30), (1, 2), (16, 16)), View.whole((16, 16))])
    settings = {
        "plain": {},
        "blocks": {"plan": Plan(frozen_aware=True, blocks=blocks_of(base.unet))},
        "stacked": {"stack_projections": True},
        "compiled": {"compile_backend": "eager"},
    }
    found = {}
    for name in ("plain", *ways):
        denoiser = Denoiser(base.unet, net.train(), **settings[name])
        prediction, _ = denoiser(noisy, torch.tensor([3, 700]), condition)
        gradients = torch.autograd.grad(prediction.square().mean(), [*net.parameters()])
        found[name] = torch.cat([it.flatten() for it in gradients])
        if denoiser.compiled is not None:
            assert denoiser.compiled.verdict.startswith("used")
            denoiser.compiled.undo()
        denoiser.attachment.detach()
        denoiser.arrangement.remove()
    assert found["plain"].abs().max() > 1e-4
    for name in ways:
        torch.testing.assert_close(found[name], found["plain"], rtol=1e-4, atol=1e-7, msg=name)


RANDOM = {
    "gradient_accumulation_steps": 2,
    "latent_sampling": "random",
    "random_crop": True,
    "random_flip": True,
    "caption_dropout": 0.2,
    "validation_split": 2,
    "validation_steps": 2,
    "validation_prompt": ["a star", "a heart"],
    "validation_inference_steps": 1,
    "checkpointing_steps": 2,
    "max_train_steps": 4,
}


@pytest.fixture(scope="module")
def trained(xl, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    runs.forget_accelerate()
    assert runs.train_here(runs.settings(xl, pictures, folder, **RANDOM)) == 0
    return folder / "run"


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_resumes_to_the_bit(xl, pictures, trained, tmp_path):
    flags = runs.settings(xl, pictures, tmp_path, **RANDOM)
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    runs.assert_same(tmp_path / "run", trained)
    for name in ("run.pt", "previews/step-00000004.png"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()
    assert hn.load(trained / "run.pt").dims == tiny.XL_DIMS


def test_a_cache_is_published_with_what_prompts_say(trained, tmp_path):
    cache = trained / "cache"
    files = {path.relative_to(cache).as_posix(): path for path in cache.glob("*/*.arrow")}
    selection = select(files, tmp_path)
    assert selection.left_out == 0 and selection.files.keys() == files.keys()
    assert len([name for name in files if name.startswith("tensors/pooled-")]) >= 1


@pytest.mark.slow
def test_two_processes_are_one_with_accumulation(zygote, xl, pictures, trained, tmp_path):
    flags = runs.settings(xl, pictures, tmp_path, **{**RANDOM, "gradient_accumulation_steps": 1})
    ended = zygote.run(flags, tmp_path / "logs", world=2)
    assert ended.codes == [0, 0], ended.said
    together = tmp_path / "run"
    assert runs.losses(together) == pytest.approx(runs.losses(trained), rel=2e-6)
    difference = runs.largest_difference(
        trained / "run.pt", together / "run.pt", without="k.linear.2.bias"
    )
    assert difference < 1e-5


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    "changes",
    [
        {"shuffle_tags": True, "resize_mode": "bucket", "gradient_checkpointing": True},
        {"quantize_base": "fp8", "stack_projections": True, "prompt_syntax": "webui"},
        pytest.param({"memory_budget_gib": 0.5, "mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=["anew", "fp8", "budget"],
)
def test_it_learns_in_every_way(xl, pictures, tmp_path, changes, capsys):
    steps = {"max_train_steps": 2, "train_batch_size": 1, "validation_prompt": ["a star"]}
    steps |= {"validation_inference_steps": 1}
    assert runs.train_here(runs.settings(xl, pictures, tmp_path, **steps, **changes)) == 0
    assert ("the text encoder stays" in capsys.readouterr().out) == ("shuffle_tags" in changes)


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_refiner_trains_on_what_it_is_told(refiner, pictures, tmp_path, capsys):
    steps = {"max_train_steps": 2, "validation_prompt": ["a star"], "validation_split": 2}
    steps |= {"validation_inference_steps": 1}
    assert runs.train_here(runs.settings(refiner, pictures, tmp_path, **steps)) == 0
    dims = (tiny.XL_TEXT_DIMS[1], *tiny.XL_DIMS[::2])
    assert hn.load(tmp_path / "run/run.pt").dims == dims
    assert "timestep_range 0 200" in capsys.readouterr().out

"""Hypernetworks in diffusers' own pipelines: loaded, chosen, stacked, gone without a trace."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from diffusers import (
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from peft import LoraConfig
from PIL import Image

import hn
from hn.errors import ModelError, OptionError
from tests import golden
from tests.diffusion.test_attention import CASES, TENSORS, golden_layer, make_net
from tests.tiny import CONTEXT_DIM, make_unet


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two hypernetworks, strong enough to be seen in eight-bit pictures."""
    folder = tmp_path_factory.mktemp("files")
    for name, seed in (("one", 1), ("two", 2)):
        net = make_net(seed=seed)
        for tensor in net.parameters():
            tensor.data *= 3
        hn.save(net, folder / f"{name}.pt")
    hn.save(make_net((768, 320)), folder / "stranger.pt")
    return folder


@pytest.fixture(scope="module")
def loaded(model):
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded):
    """After the last hypernetwork nothing of them may be left."""
    processors, attributes = dict(loaded.unet.attn_processors), set(vars(loaded.unet))
    yield loaded
    hn.unload_hypernetworks(loaded)
    assert not loaded.unet._forward_pre_hooks
    assert set(vars(loaded.unet)) == attributes
    loaded.unet.set_attn_processor(processors)


@pytest.fixture
def own(pipe):
    """A pipeline whose UNet may be spoilt."""
    torch.manual_seed(0)
    other = StableDiffusionPipeline(
        **{**pipe.components, "unet": make_unet().eval()}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    return other


def draw(pipe, prompt="a red star", **settings):
    settings = {"num_inference_steps": 2, "output_type": "np", **settings}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **settings).images


def is_same(first, second):
    return np.array_equal(first, second)


def test_load_use_and_unload(pipe, files):
    plain, processors = draw(pipe), dict(pipe.unet.attn_processors)
    assert hn.load_hypernetwork(pipe, files / "one.pt") == "one"
    assert hn.active_hypernetworks(pipe) == [("one", 1.0)]
    styled = draw(pipe)
    assert not is_same(styled, plain)
    with hn.disabled(pipe):
        assert is_same(draw(pipe), plain)
    assert is_same(draw(pipe), styled)
    hn.unload_hypernetworks(pipe)
    assert is_same(draw(pipe), plain)
    assert hn.loaded_hypernetworks(pipe) == hn.active_hypernetworks(pipe) == []
    assert all(pipe.unet.attn_processors[name] is old for name, old in processors.items())


def test_the_pipeline_draws_what_attach_draws(pipe, files):
    nets = [hn.load(files / f"{name}.pt") for name in ("one", "two")]
    with hn.attach(pipe.unet, [(nets[0], 0.7), (nets[1], -0.4)]):
        expected = draw(pipe)
    hn.load_hypernetwork(pipe, files / "one.pt", strength=0.7)
    hn.load_hypernetwork(pipe, files / "two.pt", strength=-0.4)
    assert is_same(draw(pipe), expected)


def test_order_names_and_strengths_are_those_that_are_set(pipe, files):
    hn.load_hypernetwork(pipe, files / "one.pt", "first")
    hn.load_hypernetwork(pipe, files / "two.pt", strength=0.5)
    forwards = draw(pipe)
    hn.set_hypernetworks(pipe, ["two", "first"])
    assert hn.active_hypernetworks(pipe) == [("two", 0.5), ("first", 1.0)]
    assert not is_same(draw(pipe), forwards)
    hn.set_hypernetworks(pipe, ["first", "two"])
    assert is_same(draw(pipe), forwards)
    hn.set_hypernetworks(pipe, "two", 0.3)
    assert hn.active_hypernetworks(pipe) == [("two", 0.3)]
    assert hn.loaded_hypernetworks(pipe) == ["first", "two"]
    hn.set_hypernetworks(pipe, ["two", "two"], [0.3, 0.1])
    assert hn.active_hypernetworks(pipe) == [("two", 0.3), ("two", 0.1)]
    hn.unload_hypernetworks(pipe, "two")
    assert hn.loaded_hypernetworks(pipe) == ["first"]
    assert hn.active_hypernetworks(pipe) == []


def test_strength_zero_is_the_base_model_to_the_bit(pipe, files):
    plain = draw(pipe)
    hn.load_hypernetwork(pipe, files / "one.pt", strength=0.0)
    assert is_same(draw(pipe), plain)
    hn.set_hypernetworks(pipe, "one", hn.Strength(schedule=((0.0, 0.0),)))
    assert is_same(draw(pipe), plain)


def test_mistakes_leave_the_pipeline_as_it_was(pipe, files):
    hn.load_hypernetwork(pipe, files / "one.pt")
    styled = draw(pipe)
    with pytest.raises(OptionError, match="'one' is loaded already"):
        hn.load_hypernetwork(pipe, files / "one.pt")
    with pytest.raises(ModelError, match="it is for Stable Diffusion 1"):
        hn.load_hypernetwork(pipe, files / "stranger.pt")
    with pytest.raises(OptionError, match=r"'on' is loaded \(did you mean 'one'\?\); loaded: one"):
        hn.set_hypernetworks(pipe, ["on"])
    with pytest.raises(OptionError, match="1 names need as many strengths"):
        hn.set_hypernetworks(pipe, ["one"], [1.0, 0.5])
    with pytest.raises(OptionError, match="finite number"):
        hn.set_hypernetworks(pipe, ["one"], [float("nan")])
    with pytest.raises(OptionError, match="'two' is loaded"):
        hn.unload_hypernetworks(pipe, ["one", "two"])
    with pytest.raises(ModelError, match="dict has no UNet"):
        hn.load_hypernetwork({}, files / "one.pt")
    assert hn.active_hypernetworks(pipe) == [("one", 1.0)]
    assert is_same(draw(pipe), styled)


def test_image_to_image_and_inpainting_read_through_them(pipe, files):
    image = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
    mask = Image.linear_gradient("L").resize((16, 16))
    others = [
        (StableDiffusionImg2ImgPipeline(**pipe.components), {"image": image}),
        (StableDiffusionInpaintPipeline(**pipe.components), {"image": image, "mask_image": mask}),
    ]
    for other, given in others:
        given["num_inference_steps"] = 4
        other.set_progress_bar_config(disable=True)
        plain = draw(other, **given)
        hn.load_hypernetwork(other, files / "one.pt")
        styled = draw(other, **given)
        assert not is_same(styled, plain)
        late = hn.Strength(schedule=((0.4, 0.0), (0.4, 1.0)))  # all that strength 0.5 draws
        hn.set_hypernetworks(other, "one", late)
        assert is_same(draw(other, strength=0.5, **given), draw(other, strength=0.5, **given))
        hn.unload_hypernetworks(other)
        assert is_same(draw(other, **given), plain)


def test_loras_work_at_the_same_time(own, files):
    own.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, weight in own.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted = draw(own)
    hn.load_hypernetwork(own, files / "one.pt")
    both, without_lora = draw(own), draw(own, cross_attention_kwargs={"scale": 0.0})
    assert not is_same(both, adapted)
    assert not is_same(both, without_lora)
    own.unet.disable_adapters()
    assert is_same(draw(own), without_lora)
    own.unet.enable_adapters()
    hn.unload_hypernetworks(own)
    assert is_same(draw(own), adapted)


def processors_of(pipe):
    return {type(processor) for processor in pipe.unet.attn_processors.values()}


@pytest.mark.parametrize("before", [True, False])
def test_attention_slicing_stays_on(pipe, files, before):
    """Switched on before or after: strength 0 is what slicing alone draws, and it comes back."""
    if before:
        pipe.enable_attention_slicing(1)
    hn.load_hypernetwork(pipe, files / "one.pt")
    styled = draw(pipe)
    pipe.enable_attention_slicing(1)
    np.testing.assert_allclose(draw(pipe), styled, atol=1e-4)
    hn.set_hypernetworks(pipe, "one", 0.0)
    nothing = draw(pipe)
    hn.unload_hypernetworks(pipe)
    assert processors_of(pipe) == {SlicedAttnProcessor}
    assert is_same(draw(pipe), nothing)


def test_the_plain_attention_of_older_torch_keeps_its_bits(pipe, files):
    pipe.unet.set_attn_processor(AttnProcessor())
    plain = draw(pipe)
    hn.load_hypernetwork(pipe, files / "one.pt", strength=0.0)
    assert is_same(draw(pipe), plain)


def test_another_attention_that_came_later_is_not_overlooked(pipe, files):
    hn.load_hypernetwork(pipe, files / "one.pt")
    name = next(iter(pipe.unet.attn_processors))
    pipe.unet.set_attn_processor({**pipe.unet.attn_processors, name: IPAdapterAttnProcessor(8, 8)})
    with pytest.raises(ModelError, match="IPAdapterAttnProcessor"):
        draw(pipe)


def test_xformers_processors_are_kept(pipe, files):
    """As far as a CPU goes: without the package it is named, and what was there comes back."""
    theirs = XFormersAttnProcessor()
    pipe.unet.set_attn_processor(theirs)
    with pytest.raises(OptionError, match="xformers, which is not installed"):
        hn.load_hypernetwork(pipe, files / "one.pt")
    assert processors_of(pipe) == {XFormersAttnProcessor}
    net = hn.load(files / "one.pt")
    with hn.attach(pipe.unet, [(net, 1.0)], kernel="sdpa", follow=True):
        styled = draw(pipe)
    assert all(processor is theirs for processor in pipe.unet.attn_processors.values())
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    hn.load_hypernetwork(pipe, files / "one.pt")
    assert is_same(draw(pipe), styled)


def test_offloaded_pipelines(own, files):
    hn.load_hypernetwork(own, files / "one.pt")
    styled = draw(own)
    hn.unload_hypernetworks(own)
    plain = draw(own)
    cpu_offload(own.unet, torch.device("cpu"))
    assert own.unet.device.type == "meta"
    hn.load_hypernetwork(own, files / "one.pt")
    assert is_same(draw(own), styled)
    hn.unload_hypernetworks(own)
    assert is_same(draw(own), plain)
    remove_hook_from_module(own.unet, recurse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_follows_the_pipeline(own, files, dtype):
    """Before or after loading, the same picture: weights are rounded as the pipeline's are."""
    own.unet.to(dtype)
    own.text_encoder.to(dtype)
    hn.load_hypernetwork(own, files / "one.pt")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = noise.to(dtype), 500, torch.ones(2, 5, CONTEXT_DIM, dtype=dtype)
    with torch.no_grad():
        loaded_in_half = own.unet(*inputs).sample
        own.unet.to(torch.float32)
        hn.unload_hypernetworks(own)
        hn.load_hypernetwork(own, files / "one.pt")
        own.unet.to(dtype)
        loaded_before = own.unet(*inputs).sample
    own.text_encoder.to(torch.float32)
    assert loaded_before.dtype == dtype
    assert torch.equal(loaded_before, loaded_in_half)


SMALL = {
    "block_out_channels": (16,),
    "mid_block_type": None,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


@pytest.mark.parametrize(
    ("backend", "in_place"),
    [
        ("eager", True),
        pytest.param("eager", False, marks=pytest.mark.slow),
        pytest.param("aot_eager", True, marks=pytest.mark.slow),
        pytest.param("inductor", False, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_compiled_unets(pipe, files, backend, in_place):
    """Loaded, changed and unloaded after compiling: what an uncompiled UNet answers."""

    def answers(own):
        noise, text = torch.ones(1, 4, 8, 8), torch.linspace(-1, 1, 5 * CONTEXT_DIM)
        inputs = noise, torch.tensor(501), text.reshape(1, 5, CONTEXT_DIM)
        found = [own.unet(*inputs).sample]
        fade = hn.Strength(v=0.5, schedule=((0.0, 0.0), (1.0, 1.0)))
        with pytest.warns(UserWarning, match="width"):
            hn.load_hypernetwork(own, files / "one.pt", strength=fade)
        found.append(own.unet(*inputs).sample)
        hn.unload_hypernetworks(own)
        return torch.stack([*found, own.unet(*inputs).sample])

    parts = {**pipe.components, "unet": make_unet(**SMALL).eval()}
    own = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    own.scheduler.set_timesteps(10)
    expected = answers(own)
    torch._dynamo.reset()
    if in_place:
        own.unet.compile(backend=backend)
    else:
        own.unet = torch.compile(own.unet, backend=backend)
    torch.testing.assert_close(answers(own), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected[0], expected[1])
    assert torch.equal(expected[0], expected[2])


def record_strengths(pipe, net, monkeypatch):
    """The strengths of each call of the text's k module, as a list that fills."""
    module, seen = net.module(CONTEXT_DIM, "k"), []
    forward = module.forward

    def recording(x, strength=1.0):
        seen.append(round(float(strength), 4))
        return forward(x, strength)

    monkeypatch.setattr(module, "forward", recording)
    return seen


def test_a_pipeline_rewrites_its_text_once_for_all_steps(pipe, files, monkeypatch):
    hn.load_hypernetwork(pipe, files / "one.pt", strength=0.7)
    expected = draw(pipe)
    seen = record_strengths(pipe, pipe.unet.hypernetworks.loaded["one"], monkeypatch)
    draw(pipe, num_inference_steps=5)
    assert seen == [0.7]
    draw(pipe, "a blue heart", num_inference_steps=5)
    assert seen == [0.7] * 2
    assert is_same(draw(pipe), expected)


SCHEDULERS = {"Euler": (EulerDiscreteScheduler, 1), "Heun": (HeunDiscreteScheduler, 2)}


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_a_schedule_follows_the_steps_of_the_scheduler(pipe, files, monkeypatch, scheduler):
    usual = pipe.scheduler
    if scheduler is not None:
        pipe.scheduler = SCHEDULERS[scheduler][0].from_config(usual.config)
    hn.load_hypernetwork(pipe, files / "one.pt")
    hn.set_hypernetworks(pipe, "one", hn.Strength(0.8, schedule=((0.0, 0.0), (0.5, 1.0))))
    net = pipe.unet.hypernetworks.loaded["one"]
    seen = record_strengths(pipe, net, monkeypatch)
    draw(pipe, num_inference_steps=5)
    pipe.scheduler = usual
    distinct = list(dict.fromkeys(seen))
    assert distinct == sorted(distinct)
    assert (seen[0], seen[-1]) == (0.0, 0.8)
    if scheduler != "Heun":
        assert seen == [0.0, 0.4, 0.8, 0.8, 0.8]


def test_an_image_to_image_pipeline_begins_in_the_middle_of_a_schedule(pipe, files, monkeypatch):
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    hn.load_hypernetwork(other, files / "one.pt")
    hn.set_hypernetworks(other, "one", hn.Strength(schedule=((0.0, 0.0), (1.0, 1.0))))
    seen = record_strengths(other, other.unet.hypernetworks.loaded["one"], monkeypatch)
    picture = Image.new("RGB", (16, 16), "red")
    draw(other, image=picture, strength=0.5, num_inference_steps=4)
    assert seen == [0.6667, 1.0]


WIDTHS = {"self": 48, "cross": 48, "cross-same": 32}  # of the text


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case["mask"]], ids=lambda c: c["key"]
)
@torch.no_grad()
def test_a_layer_of_a_pipeline_is_that_of_the_web_ui(case, pipe):
    """The golden layer stands in a UNet, of a pipeline that has loaded the golden files."""
    width = WIDTHS[case["attention"]]
    unet = make_unet(
        block_out_channels=(32, 48), cross_attention_dim=width, attention_head_dim=case["heads"]
    ).eval()
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    layer = golden_layer(case)
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: ((TENSORS["x"],), kwargs), with_kwargs=True
    )
    seen = []
    layer.register_forward_hook(lambda _, args, out: seen.append(out))
    setattr(block, "attn1" if case["attention"] == "self" else "attn2", layer)
    own = StableDiffusionPipeline(
        **{**pipe.components, "unet": unet}, requires_safety_checker=False
    )
    for name, strength in zip(case["hypernetworks"], case["strengths"], strict=True):
        file = golden.FOLDER / "attention" / f"{name}.pt"
        hn.load_hypernetwork(own, file, f"{name}-{strength}", strength)
    context = TENSORS[case["context"] or "context48"]
    own.unet(torch.ones(2, 4, 3, 3), 500, context)  # 9 tokens
    expected = TENSORS[case["key"]]
    assert (seen[0] - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_from_a_gpu(own, files, offload):
    """Needs CUDA: diffusers' own offloading moves models to an accelerator and back."""
    own.to("cuda")
    hn.load_hypernetwork(own, files / "one.pt")
    styled = draw(own)
    own.to("cpu")
    getattr(own, offload)()
    np.testing.assert_allclose(draw(own), styled, atol=1e-3)


@pytest.mark.gpu
def test_xformers_on_a_gpu(own, files):
    """Needs CUDA and xformers: its kernels have no CPU version."""
    pytest.importorskip("xformers")
    own.to("cuda", torch.float16)
    hn.load_hypernetwork(own, files / "one.pt")
    styled = draw(own)
    own.enable_xformers_memory_efficient_attention()
    np.testing.assert_allclose(draw(own), styled, atol=0.02)

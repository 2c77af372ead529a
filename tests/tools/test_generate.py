"""`tools/generate.py`: what is drawn, what its files say, what is refused before anything loads."""

import subprocess
import sys

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import hn
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.generation import infotext
from hn.diffusion.generation.samplers import SAMPLERS, make_scheduler
from hn.diffusion.pipeline import Painter
from tests import runs
from tests.diffusion.test_attention import make_net
from tests.tiny import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hypernetworks strong enough to be seen in eight-bit pictures."""
    folder = tmp_path_factory.mktemp("hypernetworks")
    for seed, name in enumerate(("one", "two", "sub/three"), 1):
        net = make_net(seed=seed)
        for tensor in net.parameters():
            tensor.data *= 3
        (folder / name).parent.mkdir(exist_ok=True)
        hn.save(net, folder / f"{name}.pt")
    return folder


@pytest.fixture
def generate(run, model, tmp_path):
    """Run the tool with few steps; returns the result and the folder drawn into."""

    def generate(*arguments, output="drawn"):
        flags = ["--base", model, "--steps", 2, "-o", tmp_path / output]
        return run("generate", *arguments, *flags), tmp_path / output

    return generate


def pixels(path):
    return np.asarray(Image.open(path))


def test_prompts_by_strengths_and_seeds(generate, folder, tmp_path, model):
    (tmp_path / "prompts.txt").write_text("a blue heart\n\n", encoding="utf-8")
    flags = ["a red star", "--prompts", tmp_path / "prompts.txt", "--seeds", 3, 4]
    flags += ["--hypernetwork", folder / "one.pt", "--strengths", 0, 0.5, "--negative_prompt", "x"]
    result, drawn = generate(*flags)
    assert result.returncode == 0, result.stderr
    assert f"8 pictures; all are on {drawn / 'grid.png'}" in result.stdout
    files = sorted(path for path in drawn.iterdir() if path.name != "grid.png")
    assert [path.name for path in files[:4]] == [
        "0001-seed-3-strength-0.5.png",
        "0001-seed-3-strength-0.png",
        "0001-seed-4-strength-0.5.png",
        "0001-seed-4-strength-0.png",
    ]
    assert len({path.read_bytes() for path in files}) == len(files) == 8
    about = Image.open(files[0]).text["parameters"]
    assert about == (
        "a red star <hypernet:one:0.5>\nNegative prompt: x\nSteps: 2, Sampler: DDIM, CFG scale: 7, "
        f"Seed: 3, Size: 16x16, Model: {model.name}, Version: hn {hn.__version__}"
    )
    assert Image.open(drawn / "grid.png").width > 2 * 128


def test_the_same_settings_give_the_same_bytes_whatever_is_drawn_beside(generate, folder):
    """Strength 0 is the base model's picture; a tag is the file it names; order counts."""
    drawn = {}
    one, two = (["--hypernetwork", folder / f"{name}.pt"] for name in ("one", "two"))
    in_folder = ["--hypernetwork_dir", folder]
    cases = {
        "plain": ["a star"],
        "both": ["a heart", "a star", *one, folder / "two.pt", "--strengths", 0, 1],
        "tags": ["a star <hypernet:one><hypernet:two:1.0>", *in_folder],
        "backwards": ["<hypernet:two>a star<hypernet:one>", *in_folder],
        "mixed": ["a star <hypernet:one:1>", *in_folder, *two],
        "halved": ["a star <hypernet:three:0.5>", *in_folder],
        "scaled": ["a star <hypernet:three:1>", *in_folder, "--strengths", 0.5],
    }
    for name, flags in cases.items():
        result, drawn[name] = generate(*flags, output=name)
        assert result.returncode == 0, result.stderr
    first = {name: path / "0001-seed-0-strength-1.png" for name, path in drawn.items()}
    beside = drawn["both"] / "0002-seed-0-strength-1.png"
    without = drawn["both"] / "0002-seed-0-strength-0.png"
    assert np.array_equal(pixels(first["plain"]), pixels(without))
    assert beside.read_bytes() == first["tags"].read_bytes() == first["mixed"].read_bytes()
    assert not np.array_equal(pixels(beside), pixels(without))
    assert not np.array_equal(pixels(first["backwards"]), pixels(beside))
    halved, scaled = first["halved"], drawn["scaled"] / "0001-seed-0-strength-0.5.png"
    assert halved.read_bytes() == scaled.read_bytes()


def test_the_picture_is_that_of_diffusers(generate, folder, model):
    """What the public API draws with the same noise, to a level of the eight bits."""
    import torch

    flags = ["a red star", "--hypernetwork", folder / "one.pt", "--negative_prompt", "blue"]
    _, drawn = generate(*flags, "--guidance_scale", 3, "--size", 24, 16)
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    hn.load_hypernetwork(pipe, folder / "one.pt")
    expected = pipe(
        "a red star",
        negative_prompt="blue",
        guidance_scale=3,
        num_inference_steps=2,
        width=24,
        height=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    found = pixels(drawn / "0001-seed-0-strength-1.png").astype(int)
    assert found.shape == (16, 24, 3)
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_the_web_uis_prompts(generate):
    drawn = {}
    for syntax in ("plain", "webui"):
        flags = ["a (red:1.6) star", "--prompt_syntax", syntax]
        _, drawn[syntax] = generate(*flags, output=syntax)
    pictures = [pixels(path / "0001-seed-0-strength-1.png") for path in drawn.values()]
    assert not np.array_equal(*pictures)
    result, _ = generate("star, " * 60, "--prompt_syntax", "webui", output="long")
    assert result.returncode == 0, result.stderr


REFUSED = [
    ([], 2, "there is no prompt"),
    (["a", "--prompts", "gone.txt"], 2, "prompts 'gone.txt' cannot be read"),
    (["a", "--strengths", 0, 1], 2, "strengths are of hypernetworks"),
    (["a", "--size", 20, 16], 2, r"size must be multiples of 8; found (20, 16)"),
    (["a", "--seeds", -1], 2, "seeds must be from 0"),
    (["a", "--seeds", 1, 1], 2, "seeds must not repeat one"),
    (["a", "--steps", 0], 2, "steps and clip_skip must be at least 1"),
    (["a", "--guidance_scale", "nan"], 2, "guidance_scale must not be negative"),
    (["a", "--strengths", "inf"], 2, "strengths must be finite"),
    (["a", "--seeds", *range(10_001)], 2, "10001 pictures are more than 10000"),
    (["a <hypernet:x>"], 2, "a prompt names the hypernetwork 'x': give --hypernetwork_dir"),
    (["a <hypernet:x:y>"], 2, "'<hypernet:x:y>': it must be"),
    (["a <hypernet:tow>", "--hypernetwork_dir", "{folder}"], 4, "(did you mean 'two'?)"),
    (["a", "--hypernetwork", "gone.pt"], 4, "'gone.pt' is not there"),
    (["a", "--hypernetwork", "{folder}/one.pt", "{folder}/../one.pt"], 2, "have the same name"),
    (["a", "--sampler", "Euler b"], 2, "invalid choice: 'Euler b'"),
    (["a", "--base", "sd.safetensors"], 4, "cannot read sd.safetensors"),
]


@pytest.mark.parametrize(("flags", "code", "message"), REFUSED)
def test_mistakes_are_named_before_anything_is_loaded(run, folder, tmp_path, flags, code, message):
    (folder.parent / "one.pt").write_bytes((folder / "one.pt").read_bytes())
    flags = [str(flag).format(folder=folder) for flag in flags]
    base = [] if "--base" in flags else ["--base", "nobody/has-this"]
    result = run("generate", *flags, *base, "-o", tmp_path / "drawn")
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr


def test_pictures_are_not_replaced_unasked(generate):
    assert generate("a")[0].returncode == 0
    result, drawn = generate("a")
    assert result.returncode == 2
    assert f"{drawn / '0001-seed-0-strength-1.png'} is there already" in result.stderr
    assert generate("a", "--overwrite")[0].returncode == 0


@pytest.fixture(scope="module")
def velocity(tmp_path_factory):
    return BaseModel.load(
        str(make_model(tmp_path_factory.mktemp("velocity"), prediction_type="v_prediction"))
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_the_same_twice_and_keep_what_the_model_predicts(velocity, name):
    scheduler = make_scheduler(name, velocity.scheduler)
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["beta_end"] == 0.012
    prompt = velocity.encode_prompts(["a star"])[0]
    negative = Condition(context=prompt.context * 0)
    settings = {"size": (16, 16), "steps": 4, "guidance_scale": 3.0, "seed": 1}
    pictures = [
        Painter(velocity, prompt, negative, scheduler=scheduler, **settings).draw()[0]
        for _ in range(2)
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert np.asarray(pictures[0]).std() > 1


def test_values_that_would_be_read_as_two_are_quoted():
    assert infotext.write("p", "", {"Model": 'a, "b": c', "Seed": 1}) == (
        'p\nModel: "a, \\"b\\": c", Seed: 1'
    )


def test_help_comes_without_torch():
    tool = str(runs.ROOT / "tools/generate.py")
    code = f"import runpy, sys; sys.modules['torch'] = None; sys.argv = [{tool!r}, '--help']; "
    code += f"sys.exit(runpy.run_path({tool!r})['main']())"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert "--hypernetwork_dir" in result.stdout


def test_a_picture_is_drawn_again_from_what_it_says(generate, folder):
    flags = ["a star, with (red:1.2) <hypernet:one:0.5>", "--negative_prompt", 'a "blue" one, x']
    flags += ["--seeds", 5, "--sampler", "Euler a", "--guidance_scale", 3.5, "--size", 24, 16]
    in_folder = ["--hypernetwork_dir", folder]
    _, drawn = generate(*flags, *in_folder)
    picture = drawn / "0001-seed-5-strength-1.png"
    result, again = generate("--like", picture, *in_folder, output="again")
    assert result.returncode == 0, result.stderr
    assert (again / picture.name).read_bytes() == picture.read_bytes()
    _, other = generate("--like", picture, *in_folder, "--seeds", 6, output="other")
    assert not np.array_equal(pixels(other / "0001-seed-6-strength-1.png"), pixels(picture))


def test_a_sampler_of_others_is_refused_unless_another_is_given(generate, tmp_path):
    text = PngInfo()
    text.add_text("parameters", "a star\nSteps: 2, Sampler: DPM fast, Seed: 1, Size: 16x16")
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=text)
    result, _ = generate("--like", tmp_path / "theirs.png")
    assert result.returncode == 2
    assert "sampler 'DPM fast' is not known here; give one of DDIM, Euler" in result.stderr
    result, _ = generate("--like", tmp_path / "theirs.png", "--sampler", "DDIM")
    assert result.returncode == 0, result.stderr


def test_what_says_nothing_is_not_drawn_again(generate, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    result, _ = generate("--like", tmp_path / "plain.png")
    assert result.returncode == 2
    assert "is no PNG with the web UI's text" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a star", infotext.Described("a star", "", {})),
        ("Steps: one, two", infotext.Described("Steps: one, two", "", {})),
        (
            "a\nb\nNegative prompt: c\nd\nSteps: 1, Seed: 2, Size: 8x8",
            infotext.Described("a\nb", "c\nd", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ),
        (
            'x\nSteps: 1, Seed: 2, Note: "a, \\"b\\": c", Hypernet: my net(5ad1), Model: m',
            infotext.Described(
                "x <hypernet:my net:1>",
                "",
                {"Steps": "1", "Seed": "2", "Note": 'a, "b": c', "Model": "m"},
            ),
        ),
    ],
)
def test_infotext_is_read(text, expected):
    """As old web UIs wrote it too, whose hypernetwork was no part of the prompt."""
    assert infotext.read(text) == expected


def test_infotext_is_read_as_it_was_written():
    parameters = {"Steps": "2", "Sampler": "Euler a", "Model": 'a, "b"'}
    assert infotext.read(infotext.write("p\nq", "n", parameters)) == infotext.Described(
        "p\nq", "n", parameters
    )

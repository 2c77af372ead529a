"""What is said about other hosts, held against what they compute."""

import pickletools
import re
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hn
from hn.network import a1111, activations, container, files, portability, sharing
from hn.network.contents import Contents
from hn.network.portability import Outcome
from tests import golden
from tests.network import comfyui_reference

STORED = sorted((golden.FOLDER / "files").glob("*.pt"))
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
# with a slope at zero and enough room to be told apart from others
MULTIPLIERS = st.sampled_from([0.5, 1, 1.5, 2])


@st.composite
def architectures(draw) -> hn.Hypernetwork:
    structure = (1, *draw(st.lists(MULTIPLIERS, max_size=3)), 1)
    dropout = draw(
        st.one_of(
            st.just(()),
            st.lists(
                st.sampled_from([0, 0.3]), min_size=len(structure), max_size=len(structure)
            ).map(tuple),
        )
    )
    net = hn.Hypernetwork.create(
        (8,),
        layer_structure=structure,
        activation_func=draw(st.sampled_from(activations.NAMES)),
        weight_initialization=draw(st.sampled_from(["Normal", "XavierNormal", "KaimingUniform"])),
        is_layer_norm=draw(st.booleans()),
        activate_output=draw(st.booleans()),
        dropout_structure=dropout,
        seed=draw(st.integers(0, 99)),
    )
    for name, parameter in net.named_parameters():  # biases and norms away from zero
        if parameter.dim() == 1:
            noise = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=noise)
    return net


@st.composite
def stored_dicts(draw) -> dict:
    """As we write it, or as others might have: keys left out, tensors in another order."""
    state = a1111.to_dict(Contents.of(draw(architectures())), "net")
    for key in draw(st.sets(st.sampled_from(["activate_output", "use_dropout", "optional_info"]))):
        if key != "activate_output" or state[key]:  # left out, it means True to the web UI
            del state[key]
    odd_key = draw(st.sampled_from([None, None, "768", " 768", "-5", "²", "16x", 5.5, b"7"]))
    if odd_key is not None:
        state[odd_key] = ({}, {})
    if draw(st.booleans()):
        state[8] = tuple(dict(reversed(weights.items())) for weights in state[8])
    return state


def comfyui_verdict(contents: Contents) -> Outcome:
    verdicts = {verdict.host: verdict for verdict in portability.judge(contents)}
    return verdicts["ComfyUI"].outcome


def computed_alike(state: dict, contents: Contents) -> bool:
    """Whether ComfyUI's rules give what the web UI's give, each time they are asked."""
    net = contents.build()
    torch.manual_seed(0)
    for _ in range(4):  # dropout may happen to drop nothing
        try:
            theirs = comfyui_reference.run(state, X)
        except comfyui_reference.RefusedError:
            return False
        if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(theirs, net(X, X), strict=True)):
            return False
    return True


@settings(max_examples=300, deadline=None, derandomize=True)
@given(stored_dicts())
@torch.no_grad()
def test_what_is_said_to_run_the_same_in_comfyui_does(state):
    contents = a1111.from_dict(state, "net")
    if comfyui_verdict(contents) is Outcome.SAME:
        assert computed_alike(state, contents)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(stored_dicts())
@torch.no_grad()
def test_what_is_said_to_be_refused_in_comfyui_is(state):
    contents = a1111.from_dict(state, "net")
    if comfyui_verdict(contents) is Outcome.REFUSED:
        with pytest.raises(comfyui_reference.RefusedError):
            comfyui_reference.run(state, X)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(architectures())
@torch.no_grad()
def test_mending_changes_no_output_and_never_harms(net):
    contents = Contents.of(net)
    mended = sharing.mended(contents)
    k, v = net(X, X)
    mended_k, mended_v = mended.build()(X, X)
    assert torch.equal(k, mended_k)
    assert torch.equal(v, mended_v)
    assert comfyui_verdict(mended) <= comfyui_verdict(contents)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(net=architectures(), ending=st.sampled_from([".pt", ".safetensors"]))
@torch.no_grad()
def test_create_save_load_gives_the_same_outputs(net, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / f"net{ending}"
    hn.save(net, path)
    read = hn.load(path)
    assert all(torch.equal(a, b) for a, b in zip(net(X, X), read(X, X), strict=True))


@pytest.mark.parametrize("source", STORED, ids=lambda path: path.stem)
@torch.no_grad()
def test_the_golden_files_in_comfyui(source):
    """Nothing is said to run the same that does not, nor to differ that does not."""
    state, contents = container.read(source), files.read(source)
    dim = contents.config.dims[0]
    x = torch.randn(2, 3, dim, generator=torch.Generator().manual_seed(0))
    net = contents.build()
    try:
        torch.manual_seed(0)
        outputs = [comfyui_reference.run(state, x) for _ in range(2)]
        alike = all(torch.allclose(k, net(x, x)[0], atol=1e-5) for k, _ in outputs)
        expected = {Outcome.SAME} if alike else {Outcome.OTHER}
    except comfyui_reference.RefusedError:
        expected = {Outcome.REFUSED, Outcome.OTHER}  # layers in another order stop it, mostly
    assert comfyui_verdict(contents) in expected


def verdicts_of(path):
    judged = portability.judge(files.read(path), path)
    return {verdict.host: verdict.outcome for verdict in judged}


@pytest.mark.parametrize("name", ["old-stripped-container", "old-base-relu"])
def test_a_plain_file_in_its_container(name):
    modern = name == "old-base-relu"  # as torch writes it today
    assert verdicts_of(golden.FOLDER / "files" / f"{name}.pt") == {
        "A1111": Outcome.REFUSED if modern else Outcome.SAME,
        "Forge": Outcome.IGNORED,
        "ComfyUI": Outcome.SAME,
        "diffusers": Outcome.SAME,
    }


def test_what_we_write_runs_the_same(tmp_path):
    for source in STORED:
        contents = sharing.mended(files.read(source))
        path = tmp_path / source.name
        files.write(contents, path)
        assert verdicts_of(path)["A1111"] is Outcome.SAME
        assert verdicts_of(path)["diffusers"] is Outcome.SAME


def test_a_safetensors_file_is_for_us_only(tmp_path):
    hn.save(hn.Hypernetwork.create((8,)), tmp_path / "net.safetensors")
    found = verdicts_of(tmp_path / "net.safetensors")
    assert (found["A1111"], found["ComfyUI"]) == (Outcome.IGNORED, Outcome.IGNORED)
    (tmp_path / "net.safetensors").rename(tmp_path / "net.pt")
    assert verdicts_of(tmp_path / "net.pt")["A1111"] is Outcome.REFUSED


def test_only_a_pt_has_an_order_of_its_own(tmp_path):
    net = hn.Hypernetwork.create((8, 320), activation_func="relu", layer_structure=(1, 2, 2, 1))
    hn.save(net, tmp_path / "net.safetensors")
    read = files.read(tmp_path / "net.safetensors")
    assert list(read.tensors) == list(net.tensors())
    assert comfyui_verdict(read) is Outcome.SAME  # as the .pt that would be written
    verdicts = portability.judge(read, tmp_path / "net.safetensors")
    assert [len(verdict.findings) for verdict in verdicts] == [1, 1, 1, 0]


def _bias(value):
    def change(state):
        state[8][0]["linear.0.bias"] = torch.full((16,), value)

    return change


ODD = {
    "reserved-name": ("None", lambda _: None, "the name None"),
    "name-inside": ("other", lambda state: state.update(name="one"), "called 'one' inside"),
    "text-width": ("net", lambda state: state.update({"768": state[8]}), "('768') are no ints"),
    "odd-storage": ("net", lambda state: state.update(x=torch.zeros(1).byte().bool()), "Bool"),
    "dtype-object": ("net", lambda state: state.update(dtype=torch.float32), "torch.float32"),
    "too-large": ("net", _bias(1e6), "half precision"),
    "spoilt": ("net", _bias(float("nan")), "NaN"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_in_a_file_is_said(case, tmp_path):
    name, change, words = ODD[case]
    state = a1111.to_dict(Contents.of(hn.Hypernetwork.create((8,), seed=0)), name)
    change(state)
    path = tmp_path / f"{name}.pt"
    path.write_bytes(container.write(state))
    judged = portability.judge(files.read(path), path)
    assert words in portability.as_lines(portability.in_words(judged))


def test_one_for_stable_diffusion_xl_is_applied_as_we_write_it(tmp_path):
    """The web UI hooks its attention as that of 1 and 2, by width; ComfyUI's patch goes by the
    width of what it is given, too.
    """
    net = hn.Hypernetwork.create(
        (640, 1280, 2048), layer_structure=(1, 0.05, 1), activation_func="mish", seed=0,
        weight_initialization="XavierNormal",
    )  # fmt: skip
    hn.save(net, tmp_path / "net.pt")
    verdicts = portability.judge(files.read(tmp_path / "net.pt"), tmp_path / "net.pt")
    outcomes = {verdict.host: verdict.outcome for verdict in verdicts}
    assert outcomes.pop("Forge") == Outcome.IGNORED
    assert set(outcomes.values()) == {Outcome.SAME}
    state = container.read(tmp_path / "net.pt")
    assert {key for key in state if isinstance(key, int)} == {640, 1280, 2048}
    for dim in net.dims:
        context = torch.randn(2, 3, dim, generator=torch.Generator().manual_seed(0))
        for ours, theirs in zip(
            hn.transform_context(context, [(net, 1.0)]),
            comfyui_reference.run(state, context),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# As published in the web UI's safety check, which both it and Forge run before loading.
PUBLISHED_RECORDS = r"[^/]+/(data\.pkl|version|data/\d+)"
PUBLISHED_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
    "torch DoubleStorage",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_our_bytes_hold_only_what_is_published(dtype, tmp_path):
    """Read off the bytes, without our reader or torch's."""
    net = Contents.of(hn.Hypernetwork.create((8,), activation_func="prelu", seed=0)).to(dtype)
    files.write(net.described(step=2**40, optional_info="ü"), tmp_path / "net.pt")
    archive = zipfile.ZipFile(tmp_path / "net.pt")
    assert all(re.fullmatch(PUBLISHED_RECORDS, name) for name in archive.namelist())
    pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    steps = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(pickled)]
    assert {argument for name, argument in steps if name == "GLOBAL"} <= PUBLISHED_NAMES
    assert not {name for name, _ in steps} & {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "BUILD"}

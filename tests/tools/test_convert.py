"""Files between the two formats: nothing is lost, nothing is overwritten unasked."""

import hashlib
import time

import pytest
import torch

import hn
from hn.network import a1111, container, files, native
from hn.network.contents import Contents
from tests import golden
from tests.tools.conftest import run_process

STORED = sorted((golden.FOLDER / "files").glob("*.pt"))
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
# The same functions by the names that ComfyUI knows.
PORTABLE = {None: "linear", "hardswish": "swish"}


@pytest.fixture
def net(tmp_path):
    """A file with everything in it: dropout, notes, an activation."""
    net = hn.Hypernetwork.create(
        (8, 16), activation_func="relu", dropout_structure=(0, 0.3, 0), seed=0
    )
    net.describe(step=7, optional_info="how it was trained", sd_checkpoint="0123456789")
    hn.save(net, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def same(first: Contents, second: Contents) -> bool:
    return list(first.packed()) == list(second.packed()) and all(
        tensor.dtype == second.tensors[key].dtype and torch.equal(tensor, second.tensors[key])
        for key, tensor in first.tensors.items()
    )


@pytest.mark.parametrize("source", STORED, ids=lambda path: path.stem)
def test_there_and_back_loses_nothing(run, source, tmp_path):
    steps = [
        tmp_path / folder / f"{source.stem}{ending}"
        for folder, ending in (("1", ".safetensors"), ("2", ".pt"), ("3", ".safetensors"))
    ]
    for old, new in zip([source, *steps], steps, strict=False):
        assert run("convert", old, "-o", new).returncode == 0
    before = files.read(source).described(name=source.stem)
    for path in steps:
        after = files.read(path)
        assert same(before, after)
        assert after.provenance == before.provenance
    there, back, again = (files.read(path).config for path in steps)
    assert there == before.config
    changed = vars(before.config) | {
        "activation_func": PORTABLE.get(name := before.config.activation_func, name)
    }
    assert vars(back) == vars(again) == changed
    if changed == vars(before.config):
        assert steps[0].read_bytes() == steps[2].read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_there_and_back_keeps_the_files_own_precision(run, net, precision, tmp_path):
    original = tmp_path / "own.pt"
    generator = torch.Generator().manual_seed(0)
    contents = files.read(net)
    tensors = {
        key: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(
            PRECISIONS[precision]
        )
        for key, t in contents.tensors.items()
    }
    contents = Contents(config=contents.config, provenance=contents.provenance, tensors=tensors)
    files.write(contents, original)
    assert run("convert", original).returncode == 0
    back = tmp_path / "back" / "own.pt"
    assert run("convert", tmp_path / "own.safetensors", "-o", back).returncode == 0
    assert same(contents, files.read(back))
    assert back.read_bytes() == original.read_bytes()
    assert {t.dtype for t in files.read(back).tensors.values()} == {PRECISIONS[precision]}


def test_the_real_process_writes_beside_and_says_where_it_runs(net, tmp_path):
    began = time.monotonic()
    asked = run_process("convert", "--help")
    assert time.monotonic() - began < 2  # half a second on an idle machine: no torch
    assert (asked.returncode, "--base_file" in asked.stdout) == (0, True)
    result = run_process("convert", "net.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "net.pt -> net.safetensors"
    assert "silently ignored" in result.stdout
    assert "tools/convert.py net.safetensors -o net.pt" in result.stdout
    assert same(files.read(net), files.read(tmp_path / "net.safetensors"))


def test_the_exit_code_of_the_process(tmp_path):
    result = run_process("convert", tmp_path / "gone.pt")
    assert result.returncode == 4
    assert result.stderr == (
        f"error: cannot read {tmp_path / 'gone.pt'}: No such file or directory\n"
    )


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_another_precision(run, net, dtype):
    output = net.with_name("small.pt")
    assert run("convert", net, "-o", output, "--dtype", dtype).returncode == 0
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    for key, tensor in files.read(output).tensors.items():
        assert tensor.dtype == expected
        assert torch.equal(tensor, files.read(net).tensors[key].to(expected))


def test_weights_too_large_for_fp16_are_refused_by_name(run, net):
    contents = files.read(net)
    large = contents.tensors["8.v.linear.0.bias"].clone()
    large[3] = -70_000
    files.write(
        Contents(
            config=contents.config,
            provenance=contents.provenance,
            tensors={**contents.tensors, "8.v.linear.0.bias": large},
        ),
        net,
    )
    result = run("convert", net, "-o", net.with_name("small.pt"), "--dtype", "fp16")
    assert result.returncode == 4
    assert "8.v.linear.0.bias reaches 7e+04" in result.stderr
    assert "bf16 and fp32 reach" in result.stderr
    assert not net.with_name("small.pt").exists()
    assert run("convert", net, "-o", net.with_name("s.pt"), "--dtype", "bf16").returncode == 0


def test_fix_removes_what_hosts_compute_otherwise_and_no_picture_changes(run, net):
    result = run("convert", net, "-o", net.with_name("fixed.pt"), "--fix")
    assert "ComfyUI    runs the same" in result.stdout
    fixed, x = hn.load(net.with_name("fixed.pt")), torch.randn(2, 3, 8)
    assert not any(fixed.config.dropout_structure)
    assert not fixed.config.use_dropout
    assert fixed.provenance.optional_info == "how it was trained"
    before = hn.load(net)
    assert all(torch.equal(a, b) for a, b in zip(before(x, x), fixed(x, x), strict=True))


def test_share_leaves_out_the_notes_too(run, net):
    assert run("convert", net, "-o", net.with_name("shared.pt"), "--share").returncode == 0
    shared = hn.load(net.with_name("shared.pt"))
    assert shared.provenance.optional_info is None
    assert shared.provenance.step == 7
    assert not shared.config.use_dropout


def test_the_base_models_hash_and_stem_are_noted(run, net, tmp_path):
    (tmp_path / "v1-5.ckpt").write_bytes(b"a base model")
    output = net.with_name("new.pt")
    base = tmp_path / "v1-5.ckpt"
    assert run("convert", net, "-o", output, "--base_file", base).returncode == 0
    provenance = hn.load(output).provenance
    assert provenance.sd_checkpoint == hashlib.sha256(b"a base model").hexdigest()[:10]
    assert provenance.sd_checkpoint_name == "v1-5"
    gone = run("convert", net, "-o", tmp_path / "x.pt", "--base_file", tmp_path / "gone")
    assert (gone.returncode, "cannot read" in gone.stderr) == (4, True)


def test_nothing_is_overwritten_unasked(run, net):
    before = net.read_bytes()
    for arguments in ([net, "-o", net], [net, "-o", net.parent]):
        result = run("convert", *arguments)
        assert result.returncode == 2
        assert "is there already" in result.stderr
    assert net.read_bytes() == before


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_file_can_be_replaced_by_itself(run, net, ending):
    path = net.with_name(f"it{ending}")
    files.write(files.read(net), path)
    before = files.read(path)
    tensors = {key: tensor.clone() for key, tensor in before.tensors.items()}
    assert run("convert", path, "-o", path, "--overwrite").returncode == 0
    assert all(torch.equal(t, tensors[key]) for key, t in files.read(path).tensors.items())


@pytest.mark.parametrize("name", ["net.ckpt", "net", "net.PT", "folder/"])
def test_an_ending_that_is_neither_is_refused(run, net, name, tmp_path):
    result = run("convert", net, "-o", tmp_path / "new" / name)
    assert result.returncode == 4
    assert "allowed are .pt, .safetensors" in result.stderr
    assert not (tmp_path / "new").exists()


def test_what_is_left_out_or_left_alone_is_said(run, net):
    state = container.read(net)
    net.write_bytes(container.write({**state, "skip": True, "32": state[8]}))
    net.with_name("net.pt.optim").write_bytes(b"")
    result = run("convert", net, "-o", net.with_name("new.pt"))
    assert "left out, since no host reads it: ('skip', '32')" in result.stdout
    assert "net.pt.optim, which belongs to net.pt as it was" in result.stdout
    again = run("convert", net.with_name("new.pt")).stdout
    assert not any(line.startswith("left ") for line in again.splitlines())


def test_a_file_under_the_other_ending_goes_to_its_true_other(run, net, tmp_path):
    """Known by its bytes, so that `-o` is the only thing that decides what is written."""
    disguised = tmp_path / "other.pt"
    disguised.write_bytes(native.to_bytes(files.read(net), "other"))
    assert run("convert", disguised, "-o", tmp_path / "out.pt").returncode == 0
    assert same(a1111.read(tmp_path / "out.pt"), files.read(net))

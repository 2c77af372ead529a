"""Linear hypernetworks folded into a UNet: exact, undone to the bit, refused by reason."""

import pytest
import torch
from peft import LoraConfig

import hn
from hn.errors import ModelError, OptionError
from tests import tiny
from tests.surgery import nets


@pytest.fixture(scope="module", params=["SD 1", "SD 2"])
def unet(request):
    torch.manual_seed(0)
    if request.param == "SD 1":
        return tiny.make_unet().double()
    return tiny.make_unet(use_linear_projection=True, transformer_layers_per_block=2).double()


@torch.no_grad()
def predict(unet, **layers):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 7, tiny.CONTEXT_DIM, generator=generator, dtype=torch.float64)
    return unet(latents, 3, context).sample


STACKS = {
    "one": lambda: [(nets.make(0).double(), 0.8)],
    "deep": lambda: [(nets.make(1, layer_structure=(1, 0.5, 3, 1)).double(), 1.0)],
    "flat, activation never applied": lambda: [
        (nets.make(2, layer_structure=(1, 1), activation_func="mish").double(), -0.5)
    ],
    "several, by side and block": lambda: [
        (nets.make(0).double(), hn.Strength(0.5, k=0.3, up=0.2)),
        (nets.make(1, dims=(24, 32), dropout_structure=(0, 0.3, 0)).double(), 0.7),
    ],
}


@pytest.mark.parametrize("kind", STACKS)
def test_a_folded_unet_predicts_what_an_attached_one_does(unet, kind):
    stack = STACKS[kind]()
    before = predict(unet)
    with hn.attach(unet, stack):
        truth = predict(unet)
    folding = hn.fold(unet, stack)
    folded = predict(unet)
    assert (folded - truth).norm() / truth.norm() < 1e-12
    assert (folded - before).norm() / before.norm() > 1e-2
    folding.undo()
    folding.undo()
    assert torch.equal(predict(unet), before)


def test_what_is_attached_comes_before_what_is_folded(unet):
    first, second = nets.make(0).double(), nets.make(1).double()
    with hn.attach(unet, [(first, 1.0), (second, 0.5)]):
        truth = predict(unet)
    with hn.attach(unet, [(first, 1.0)]), hn.fold(unet, [(second, 0.5)]):
        both = predict(unet)
    assert (both - truth).norm() / truth.norm() < 1e-12


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ({"activation_func": "mish"}, "net0 has the activation 'mish', so it is no matrix"),
        ({"is_layer_norm": True}, "has layer norm"),
        ({"activation_func": "relu", "activate_output": True}, "tools/export_lora.py"),
    ],
)
def test_what_is_not_linear_is_refused_with_the_remedy(unet, structure, reason):
    before = predict(unet)
    with pytest.raises(ModelError, match=reason):
        hn.fold(unet, [(nets.make(0, **structure).double(), 1.0)])
    assert torch.equal(predict(unet), before)


def test_other_reasons_not_to_fold(unet):
    net = nets.make(0)
    half = tiny.make_unet().half()
    with pytest.raises(ModelError, match="folded weights do not fit into"):
        hn.fold(half, [(net, 1e6)])
    assert all(bool(tensor.isfinite().all()) for tensor in half.parameters())
    with pytest.raises(OptionError, match="changes while denoising"):
        hn.fold(unet, [(net, hn.Strength(schedule=((0.0, 0.0), (1.0, 1.0))))])
    with pytest.raises(ModelError, match="another base model"):
        hn.fold(unet, [(nets.make(0, dims=(7,)), 1.0)])
    with pytest.raises(ModelError, match="has no UNet"):
        hn.fold(object(), [(net, 1.0)])
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), "lora")
    try:
        with pytest.raises(ModelError, match="unload LoRAs"):
            hn.fold(unet, [(net, 1.0)])
    finally:
        unet.unload_lora()

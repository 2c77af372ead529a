"""What the web UI's constructor and loader accept, and small facts about what they make."""

import pytest
import torch
from torch import nn

import hn
from hn.errors import ModelError
from hn.network import a1111, container
from hn.network.activations import NAMES, make_activation
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from hn.training import optimizers
from tests import golden

FACTS = golden.read_json("facts.json")
ERRORS = {case["case"]: case["raises"] is not None for case in golden.read_json("errors.json")}

CONSTRUCTED = {
    "layer_structure [2,1]": {"layer_structure": (2, 1)},
    "layer_structure [1,2]": {"layer_structure": (1, 2)},
    "layer_structure [1]": {"layer_structure": (1,)},
    "layer_structure []": {"layer_structure": ()},
    'activation "nonsense"': {"activation_func": "nonsense"},
    'activation "ReLU" (capitals)': {"activation_func": "ReLU"},
    'activation "nonsense" with layer_structure [1,1] and activate_output False': {
        "activation_func": "nonsense",
        "layer_structure": (1, 1),
    },
    'activation "nonsense" with layer_structure [1,1] and activate_output True': {
        "activation_func": "nonsense",
        "layer_structure": (1, 1),
        "activate_output": True,
    },
    "activation multiheadattention": {"activation_func": "multiheadattention"},
    "activation threshold": {"activation_func": "threshold"},
    "activation glu (construct only)": {"activation_func": "glu"},
    'weight_init "nonsense"': {"weight_initialization": "nonsense"},
    'weight_init "normal" (lower case)': {"weight_initialization": "normal"},
    "weight_init None": {"weight_initialization": None},
    "dropout 1.0": {"dropout_structure": (0, 1.0, 0)},
    "dropout 1.5": {"dropout_structure": (0, 1.5, 0)},
    "dropout -0.1": {"dropout_structure": (0, -0.1, 0)},
    "dropout structure too short": {"dropout_structure": (0, 0.1)},
    "dropout structure too long": {"dropout_structure": (0, 0.1, 0, 0.5)},
    "dropout structure starts with 0.5": {"dropout_structure": (0.5, 0, 0)},
}
REFUSED_EARLIER = {"activation glu (construct only)"}  # the web UI fails at the first forward


@pytest.mark.parametrize("case", CONSTRUCTED)
def test_what_the_web_ui_cannot_construct_is_refused(case):
    settings = {"weight_initialization": "Normal", **CONSTRUCTED[case]}
    if ERRORS[f"construct: {case}"] or case in REFUSED_EARLIER:
        with pytest.raises(ModelError):
            Hypernetwork.create((16,), **settings)
    else:
        x = torch.randn(2, 3, 16)
        assert Hypernetwork.create((16,), **settings)(x, x)[0].shape == x.shape


def _without_a_tensor(state):
    del state[16][0]["linear.0.bias"]


def _with_an_extra_tensor(state):
    state[16][0]["linear.7.bias"] = torch.zeros(3)


def _text_width(state):
    state["16"] = state.pop(16)


def _wrong_width(state):
    state[32] = state.pop(16)


def _old_names_with_relu(state):
    for weights in state[16]:
        for old, new in (("linear.0", "linear1"), ("linear.2", "linear2")):
            for kind in ("weight", "bias"):
                weights[f"{new}.{kind}"] = weights.pop(f"{old}.{kind}")


def _one_module(state):
    state[16] = state[16][:1]


LOADED = {
    "missing a tensor": _without_a_tensor,
    "an extra tensor": _with_an_extra_tensor,
    "width key stored as text": _text_width,
    "wrong width": _wrong_width,
    "linear1/linear2 keys with relu (index mismatch)": _old_names_with_relu,
    'stored weight_initialization "nonsense" (only used when creating)': lambda state: state.update(
        weight_initialization="nonsense"
    ),
    'stored activation "nonsense"': lambda state: state.update(activation_func="nonsense"),
    "dropout structure changed to add a dropout (index shift)": lambda state: state.update(
        dropout_structure=[0, 0.3, 0]
    ),
    "stored step is None": lambda state: state.update(step=None),
    "only one module in the pair": _one_module,
}
REFUSED_HERE = {"width key stored as text"}  # the web UI loads a network without any width


@pytest.mark.parametrize("case", LOADED)
def test_what_the_web_ui_cannot_load_is_refused(case, tmp_path):
    net = Hypernetwork.create((16,), activation_func="relu", seed=0)
    state = a1111.to_dict(Contents.of(net), "net")
    LOADED[case](state)
    path = tmp_path / "net.pt"
    path.write_bytes(container.write(state))
    if ERRORS[f"load: {case}"] or case in REFUSED_HERE:
        with pytest.raises(ModelError, match=r"net\.pt"):
            hn.load(path)
    else:
        assert hn.load(path).provenance.step == 0


@pytest.mark.parametrize("rank", [2, 4])
def test_softmax2d_takes_the_ranks_that_it_takes_in_the_web_ui(rank):
    net = Hypernetwork.create((16,), activation_func="softmax2d", weight_initialization="Normal")
    x = torch.randn(*(2,) * (rank - 1), 16)
    if ERRORS[f"forward: {rank}-dim input through softmax2d"]:
        with pytest.raises(ValueError, match="3D or 4D"):
            net(x, x)
    else:
        assert net(x, x)[0].shape == x.shape


def test_every_error_of_the_web_ui_is_tried():
    tried = {f"construct: {case}" for case in CONSTRUCTED} | {f"load: {case}" for case in LOADED}
    tried |= {f"forward: {rank}-dim input through softmax2d" for rank in (2, 4)}
    left = {case for case in ERRORS if case not in tried and "activation glu, " not in case}
    # None is no structure in our types; a hidden width of 0 is tried in test_module.py
    assert left == {
        "construct: layer_structure None",
        "construct: layer_structure [1,0.01,1] width 16 (hidden width 0)",
    }


INITIALISERS = ("Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")


@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "linear"])
@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_initialisers_have_the_web_uis_spread(initialiser, activation):
    net = Hypernetwork.create(
        (512,), activation_func=activation, weight_initialization=initialiser, seed=1
    )
    layers = [layer for layer in net.pairs["512"]["k"].linear if isinstance(layer, nn.Linear)]
    facts = FACTS[f"init_{initialiser}_{activation}"]
    for layer, fact in zip(layers, facts, strict=True):
        assert layer.weight.shape == (fact["fan_out"], fact["fan_in"])
        assert layer.weight.std().item() == pytest.approx(fact["std"], rel=0.01)
        # the largest of half a million normal numbers varies, that of uniform ones does not
        slack = 1e-3 if "Uniform" in initialiser else 0.15
        assert layer.weight.abs().max().item() == pytest.approx(fact["max"], rel=slack)
        assert not layer.bias.any()


def test_layer_norm_starts_near_zero():
    net = Hypernetwork.create(
        (512,), is_layer_norm=True, weight_initialization="KaimingNormal", seed=1
    )
    norms = [layer for layer in net.modules() if isinstance(layer, nn.LayerNorm)]
    assert len(norms) == 4
    for norm in norms:
        assert norm.weight.std().item() == pytest.approx(
            FACTS["layernorm_init"][0]["weight_std"], 0.2
        )
        assert not norm.bias.any()


def test_prelu_has_a_trained_slope():
    net = Hypernetwork.create((16,), activation_func="prelu", seed=0)
    assert dict(net.named_parameters())["pairs.16.k.linear.1.weight"] == FACTS["prelu_slope_init"]


@pytest.mark.parametrize("case", FACTS["parse_dropout_structure"], ids=str)
def test_old_flags_imply_a_dropout_structure(case):
    structure = tuple(case["layer_structure"] or (1, 2, 1))
    parsed = a1111.parse_dropout_structure(
        structure, case["use_dropout"], case["last_layer_dropout"]
    )
    assert list(parsed) == case["result"]


def test_activations_are_the_web_uis_without_those_it_fails_with():
    unusable = {"glu", "multiheadattention", "threshold"}
    assert set(FACTS["activation_keys_with_this_torch"]) - unusable <= set(NAMES)
    assert not unusable & set(NAMES)


def test_the_web_uis_optimizers_are_known_by_their_names():
    for name in FACTS["optimizer_names"]:
        assert optimizers.find_class(name) is getattr(torch.optim, name)


def test_one_network_twice_has_both_strengths():
    """In the web UI the last one counts for both, once they are cached."""
    assert FACTS["same_name_twice"]["second_request_multipliers"] == [0.4, 0.4]
    net = Hypernetwork.create((16,), weight_initialization="XavierNormal", seed=0)
    x = torch.randn(2, 3, 16)
    first = net.module(16, "k")(x, 0.7)
    k, _ = hn.transform_context(x, [(net, 0.7), (net, 0.4)])
    assert torch.equal(k, net.module(16, "k")(first, 0.4))


def test_in_training_the_strength_counts_nothing():
    net = Hypernetwork.create((16,), weight_initialization="XavierNormal", seed=0)
    x = torch.randn(2, 3, 16)
    used, trained = net(x, x, 0.25)[0] - x, net.train()(x, x, 0.25)[0] - x
    times = FACTS["train_effect_over_eval_effect_at_multiplier_0.25"]
    torch.testing.assert_close(trained, used * times)


@pytest.mark.parametrize("name", ["softmax", "softmin", "logsoftmax", "softmax2d"])
def test_softmax_runs_over_the_batch(name):
    y = make_activation(name)(torch.randn(2, 3, 4))
    y = y.exp() if name == "logsoftmax" else y
    assert FACTS[f"{name}_axis_that_sums_to_one_for_3d_input"] == [0]
    torch.testing.assert_close(y.sum(0), torch.ones(3, 4))

"""The paired loss against its formula, and the arithmetic of comparisons."""

import pytest
import torch

from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.evaluation import paired
from hn.evaluation.bench import Bench
from hn.evaluation.drift import relative_change
from hn.evaluation.paired import Comparison, Pictures
from hn.network.module import Hypernetwork
from hn.training.telling.residuals import watched
from tests import tiny

DRAWS = 8


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


@pytest.fixture(scope="module")
def pictures(base):
    latents = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(it)) for it in (1, 2)]
    return Pictures(latents, None, ["a star", "a red heart"], ["a", "b"], Contexts(base))


def bench(base, pictures):
    return Bench(
        base=base, contexts=pictures.contexts, studio=None, held_out=pictures, trained=None, seed=3
    )


def test_the_loss_is_the_error_of_the_noise_that_was_added(base, pictures):
    """A predictor that knows the noise has no loss, one that says nothing its mean square."""
    known = {}
    for row in range(2 * DRAWS):
        drawn = paired.draw(pictures, [row], DRAWS, base, seed=3)
        known[float(drawn.noisy.sum())] = drawn
        share = base.alphas_cumprod[drawn.timesteps].item()
        clean = (drawn.noisy - (1 - share) ** 0.5 * drawn.target) / share**0.5
        assert torch.allclose(clean[0], pictures.latents[row // DRAWS], atol=1e-4)

    def oracle(noisy, timesteps, condition):
        return torch.cat([known[float(it.sum())].target for it in noisy])

    assert paired.losses(pictures, oracle, base, 3, DRAWS).abs().max() == 0
    nothing = paired.losses(pictures, lambda noisy, *_: torch.zeros_like(noisy), base, 3, DRAWS)
    expected = [it.target.square().mean() for it in known.values()]
    assert nothing.flatten().tolist() == pytest.approx([float(it) for it in expected])


def test_every_part_of_the_timesteps_is_drawn_once(base, pictures):
    drawn = paired.draw(pictures, list(range(DRAWS)), DRAWS, base, seed=3)
    assert (drawn.timesteps * DRAWS // 1000).tolist() == list(range(DRAWS))
    assert paired.edges(1000) == [(0, 250), (250, 500), (500, 750), (750, 1000)]


def test_strength_0_is_the_base_model_and_the_unet_is_given_back(base, pictures):
    net = Hypernetwork.create(tiny.DIMS, weight_initialization="Normal", seed=1)
    before = dict(base.unet.attn_processors)
    at = bench(base, pictures)
    with at.reading(net, 0.0) as predict:
        base_losses = at.losses(pictures, predict, "")
    with at.reading(net) as predict, watched(net) as residuals:
        losses = at.losses(pictures, predict, "")
    assert dict(base.unet.attn_processors) == before
    plain = paired.losses(
        pictures,
        lambda noisy, timesteps, of: base.unet(noisy, timesteps, of.context).sample,
        base, 3, at.options.samples,
    )  # fmt: skip
    assert torch.equal(base_losses, plain)
    assert not torch.equal(losses, plain)
    assert set(residuals.overall()) == {f"{dim}.{side}" for dim in tiny.DIMS for side in "kv"}


def test_the_residual_ratio_is_that_of_what_is_added():
    net = Hypernetwork.create((8,), weight_initialization="Normal", seed=1)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    with watched(net) as residuals:
        net(x, x)
        net(x[:1], x[:1])
    seen = torch.cat([x, x[:1]])
    added = net.module(8, "k").linear(seen).detach()
    expected = float(added.square().mean().sqrt() / seen.square().mean().sqrt())
    assert residuals.overall()["8.k"] == pytest.approx(expected, rel=1e-5)


def test_a_comparison_is_clustered_by_picture():
    """Draws of a picture are no evidence of their own: repeating them narrows nothing."""
    now, before = torch.tensor([[1.0, 2.0], [2.0, 4.0], [4.0, 5.0]]), torch.full((3, 2), 4.0)
    once = Comparison.of(now, before)
    again = Comparison.of(now.repeat(1, 10), before.repeat(1, 10))
    assert once.difference.error == pytest.approx(again.difference.error)
    assert once.gain == pytest.approx(0.25)
    each = torch.tensor([-2.5, -1.0, 0.5])
    assert once.difference.mean == pytest.approx(float(each.mean()))
    assert once.difference.error == pytest.approx(float(each.std()) / 3**0.5)


def test_what_remains_is_known_better_than_the_difference_where_pictures_differ():
    """Everything halved: the share is exact, whatever the pictures."""
    before = torch.tensor([[1.0], [10.0], [100.0]])
    halved = Comparison.of(before / 2, before)
    assert halved.remaining.mean == pytest.approx(0.5)
    assert halved.remaining.error == pytest.approx(0, abs=1e-9)
    assert halved.difference.error > 10


def test_bands_are_quarters_of_the_draws():
    now = torch.arange(16.0).view(2, 8)
    assert [band.loss for band in paired.bands(now, now + 1)] == [4.5, 6.5, 8.5, 10.5]


def test_drift_is_relative():
    before = torch.tensor([3.0, 4.0])
    assert relative_change(before * 1.5, before) == pytest.approx(0.5)
    assert relative_change(before, before) == 0

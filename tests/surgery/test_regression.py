"""Matrices of low rank for what is not linear: the best there are, by independent means."""

import pytest
import torch

from hn.network.surgery import regression
from hn.network.surgery.regression import Moments

DIM, OUT, COUNT = 6, 5, 4000


@pytest.fixture
def sample():
    """Contexts with a mean, what is added to them, and weights."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = randn(COUNT, DIM) @ randn(DIM, DIM) + randn(DIM)
    added = {"k": (x @ randn(DIM, DIM)).tanh() + 3, "v": (x @ randn(DIM, DIM)).relu()}
    weights = torch.rand(COUNT, generator=generator, dtype=torch.float64)
    return x, added, weights, randn(OUT, DIM)


def moments_of(x, added, weights):
    """Taken in piece by piece."""
    moments = Moments(DIM, torch.device("cpu"))
    for rows in torch.arange(len(x)).chunk(7):
        moments.add(x[rows], {side: y[rows] for side, y in added.items()}, weights[rows])
    return moments


def lost(x, y, weights, matrix):
    """The weighted mean square of what is left."""
    return float(((y - x @ matrix.T).square().sum(1) * weights).sum() / weights.sum())


def test_a_fit_is_the_best_of_its_rank(sample):
    x, added, weights, weight = sample
    y = added["v"] @ weight.T
    seen = moments_of(x, added, weights).of("v", weight)
    errors = []
    for rank in (1, 2, DIM):
        factors = regression.fit(seen, rank)
        assert factors.up.shape == (OUT, min(rank, OUT))
        error = lost(x, y, weights, factors.matrix)
        assert regression.residual(seen, factors) == pytest.approx(error)
        # nothing that gradient descent finds from there is better
        up, down = (
            it.clone(memory_format=torch.contiguous_format).requires_grad_()
            for it in (factors.up, factors.down)
        )
        optimizer = torch.optim.LBFGS([up, down], max_iter=50, line_search_fn="strong_wolfe")

        def closure(up=up, down=down, optimizer=optimizer):
            optimizer.zero_grad()
            loss = ((y - x @ (up @ down).T).square().sum(1) * weights).sum() / weights.sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert error <= lost(x, y, weights, (up @ down).detach()) * (1 + 1e-4)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    root = weights.sqrt()[:, None]
    least = torch.linalg.lstsq(x * root, y * root).solution.T
    assert errors[-1] == pytest.approx(lost(x, y, weights, least), rel=1e-4)


def test_keys_are_fitted_up_to_a_constant(sample):
    x, added, weights, weight = sample
    factors = regression.fit(moments_of(x, added, weights).of("k", weight), DIM)
    left = added["k"] @ weight.T - x @ factors.matrix.T
    mean = (left * weights[:, None]).sum(0) / weights.sum()
    shifted = {"k": added["k"] + 7, "v": added["v"]}
    again = regression.fit(moments_of(x, shifted, weights).of("k", weight), DIM)
    torch.testing.assert_close(factors.matrix, again.matrix, rtol=1e-6, atol=1e-8)
    assert mean.abs().max() > 1  # which no LoRA could give, and no key needs


def test_a_matrix_of_that_rank_is_found_again():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(8, 2, generator=generator).double() for _ in range(2))
    factors, rest = regression.truncate(left @ right.T, 2)
    torch.testing.assert_close(factors.matrix, left @ right.T)
    assert rest < 1e-20
    _, rest = regression.truncate(left @ right.T, 1)
    assert rest == pytest.approx(float(torch.linalg.svdvals(left @ right.T)[1] ** 2))

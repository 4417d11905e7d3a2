"""RePaint's resampling: its schedule is the authors', and what it makes fits what is kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_path.core.diffusion import Mixing
from diffusion_path.core.path import DiffusionPath
from diffusion_path.edits.diffedit import MaskBlend
from diffusion_path.edits.resample import Resample
from diffusion_path.samplers.solvers import SDEDPM, Reuse
from diffusion_path.samplers.walk import transitions_of
from diffusion_path.tests.analytic import (
    Gaussian,
    GaussianDenoiser,
    condition,
    inverted,
    levels,
    picture,
    sampled,
)

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


def path_of(steps: int, flow: bool = False) -> DiffusionPath:
    """A path of which only the levels are known."""
    return DiffusionPath(
        sigmas=levels(steps, flow),
        latents=picture()[None],
        positive=[],
        negative=None,
        cfg=1.0,
        fingerprint={},
    )


def visits(steps: int, edit: Resample, first: int = 0) -> list[int]:
    """The numbers of the levels in the order of their visits, 0 is the noisiest."""
    source = GaussianDenoiser().source(path_of(steps))
    transitions = transitions_of((edit,), source, source.levels[first:])
    reached = [transitions[0][0], *(after for _, after in transitions)]
    assert [before for before, _ in transitions] == reached[:-1]
    return [source.levels.index(level) for level in reached]


def papers(steps: int, jump: int, resamplings: int, highest: int | None = None) -> list[int]:
    """The order of levels by the paper's rule: time falls from `steps` to 0. One step before the
    end, and every `jump` before that, it goes back by `jump` until that was done often enough, but
    never to the beginning's far side; nor above `highest`."""
    left = dict.fromkeys(range(1, steps - jump + 1, jump), resamplings - 1)
    time, order = steps, [steps]
    while time > 0:
        time -= 1
        order.append(time)
        if left.get(time, 0) and time + jump <= (highest or steps):
            left[time] -= 1
            time += jump
            order.append(time)
    return [steps - one for one in order]


@pytest.mark.parametrize(
    ("steps", "jump", "resamplings"),
    [(250, 10, 10), (50, 10, 3), (50, 5, 5), (28, 3, 2), (7, 1, 4), (7, 6, 2), (12, 11, 3)],
)
def test_levels_are_visited_in_the_order_of_the_paper(steps: int, jump: int, resamplings: int):
    edit = Resample(jump=jump, resamplings=resamplings)
    assert visits(steps, edit) == papers(steps, jump, resamplings)


def test_the_published_settings_cost_2410_predictions():
    falls = [a < b for a, b in pairwise(visits(250, Resample(jump=10, resamplings=10)))]
    assert sum(falls) == 250 + 24 * 9 * 10


def test_a_later_start_of_the_window_or_of_the_walk_leaves_out_what_lies_above():
    """As the authors' start_resampling."""
    edit = Resample(jump=3, resamplings=2)
    wanted = papers(20, 3, 2, highest=10)
    late = Resample(jump=3, resamplings=2, start=0.5)
    assert visits(20, late) == wanted
    assert visits(20, edit, first=10) == wanted[10:]


def test_an_earlier_end_of_the_window_leaves_out_what_lies_below():
    """The stretches are from level 1 to 4, 4 to 7, ... 16 to 19."""
    order = visits(20, Resample(jump=3, resamplings=2, end=0.5))
    jumps = [(a, b) for a, b in pairwise(order) if b < a]
    assert jumps == [(4, 1), (7, 4), (10, 7)]


@each_family
def test_a_jump_back_and_a_walk_forth_keep_the_distribution(flow: bool):
    """Of Gaussian data, whose variance at each level is known."""
    denoiser, data = GaussianDenoiser(flow), condition(0)
    sigmas = levels(100, flow)
    first, generator = float(sigmas[0]), torch.Generator().manual_seed(0)
    noise = torch.randn(400, 4, 6, 8, generator=generator, dtype=torch.float64)
    start = denoiser.mixing.signal(first) * data.mean
    start = start + denoiser.variance(first, data) ** 0.5 * noise
    path = path_of(100, flow)._replace(latents=start[None])
    edits = (Resample(jump=20, resamplings=2),)
    latents = sampled(denoiser, path, data, cfg=1.0, edits=edits, generator=generator)
    visited = [sigmas[0]]
    for done in range(100):
        visited.append(sigmas[done + 1])
        if done + 1 in (39, 59, 79, 99):
            visited += list(sigmas[done + 1 - 20 : done + 2])
    for sigma, x in zip(visited, latents, strict=True):
        away = x - denoiser.mixing.signal(float(sigma)) * data.mean
        wanted = denoiser.variance(float(sigma), data)
        assert float(away.var()) == pytest.approx(wanted, rel=0.06)
        assert float(away.mean()) == pytest.approx(0, abs=0.02 * wanted**0.5)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.0, 0.4), (0.5, 1.0)])
def test_noise_is_added_as_if_the_picture_had_been_noised_to_the_higher_level(
    flow: bool, low: float, high: float
):
    mixing = Mixing(flow=flow, noise_scale=3.0)
    kept, fresh = mixing.noisier(low, high)
    assert kept * mixing.signal(low) == pytest.approx(mixing.signal(high))
    variance = (kept * low * 3) ** 2 + fresh**2
    assert variance == pytest.approx((high * 3) ** 2)


RELATED = 0.9
COVARIANCE = torch.tensor([[1.0, RELATED], [RELATED, 1.0]], dtype=torch.float64)


class Related(GaussianDenoiser):
    """The data are pictures of two pixels that have a lot to do with each other."""

    def denoised(self, x: Tensor, sigma: float, condition: Gaussian) -> Tensor:
        signal, one = self.mixing.signal(sigma), torch.eye(2, dtype=torch.float64)
        noisy = signal**2 * COVARIANCE + sigma**2 * one
        return x @ (signal * COVARIANCE @ torch.linalg.inv(noisy)).T


def fit(flow: bool, edits: tuple = ()) -> tuple[float, float]:
    """How the second pixel goes with the first, which is kept: the factor, and the variance of the
    rest. Right is RELATED and 1 - RELATED^2."""
    denoiser, generator = Related(flow), torch.Generator().manual_seed(0)

    def randn() -> Tensor:
        return torch.randn(4000, 1, 1, 2, generator=generator, dtype=torch.float64)

    clean, sigmas = randn() @ torch.linalg.cholesky(COVARIANCE).T, levels(40, flow)
    noisy = [denoiser.mixing.noised(clean, randn(), sigma) for sigma in sigmas.tolist()[:-1]]
    path = path_of(40, flow)._replace(latents=torch.stack([*noisy, clean]))
    edits = (MaskBlend(mask=torch.tensor([[[0.0, 1.0]]])), *edits)
    end = sampled(denoiser, path, condition(0), cfg=1.0, edits=edits, generator=generator)[-1]
    kept, new = end[..., 0].flatten(), end[..., 1].flatten()
    assert torch.equal(kept, clean[..., 0].flatten())
    factor = float((kept * new).mean() / (kept * kept).mean())
    return factor, float((new - factor * kept).var())


@each_family
def test_the_new_part_comes_to_what_it_is_given_the_kept_one(flow: bool):
    factor, rest = fit(flow)
    more, less = fit(flow, (Resample(jump=5, resamplings=5),))
    most, least = fit(flow, (Resample(jump=10, resamplings=20),))
    assert factor < 0.55 < 0.75 < more < most == pytest.approx(RELATED, abs=0.1)
    assert rest > 0.4 > 0.25 > max(less, least)
    assert least == pytest.approx(1 - RELATED**2, abs=0.03)


@each_family
def test_one_pass_is_plain_bit_for_bit(flow: bool):
    denoiser = GaussianDenoiser(flow)
    path = inverted(denoiser)
    ways = {"cfg": 3.0, "edits": (Resample(jump=99, resamplings=1),)}
    found = sampled(denoiser, path, condition(1), condition(2), **ways)
    wanted = sampled(denoiser, path, condition(1), condition(2), cfg=3.0)
    assert torch.equal(found, wanted)


def test_it_costs_a_prediction_for_each_step_and_none_for_a_jump():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)
    denoiser.evaluations = 0
    edits = (Resample(jump=3, resamplings=4),)
    latents = sampled(denoiser, path, condition(1), condition(2), edits=edits)
    assert denoiser.evaluations == 2 * (10 + 3 * 3 * 3)
    assert len(latents) == 1 + 10 + 3 * 3 * (1 + 3)


def test_the_noise_comes_from_the_generator_alone():
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)

    def noisy(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        edits = (Resample(jump=3, resamplings=2),)
        return sampled(denoiser, path, condition(1), cfg=1.0, edits=edits, generator=generator)

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1)[-1], noisy(2)[-1])


@pytest.mark.parametrize(
    "solver_of", [Reuse, lambda: SDEDPM(Mixing(), 1.0, lambda x, *_: 0 * x)], ids=["reuse", "sde"]
)
def test_a_solver_that_remembers_takes_a_step_after_a_jump_as_its_first(solver_of):
    denoiser, x = GaussianDenoiser(), picture()

    def ask(x: Tensor, sigma: float, *_) -> Tensor:
        return denoiser.denoised(x, sigma, condition(0))

    wanted, _ = solver_of().step(ask, x, 3.0, 2.0)
    solver = solver_of()
    solver.step(ask, x, 5.0, 3.0)
    goes_on, _ = solver.step(ask, x, 3.0, 2.0)
    solver.forget()
    found, _ = solver.step(ask, x, 3.0, 2.0)
    assert not torch.equal(goes_on, wanted)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("solver", ["reuse", "midpoint"])
def test_every_solver_of_a_path_can_jump(solver: str):
    denoiser = GaussianDenoiser()
    path = inverted(denoiser, steps=10)._replace(solver=solver)
    denoiser.evaluations = 0
    edits = (Resample(jump=9, resamplings=2),)
    latents = sampled(denoiser, path, condition(1), cfg=1.0, edits=edits)
    assert bool(torch.isfinite(latents).all())
    # FireFlow asks once more for the first step, and so after a jump
    assert denoiser.evaluations == {"reuse": 2 + 19, "midpoint": 2 * 19}[solver]


def test_a_path_with_noise_of_its_own_is_refused():
    path = path_of(5)._replace(residuals=torch.zeros(5, 2, 4, 6, 8))
    with pytest.raises(ValueError, match="noise of its own"):
        Resample().check(path)


def test_a_jump_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="repeats 10 steps"):
        visits(10, Resample(jump=10, resamplings=2))
    with pytest.raises(ValueError, match="repeats 5 steps"):
        visits(20, Resample(jump=5, resamplings=2, end=0.2))


def test_two_of_them_in_a_chain_are_refused():
    source = GaussianDenoiser().source(path_of(20))
    edits = 2 * (Resample(jump=2, resamplings=2),)
    with pytest.raises(ValueError, match="twice"):
        transitions_of(edits, source, source.levels)

"""How signal and noise mix, in both families of coordinates."""

from __future__ import annotations

import pytest
import torch

from diffusion_path.core.diffusion import Mixing, derivative

each_family = pytest.mark.parametrize("flow", [False, True], ids=["eps", "flow"])


@each_family
def test_the_noise_that_was_mixed_in_is_found_again(flow: bool):
    mixing = Mixing(flow=flow)
    x0, noise = torch.randn(2, 2, 4, 6, 8, dtype=torch.float64).unbind()
    torch.testing.assert_close(mixing.noise(mixing.noised(x0, noise, 0.7), x0, 0.7), noise)


def test_the_derivative_is_the_noise_of_an_eps_model_and_the_velocity_of_a_flow():
    x0, noise = torch.randn(2, 2, 4, 6, 8, dtype=torch.float64).unbind()
    eps, flow = Mixing(), Mixing(flow=True)
    torch.testing.assert_close(derivative(eps.noised(x0, noise, 3.0), x0, 3.0), noise)
    torch.testing.assert_close(derivative(flow.noised(x0, noise, 0.7), x0, 0.7), noise - x0)


def test_an_eps_network_sees_the_same_input_after_rescaling():
    mixing, x = Mixing(sigma_data=0.5), torch.randn(1, 4, 6, 8)
    rescaled = mixing.rescale(x, 2.0, 5.0)
    torch.testing.assert_close(rescaled / (5.0**2 + 0.25) ** 0.5, x / (2.0**2 + 0.25) ** 0.5)


def test_a_flow_network_sees_the_latent_as_it_is():
    x = torch.randn(1, 4, 6, 8)
    assert Mixing(flow=True).rescale(x, 0.2, 0.5) is x

"""The forward models of inversions, in the order of truth: analytic, conservation, derivatives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quietbeam import ConfigError
from quietbeam.offline.inversion.basis import Basis
from quietbeam.offline.inversion.integrate import Times, sensitivities, trajectory
from quietbeam.offline.inversion.model import vector
from quietbeam_plugins.inversions._cahn_hilliard import CahnHilliardModel
from quietbeam_plugins.inversions._grid import Volumes, make_grid

SIZE = 24
KAPPA = 20.0


def disc():
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    return y**2 + x**2 < (SIZE / 2 - 1) ** 2


def grid_of(kind):
    boundary = "periodic" if kind == "periodic" else "no-flux"
    return make_grid((SIZE, SIZE), boundary, disc() if kind == "mask" else None)


GRIDS = pytest.mark.parametrize("kind", ["periodic", "no-flux", "mask"])


def model_on(grid, **more):
    made = CahnHilliardModel(
        grid, KAPPA, Basis("legendre", 4, 1), Basis("legendre", 4), 40.0, grid.pixel_response(), 12
    )
    return replace(made.tuned(theta()), **more)


def theta():
    """mu_h = ln(c/(1-c)) + 3 (1 - 2c); ln D falls with c."""
    values = np.zeros(8)
    values[0], values[4], values[5] = -3.0, np.log(20.0), -0.8
    return values


def wavy(grid, amplitude=0.15):
    inside = grid.filtered(torch.ones((SIZE, SIZE), dtype=torch.float64), grid.pixel_response())
    waves = grid.smoothest(9)
    return ((0.5 + amplitude * SIZE * (waves[4] + 0.7 * waves[7]) / 2) * (inside > 0.5))[None]


def run(model, state, until=2.0, values=None):
    end = vector(theta() if values is None else values)
    return list(trajectory(model, state, end, Times(np.array([[0.0, until]]))))[-1]


@pytest.mark.parametrize("kind", ["periodic", "no-flux"])
def test_derivatives_of_waves_are_exact(kind):
    grid = grid_of(kind)
    x = torch.arange(SIZE, dtype=torch.float64) + 0.5
    k = np.pi / SIZE * 4
    field = torch.cos(k * x).expand(SIZE, -1)
    assert torch.allclose(grid.gradient(field)[1], -k * torch.sin(k * x).expand(SIZE, -1))
    assert torch.allclose(grid.laplacian(field), -(k**2) * field)


@GRIDS
def test_divergence_is_minus_the_adjoint_of_the_gradient(kind):
    grid = grid_of(kind)
    generator = torch.Generator().manual_seed(1)
    field = grid.filtered(
        torch.randn((SIZE, SIZE), generator=generator, dtype=torch.float64), grid.pixel_response()
    )
    other = grid.gradient(torch.randn((SIZE, SIZE), generator=generator, dtype=torch.float64))
    left = sum((a * b).sum() for a, b in zip(grid.gradient(field), other, strict=True))
    assert float(left) == pytest.approx(-float((field * grid.divergence(other)).sum()), rel=1e-9)


@GRIDS
def test_mass_is_conserved_to_rounding(kind):
    model = model_on(grid_of(kind))
    start = wavy(model.grid)
    assert float(run(model, start).sum()) == pytest.approx(float(start.sum()), rel=1e-12)


def test_a_small_wave_grows_at_the_rate_of_linear_theory():
    model = model_on(grid_of("periodic"), step=0.05)
    k = 2 * np.pi / SIZE
    x = torch.arange(SIZE, dtype=torch.float64)
    start = (0.5 + 1e-5 * torch.cos(k * x)).expand(SIZE, -1)[None]
    end = run(model, start, 1.0)
    mobility = 0.5 * 20.0  # c D(c) at c = 1/2
    rate = -mobility * k**2 * (4 - 6 + KAPPA * k**2)
    grown = float((end.max() - end.min()) / (start.max() - start.min()))
    assert np.log(grown) == pytest.approx(rate, rel=1e-3)


@GRIDS
def test_halving_the_step_quarters_the_error(kind):
    model = model_on(grid_of(kind))
    start = wavy(model.grid)
    exact = run(replace(model, step=1 / 64), start, 1.0)
    errors = [
        float((run(replace(model, step=h), start, 1.0) - exact).norm()) for h in (1 / 8, 1 / 16)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


@GRIDS
def test_sensitivities_are_the_derivatives_of_the_scheme(kind):
    model = model_on(grid_of(kind))
    start, times, small = wavy(model.grid), Times(np.array([[0.0, 1.0]])), 1e-6
    modes = model.modes()
    _, moved = next(sensitivities(model, start, vector(theta()), times, modes))
    for direction in (0, 2, 4, 6):
        step = np.zeros(8)
        step[direction] = small
        ends = [run(model, start, 1.0, theta() + sign * step) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * small)
        assert torch.allclose(moved[:, direction], slope, atol=1e-6 * float(slope.abs().max()))
    ends = [run(model, start + sign * small * modes[5], 1.0) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * small)
    assert torch.allclose(moved[:, 8 + 5], slope, atol=1e-6 * float(slope.abs().max()))


def test_dropping_dead_directions_changes_nothing_that_matters():
    model = model_on(grid_of("periodic"))
    start, times = wavy(model.grid), Times(np.arange(6.0)[None])
    whole, short = (
        list(sensitivities(model, start, vector(theta()), times, model.modes(), negligible))[-1][1]
        for negligible in (0.0, 1e-8)
    )
    assert torch.allclose(whole, short, atol=1e-3)


def test_nothing_flows_out_of_a_mask():
    model = model_on(grid_of("mask"))
    end = run(model, wavy(model.grid))[0]
    assert torch.all(end[torch.from_numpy(~disc())] == 0)


def test_too_large_a_mask_is_refused():
    with pytest.raises(ConfigError, match="choose one particle"):
        Volumes(np.ones((80, 80), bool))


@pytest.mark.parametrize("basis", [Basis("legendre", 5, 1), Basis("spline", 7)])
def test_functions_and_slopes_of_a_basis_belong_together(basis):
    c = torch.linspace(0.01, 0.99, 57, dtype=torch.float64)
    value, slope = basis.functions(c)
    assert np.allclose(value.numpy().T, basis.at(c.numpy()), atol=1e-9)
    h = 1e-5
    around = (basis.functions(c + h)[0] - basis.functions(c - h)[0]) / (2 * h)
    assert torch.allclose(slope, around, atol=1e-5)


def test_a_weak_form_of_exact_frames_finds_the_physics():
    model = model_on(grid_of("periodic"), step=0.05)
    times = Times(np.arange(0, 6, 0.5)[None])
    states = [wavy(model.grid), *trajectory(model, wavy(model.grid), vector(theta()), times)]
    frames = torch.cat(states).numpy()
    found = model.starts(frames, times.of[0], 1)[0]
    c = np.linspace(0.35, 0.65, 21)
    true, guessed = (model.recovered(one, c) for one in (theta(), found))
    assert guessed["D"].value == pytest.approx(true["D"].value, rel=0.35)

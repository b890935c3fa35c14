"""The workflows against twins whose truth is known, and against input they must refuse."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.analysed import collected, observation
from quietbeam import AnalysisPlugin, ConfigError, RunStart
from quietbeam.registry import find
from quietbeam.testing.twins import TWINS, NeutronTwin, OpticalTwin, StxmTwin
from quietbeam_plugins.analyses.alignment import compare
from quietbeam_plugins.analyses.composition import fit_non_negative, share
from quietbeam_plugins.analyses.cycler import coulombic_efficiencies, half_cycles, read_cycler
from quietbeam_plugins.analyses.particles import Tracker, agreement
from quietbeam_plugins.analyses.stxm import read_spectra
from quietbeam_plugins.corrections.gamma_spots import GammaSpots

Radiography = find("analyses", "radiography", AnalysisPlugin)
Optical = find("analyses", "optical", AnalysisPlugin)
Stxm = find("analyses", "stxm", AnalysisPlugin)


def measured(plugin, run: RunStart, observations: Sequence):
    with plugin.open(run) as measure:
        rows = [measure(one) for one in observations]
        message = measure.message
    known = plugin.metrics() | plugin.maps()
    assert not set(plugin.metrics()) & set(plugin.maps())
    assert all(name in known for row in rows for name in row)
    return rows, message


def seen(twin, sd, indices=None):
    """Frames as a perfect denoiser with errors of this s.d. would give them."""
    rng = np.random.default_rng(9)
    for i in range(twin.frames) if indices is None else indices:
        clean = twin.expected(i)
        yield observation(
            clean + rng.normal(0, sd, clean.shape), sd, measured=twin.counts(i), index=i
        )


@pytest.mark.parametrize("modality", TWINS)
def test_a_twin_is_what_its_seed_says_and_its_noise_has_no_bias(modality):
    twin = TWINS[modality](size=64, frames=6)
    assert np.array_equal(twin.counts(3), TWINS[modality](size=64, frames=6).counts(3))
    assert not np.array_equal(twin.counts(3), TWINS[modality](size=64, frames=6, seed=1).counts(3))
    assert twin.counts(0).shape == twin.start().shape
    many = np.mean([twin.counts(3).mean() for _ in range(1)])
    assert many == pytest.approx(twin.expected(3).mean(), rel=0.02)


def neutron(tmp_path, **more):
    twin = NeutronTwin(size=64, frames=48, spots=0.0)
    np.save(tmp_path / "dark.npy", twin.dark())
    np.save(tmp_path / "open.npy", twin.open_beam())
    settings = twin.settings() | {"dark": str(tmp_path / "dark.npy"), "bins": 8, "every": 1}
    return twin, Radiography(**(settings | {"open_beam": str(tmp_path / "open.npy")} | more))


def test_changes_of_attenuation_profiles_and_active_areas_are_those_of_the_truth(tmp_path):
    twin, plugin = neutron(tmp_path)
    rows, message = measured(plugin, twin.start(), list(seen(twin, 12.0)))
    assert message is None
    top, left, bottom, right = twin.anode
    at = list(range(8, 48))
    errors = np.array([rows[i]["change"] - twin.change(i) for i in at])
    stated = np.array([rows[i]["change_sd"] for i in at])
    assert 0.6 < np.mean(np.abs(errors) < stated) < 0.85
    profile = [twin.change(i)[top:bottom, left:right][::-1] for i in at]
    profile = [[part.mean() for part in np.array_split(rows_, 8)] for rows_ in profile]
    away = np.array([rows[i]["anode_profile"] for i in at]) - profile
    told = np.array([rows[i]["anode_profile_sd"] for i in at])
    assert np.abs(away.mean()) < told.mean() / 3
    assert np.mean(np.abs(away) < 2 * told) > 0.9
    for number, end in enumerate([*twin.half_cycles[1:], twin.frames]):
        assert rows[end - 1]["anode_active"] == pytest.approx(twin.active(number, 0.05), abs=0.02)
    assert rows[-1]["half_cycle"] == 4
    assert np.nanmedian(rows[-1]["transmission"]) == pytest.approx(
        float(np.median(np.exp(-twin.structure() - twin.lithium(47)))), rel=0.03
    )


def test_without_an_open_beam_there_are_changes_but_no_transmission_and_it_is_said(tmp_path):
    twin, plugin = neutron(tmp_path, open_beam=None)
    rows, message = measured(plugin, twin.start(), list(seen(twin, 12.0, range(8))))
    assert message == "no open_beam: transmission is not given, changes need none"
    assert rows[-1]["flag"] == 1
    assert "transmission" not in rows[-1]
    assert np.isfinite(rows[-1]["anode_change"])


def test_without_beam_nothing_is_given_and_it_is_said(tmp_path):
    twin, plugin = neutron(tmp_path)
    shut = [observation(twin.dark() - 1, 5.0, index=i) for i in range(8)]
    rows, message = measured(plugin, twin.start(), shut)
    assert "no beam" in message
    assert all(int(row["flag"]) & 2 and "change" not in row for row in rows)


def test_a_cycler_gives_half_cycles_and_efficiency(tmp_path):
    path = tmp_path / "cell.txt"
    lines = ["preamble", "time/s\tI/mA"]
    for second in range(48):
        current = 0.0 if second % 12 < 2 else (10.0 if second // 12 % 2 == 0 else -9.0)
        lines.append(f"{second}\t{current}")
    path.write_text("\n".join(lines))
    cycles = half_cycles(*read_cycler(path))
    assert [np.sign(cycle.charge_c) for cycle in cycles] == [1, -1, 1, -1]
    assert coulombic_efficiencies(cycles) == pytest.approx([0.9, 0.9])
    twin, plugin = neutron(tmp_path, half_cycles=(), cycler=path)
    rows, _ = measured(plugin, twin.start(), list(seen(twin, 12.0)))
    assert collected(rows)["half_cycle"][30] == 3
    assert rows[-1]["coulombic_efficiency"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "said"),
    [("a,b\n1,2\n", "columns"), ("time/s,I/mA\n2,1\n1,1\n", "rising time")],
)
def test_a_cycler_file_that_tells_nothing_is_refused(tmp_path, text, said):
    path = tmp_path / "cell.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_cycler(path)


def test_gamma_spots_are_marked_and_little_else():
    twin = NeutronTwin(size=96, frames=4, spots=2e-3)
    counts = twin.counts(2).astype(np.float32)
    truth = counts - twin.expected(2) > 1500
    run = RunStart(run="r", shape=counts.shape, dtype=np.dtype("u2"))
    with GammaSpots(grow=False).open(run) as correct:
        _, valid = correct(counts.copy(), np.ones(counts.shape, bool))
    assert (~valid)[truth].mean() > 0.95
    assert (~valid)[~truth].mean() < 2e-3


def test_particles_phases_and_population_are_those_of_the_truth():
    twin = OpticalTwin(size=128, frames=24)
    plugin = Optical(**twin.settings(), every=4, segment_every=4)
    rows, message = measured(plugin, twin.start(), list(seen(twin, 2.0)))
    assert message is None
    row, i = rows[16], 16
    found = agreement(row["particles"], twin.labels())
    assert found.iou > 0.9
    assert found.f1 > 0.9
    truth = twin.phases(i)
    inside = (truth > 0) & (row["phase"] > 0)
    assert np.mean(row["phase"][inside] == truth[inside]) > 0.9
    area = np.bincount(twin.labels().ravel())[1:]
    charge = float((twin.charge(i) * area).sum() / area.sum())
    assert row["mean_charge"] == pytest.approx(charge, abs=0.05)


def test_particles_keep_their_numbers_while_others_come_and_go():
    labels = np.zeros((40, 40), np.int32)
    labels[2:12, 2:12], labels[20:35, 20:35] = 1, 2
    tracker = Tracker(most=3)
    first = tracker(labels)
    later = np.zeros_like(labels)
    later[21:36, 20:35], later[3:10, 25:32] = 1, 2
    second = tracker(later)
    assert second[25, 25] == first[25, 25]
    assert second[5, 27] == 3
    more = later.copy()
    more[30:39, 2:10] = 3
    assert tracker(more)[35, 5] == 0
    assert tracker.dropped == 1


def test_no_particles_and_saturated_colours_are_said():
    twin = OpticalTwin(size=64, frames=4)
    flat = np.random.default_rng(0).normal(40, 1, (3, 64, 64))
    rows, message = measured(
        Optical(), twin.start(), [observation(flat, 1.0, index=i) for i in range(2)]
    )
    assert "no particles" in message
    assert rows[0]["flag"] == 1
    assert "mean_charge" not in rows[0]
    bright = np.clip(twin.expected(0) * 4, 0, 255)
    rows, message = measured(
        Optical(remove_haze=False), twin.start(), [observation(bright, 1.0, index=0)]
    )
    assert "saturated" in message
    assert int(rows[0]["flag"]) & 2


def test_an_operators_clicks_replace_the_colours():
    twin = OpticalTwin(size=128, frames=4)
    y, x = np.argwhere(twin.labels() == 1).mean(0).astype(int)
    swapped = twin.expected(0)[[2, 1, 0]]  # another white balance: blue looks red
    frames = [observation(swapped, 1.0, index=0)]
    before, _ = measured(Optical(**twin.settings()), twin.start(), frames)
    plugin = Optical(**twin.settings(), clicks={"III": [(0, int(y), int(x))]})
    after, _ = measured(plugin, twin.start(), frames)
    assert before[0]["share_III"] != pytest.approx(1.0, abs=0.05)
    assert after[0]["share_III"] > 0.9


def test_grey_frames_are_no_colour_frames():
    with pytest.raises(ConfigError, match="needs colour: channels red, green, blue"):
        measured(Optical(), RunStart(run="r", shape=(64, 64), dtype=np.dtype("u2")), [])


def test_composition_and_its_uncertainty_are_those_of_the_truth():
    twin = StxmTwin(size=96, frames=6, shift_px=(0.0, 0.0))
    plugin = Stxm(**twin.settings(), register_energies=False)
    rows, message = measured(plugin, twin.start(), list(seen(twin, 12.0)))
    assert message is None
    for i, row in enumerate(rows):
        error = row["composition"] - twin.composition(i)
        known = np.isfinite(error)
        assert np.abs(np.median(error[known])) < 0.05
        assert np.mean(np.abs(error[known]) < 2 * row["composition_sd"][known]) > 0.75


def test_energies_that_lie_apart_are_registered_to_half_a_pixel():
    twin = StxmTwin(size=96, frames=6)
    rows, message = measured(Stxm(**twin.settings()), twin.start(), list(seen(twin, 4.0)))
    assert message is None
    for i, row in enumerate(rows):
        error = row["composition"] - twin.composition(i)
        assert np.abs(np.nanmedian(error)) < 0.03
        assert row["shift_y"] == pytest.approx(0.7, abs=0.5)
        assert row["shift_x"] == pytest.approx(-1.2, abs=0.5)
        assert compare(row["composition"], twin.reference(i)).ssim > 0.5


def test_the_non_negative_fit_is_exact_and_its_covariance_holds():
    rng = np.random.default_rng(0)
    pure = np.abs(rng.normal(1, 0.5, (12, 3)))
    truth = np.array([[0.8], [0.5], [0.0]])
    data = pure @ truth + rng.normal(0, 0.05, (12, 4000))
    fit = fit_non_negative(data, np.full(data.shape, 0.05), pure)
    assert (fit.amount >= 0).all()
    from scipy.optimize import nnls

    for n in range(20):
        np.testing.assert_allclose(fit.amount[:, n], nnls(pure, data[:, n])[0], atol=1e-8)
    two = fit_non_negative(data, np.full(data.shape, 0.05), pure[:, :2])
    np.testing.assert_allclose(np.cov(two.amount), two.covariance.mean(-1), rtol=0.15, atol=1e-6)
    value, variance = share(two)
    assert value.std() == pytest.approx(np.sqrt(variance.mean()), rel=0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"components": {"a": (1.0, 1.0), "b": (1.0, 1.01)}}, "cannot be told apart"),
        ({"components": {"a": (1.0,)}}, "one absorbance for each"),
        ({"i0": None}, "needs I0"),
        ({"energies_ev": (706.0,)}, "1 energies_ev for 2 channels"),
        ({"energies_ev": (), "components": {}}, "no components"),
    ],
)
def test_energies_and_components_that_do_not_fit_are_refused(settings, said):
    twin = StxmTwin(size=64, frames=2)
    with pytest.raises(ConfigError, match=said):
        measured(Stxm(**(twin.settings() | settings)), twin.start(), [])


def test_spectra_that_do_not_reach_the_energies_are_refused(tmp_path: Path):
    path = tmp_path / "fe.csv"
    path.write_text("eV,a,b\n700,0.1,0.2\n710,1.0,0.4\n720,0.8,0.9\n")
    np.testing.assert_allclose(read_spectra(path, (705.0,)), [[0.55, 0.3]])
    with pytest.raises(ConfigError, match=r"cover 700 to 720 eV; \[730.0\] are outside"):
        read_spectra(path, (730.0,))


def test_images_that_cannot_be_registered_and_empty_ones_give_no_composition():
    twin = StxmTwin(size=96, frames=2)
    low, high = twin.expected(0)
    apart = np.stack([low, np.roll(high, 40, axis=1)])
    plugin = Stxm(**twin.settings())
    rows, message = measured(plugin, twin.start(), [observation(apart, 2.0)])
    assert "cannot be registered" in message
    assert int(rows[0]["flag"]) & 2
    assert "composition" not in rows[0]
    empty = np.full((2, 96, 96), 400.0) + np.random.default_rng(0).normal(0, 2, (2, 96, 96))
    plugin = Stxm(**twin.settings(), register_energies=False)
    rows, message = measured(plugin, twin.start(), [observation(empty, 2.0)])
    assert "no particles" in message
    assert rows[0]["flag"] == 4
    assert np.isnan(rows[0]["composition"]).all()
    rows, message = measured(plugin, twin.start(), [observation(empty * 0, 2.0)])
    assert "no I0" in message


def test_energies_may_come_frame_by_frame():
    twin = StxmTwin(size=96, frames=3)
    together, _ = measured(Stxm(**twin.settings()), twin.start(), list(seen(twin, 0.1)))
    run = RunStart(run="r", shape=(96, 96), dtype=np.dtype("u2"))
    one_by_one = [
        observation(plane, 0.1, index=2 * i + k)
        for i in range(3)
        for k, plane in enumerate(twin.expected(i))
    ]
    rows, _ = measured(Stxm(**twin.settings()), run, one_by_one)
    assert [bool(row) for row in rows] == [False, True] * 3
    assert rows[5]["composition_mean"] == pytest.approx(together[2]["composition_mean"], abs=0.01)

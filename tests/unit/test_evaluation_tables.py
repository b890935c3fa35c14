from __future__ import annotations

import numpy as np
import pytest

from quietbeam.offline.evaluation import plots, tables
from quietbeam.offline.evaluation.peers import PEERS, for_single_images, missing_peers
from quietbeam.offline.evaluation.score import Example, Score
from quietbeam.offline.evaluation.summary import checks, summarise
from quietbeam.offline.quality import psnr

PNG = b"\x89PNG"


def score(method, psnr, ssim=0.5, case="gaussian", seed=0, kind="denoiser", scene="paper", **more):
    return Score(
        scene=scene, case=case, seed=seed, method=method, kind=kind, psnr=psnr, ssim=ssim, **more
    )


def test_a_summary_is_mean_and_sample_deviation_over_seeds():
    (summary,) = summarise([score("n2v", value, seed=n) for n, value in enumerate((20, 22, 27))])
    assert (summary.psnr, summary.seeds) == (23, 3)
    assert summary.psnr_sd == pytest.approx(np.std([20, 22, 27], ddof=1))
    (alone,) = summarise([score("n2v", 20)])
    assert np.isnan(alone.psnr_sd)


def test_a_figure_that_one_seed_lacks_is_the_mean_of_the_others():
    (summary,) = summarise(
        [score("n2v", 20), score("n2v", 20, seed=1, lag_frames=2.0, flagged=True)]
    )
    assert summary.lag_frames == 2
    assert summary.flagged == 0.5
    assert np.isnan(summary.bias_sd)


def test_a_statement_holds_only_if_both_figures_say_so():
    scores = [score("raw", 10, 0.2), score("n2v", 20, 0.1), score("umvd", 30, 0.9)]
    scores += [score("umvd", 0, scene="slow"), score("raw", 5, 0.6, scene="slow")]
    statements = [("umvd", "n2v", "gaussian"), ("n2v", "raw", "gaussian"), ("umvd", "raw", "mixed")]
    found = {c.statement: c for c in checks(summarise(scores), statements)}
    assert len(found) == 2  # mixed was not measured
    assert found["umvd beats n2v: gaussian"].passed
    assert found["umvd beats n2v: gaussian"].psnr_margin == 10
    assert not found["n2v beats raw: gaussian"].passed


def cell(case="gaussian", scene="slow"):
    same = {"case": case, "scene": scene}
    return summarise(
        [
            score("raw", 14, kind="raw", **same),
            score("tuned ema", 24, kind="filter", **same),
            score("tuned nlm", 27, kind="peer", **same),
            score("best filter", 25, kind="best", **same),
            score("quiet", 28, coverage_1sd=0.68, front_growth=0.05, **same),
            score("umvd", 24.9, **same),
            score("n2v", 24.7, estimate_error_db=-0.3, **same),
        ]
    )


def test_a_cell_is_lost_where_a_filter_or_a_peer_is_better_by_more_than_0_2_db():
    found = {one.method: one for one in cell()}
    assert found["quiet"].margin_db == 3
    assert tables.mark(found["quiet"]) == ""
    assert tables.mark(found["umvd"]) == tables.LOST_TO_PEER
    assert tables.mark(found["n2v"]) == tables.LOST
    assert all(tables.mark(found[name]) == "" for name in ("raw", "tuned ema", "best filter"))
    assert [line.split(":")[0] for line in tables.lost_cells(cell())] == [
        "umvd on slow/gaussian", "n2v on slow/gaussian",
    ]  # fmt: skip


def test_tables_show_losing_cells_and_leave_out_columns_nobody_fills():
    header, rows = tables.scene_table(cell(), tuned=False)
    assert "LAG" not in header
    assert "FRONT" in header
    methods = [row[header.index("METHOD")] for row in rows]
    assert methods == ["raw", "best filter", "quiet", "umvd", "n2v"]
    assert rows[-1][header.index("PSNR dB")] == f"24.70 {tables.LOST}"
    assert rows[2][header.index("FRONT")] == "+5%"
    assert len(tables.scene_table(cell(), tuned=True)[1]) == 7


def test_the_report_has_every_scene_and_case():
    summaries = [*cell(), *cell("poisson"), *cell(scene="moving")]
    text = tables.scenes_markdown(summaries, [], ["nlm left out"], {"slow": ["a.png"]})
    assert text.count("## Scene") == 2
    assert "| PSNR dB | gaussian | poisson |" in text
    assert "![a.png](a.png)" in text
    assert "Note: nlm left out." in text
    lines = [line for line in text.splitlines() if line.startswith("| quiet |")]
    assert lines == ["| quiet | 28.00 | 28.00 |", "| quiet | 28.00 |"]


@pytest.mark.slow
def test_plots_are_written_without_a_display(tmp_path):
    summaries = [*cell(), *cell("poisson")]
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    example = Example("slow", "gaussian", (("truth", image), ("noisy", image)))
    names = plots.plot_psnr(tmp_path, summaries)["slow"]
    names += plots.plot_examples(tmp_path, [example])["slow"]
    assert len(set(names)) == 2
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in names)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_takes_noise_out_and_keeps_the_scale(name):
    if name in missing_peers():
        pytest.skip(f"needs {missing_peers()[name]}")
    y, x = np.indices((40, 40))
    truth = np.stack([1000 + 300.0 * (np.hypot(x - 20, y - 20) < 10)] * 6)
    noisy = (truth + 60 * np.random.default_rng(0).standard_normal(truth.shape)).astype(np.float32)
    clean = PEERS[name].filter(noisy, frames=1, strength=1.0)
    assert clean.dtype == np.float32
    assert psnr(clean, truth, 300) > psnr(noisy, truth, 300) + 4
    assert abs(float(clean.mean() - truth.mean())) < 5
    longer = PEERS[name].filter(noisy, frames=5, strength=1.0)
    assert psnr(longer, truth, 300) > psnr(clean, truth, 300)


def test_single_images_are_never_averaged_by_a_peer():
    alone = for_single_images(PEERS["nlm"])
    assert alone.settings
    assert {one["frames"] for one in alone.settings} == {1}

from __future__ import annotations

import json

import numpy as np
import pytest

from quietbeam import EngineError
from quietbeam.cli import evaluate as command
from quietbeam.cli import main
from quietbeam.offline.evaluation.score import Trial, evaluate
from quietbeam.offline.evaluation.work import BEST, BEST_CAUSAL, Material, workshop
from quietbeam.testing.cahn_hilliard import NOISES
from quietbeam.testing.scenes import SCENES


def trial(case="gaussian", scene="paper"):
    one = SCENES[scene](32, 12, 0)
    return Trial(case, 0, one.truth, NOISES[case].apply(one.truth), scene, one.front_px)


def test_the_statements_of_the_paper_leave_out_noise2void_under_impulses():
    assert ("umvd", "n2v", "impulse") in command.EXPECTED
    assert ("umvd", "raw", "impulse") in command.EXPECTED
    assert ("n2v", "raw", "impulse") not in command.EXPECTED
    assert len(command.EXPECTED) == 10


@pytest.mark.parametrize(
    "words", [["--seeds", "0"], ["--effort", "-1"], ["--cpu-seconds", "0"], ["--processes", "0"]]
)
def test_numbers_that_make_no_sense_are_refused(words):
    assert main(["evaluate", *words]) == 78


@pytest.mark.slow
def test_methods_run_in_processes_of_their_own_and_beat_raw():
    shares = []
    result = evaluate(
        [trial(scene="moving")],
        {"kalman": 0, "quiet": 2},
        progress=lambda _what, share: shares.append(share),
    )
    scores = {score.method: score for score in result.scores}
    assert [s.method for s in result.scores if s.kind not in {"filter", "peer"}] == [
        "raw", BEST_CAUSAL, BEST, "kalman", "quiet", "quiet at lag 0",
    ]  # fmt: skip
    assert scores["raw"].psnr < scores["kalman"].psnr < scores[BEST_CAUSAL].psnr
    assert scores[BEST_CAUSAL].psnr <= scores[BEST].psnr
    assert scores["tuned gaussian 3d"].psnr <= scores[BEST].psnr
    assert scores["quiet"].detail == "2 steps"
    assert scores["quiet"].train_cpu_s > 0
    assert scores["kalman"].train_cpu_s == 0
    assert scores["kalman"].frame_cpu_ms > 0
    assert 0.1 < scores["kalman"].coverage_1sd < scores["kalman"].coverage_2sd < 1
    assert np.isfinite(scores["kalman"].front_growth)
    assert np.isfinite(scores["kalman"].estimate_error_db)
    assert not scores["kalman"].flagged
    assert shares[-1] == pytest.approx(1)
    (example,) = result.examples
    assert scores["quiet at lag 0"].psnr > scores["raw"].psnr + 5
    assert scores["quiet at lag 0"].psnr != scores["quiet"].psnr
    shown = ["truth", "noisy", BEST, "kalman", "quiet", "quiet at lag 0"]
    assert [title for title, _ in example.images] == shown


@pytest.mark.slow
def test_the_same_steps_give_the_same_figures():
    video = trial()
    same = Trial(video.case, 0, video.truth, video.noisy, "again")
    one, other = (
        score
        for score in evaluate([video, same], {"quiet": 3}, peers=False).scores
        if score.method == "quiet"
    )
    assert one.psnr == other.psnr


@pytest.mark.slow
def test_the_same_processor_time_gives_a_small_network_more_steps():
    one = trial()
    with workshop([Material("one", one.noisy, one.truth)], 2, lambda _what, _share: None) as shop:
        steps = shop.rehearse(["kalman", "quiet", "umvd"], 60.0)
    assert steps["kalman"] == 0
    assert 10 < steps["umvd"] < steps["quiet"]


@pytest.mark.slow
def test_a_failing_child_is_named_with_its_last_words():
    with pytest.raises(EngineError, match=r"(?s)nosuch on paper/gaussian.*ConfigError"):
        evaluate([trial()], {"nosuch": 1}, peers=False)


@pytest.mark.slow
def test_the_command_prints_scores_and_checks_as_json(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "QUICK", command.Scale(32, 12, {"kalman": 0}))
    words = ["evaluate", "--cases", "poisson", "--seeds", "2", "--no-peers", "--json"]
    assert main([*words, "--scenes", "slow", "moving", "--output", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is True
    assert printed["checks"] == []
    daemon = [s for s in printed["summary"] if s["kind"] not in {"filter", "peer"}]
    assert {s["method"] for s in daemon} == {"raw", BEST_CAUSAL, BEST, "kalman"}
    assert {s["scene"] for s in daemon} == {"slow", "moving"}
    assert all(s["psnr_sd"] > 0 for s in printed["summary"])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == printed
    text = (tmp_path / "evaluation.md").read_text()
    images = {path.name for path in tmp_path.glob("*.png")}
    assert len(images) == 4
    assert all(f"({image})" in text for image in images)

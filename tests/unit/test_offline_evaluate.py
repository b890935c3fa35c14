from __future__ import annotations

import json

import numpy as np
import pytest

from quietbeam import EngineError
from quietbeam.cli import evaluate as command
from quietbeam.cli import main
from quietbeam.offline.evaluate import ORACLES, Score, Trial, checks, evaluate, summarise
from quietbeam.testing.cahn_hilliard import NOISES, CahnHilliard


def score(method, psnr, ssim=0.5, case="gaussian", seed=0):
    return Score(case=case, seed=seed, method=method, psnr=psnr, ssim=ssim, seconds=0.0, detail="")


def trial(case="gaussian"):
    truth = CahnHilliard(size_px=32).simulate(12, since=0.05, until=0.07)
    return Trial(case, 0, truth, NOISES[case].apply(truth))


def test_a_summary_is_mean_and_sample_deviation_over_seeds():
    (summary,) = summarise([score("n2v", value, seed=n) for n, value in enumerate((20, 22, 27))])
    assert (summary.psnr, summary.seeds) == (23, 3)
    assert summary.psnr_sd == pytest.approx(np.std([20, 22, 27], ddof=1))
    (alone,) = summarise([score("n2v", 20)])
    assert np.isnan(alone.psnr_sd)


def test_a_statement_holds_only_if_both_figures_say_so():
    scores = [score("raw", 10, 0.2), score("n2v", 20, 0.1), score("umvd", 30, 0.9)]
    found = {
        c.statement: c
        for c in checks(
            summarise(scores),
            [("umvd", "n2v", "gaussian"), ("n2v", "raw", "gaussian"), ("umvd", "raw", "mixed")],
        )
    }
    assert len(found) == 2  # mixed was not measured
    assert found["umvd beats n2v: gaussian"].passed
    assert found["umvd beats n2v: gaussian"].psnr_margin == 10
    assert not found["n2v beats raw: gaussian"].passed


def test_the_statements_of_the_paper_leave_out_noise2void_under_impulses():
    assert ("umvd", "n2v", "impulse") in command.EXPECTED
    assert ("umvd", "raw", "impulse") in command.EXPECTED
    assert ("n2v", "raw", "impulse") not in command.EXPECTED
    assert len(command.EXPECTED) == 10


@pytest.mark.slow
def test_methods_run_in_processes_of_their_own_and_beat_raw():
    one = trial()
    shares = []
    scores = evaluate(
        [one], {"kalman": 0, "quiet": 2}, progress=lambda _what, share: shares.append(share)
    )
    assert [s.method for s in scores] == ["raw", *ORACLES, "kalman", "quiet"]
    decibels = {s.method: s.psnr for s in scores}
    assert decibels["raw"] < decibels["kalman"] < decibels["best causal filter"]
    assert decibels["best causal filter"] <= decibels["best filter"]
    assert scores[-1].detail == "2 steps"
    assert shares[-1] == pytest.approx(1)


@pytest.mark.slow
def test_a_failing_child_is_named_with_its_last_words():
    with pytest.raises(EngineError, match=r"(?s)nosuch on gaussian.*ConfigError"):
        evaluate([trial()], {"nosuch": 1})


@pytest.mark.slow
def test_the_command_prints_scores_and_checks_as_json(capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK", command.Scale(32, 12, {"kalman": 0}))
    words = ["evaluate", "--cases", "poisson", "--seeds", "2", "--methods", "kalman", "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is True
    assert printed["checks"] == []
    assert {s["method"] for s in printed["summary"]} == {"raw", *ORACLES, "kalman"}
    assert all(s["psnr_sd"] > 0 for s in printed["summary"])
    assert main(["evaluate", "--seeds", "0"]) == 78

"""The ledger: every frame stands in one account, of its stage, its run and ever."""

from quietbeam.core.ledger import RUNS_KEPT, Ledger


def test_stages_in_different_runs_keep_them_apart():
    ledger = Ledger()
    ledger.begin("a")
    ledger.received("denoise", 3, run="a")
    ledger.end("completed")
    ledger.begin("b")
    ledger.received("denoise", 2, run="b")
    ledger.sent("denoise", 2, run="a")
    ledger.dropped("denoise", "overload", run="a")
    assert ledger.run("a")["stages"]["denoise"] == {
        "received": 3, "sent": 2, "dropped": {"overload": 1}, "in_flight": 0,
    }  # fmt: skip
    assert ledger.run("b")["stages"]["denoise"]["in_flight"] == 2
    assert ledger.stages()["denoise"].as_dict() == {
        "received": 5, "sent": 2, "dropped": {"overload": 1}, "in_flight": 2,
    }  # fmt: skip


def test_what_came_is_told_apart_by_run_and_ever():
    ledger = Ledger()
    ledger.begin("a", expected=9, first=0)
    for number in (1, 0, 4):
        ledger.came(number)
    ledger.refused("duplicate", run="a", frame=True)
    ledger.refused("duplicate")  # a second header
    ledger.end("completed", frames_sent=5)
    ledger.begin("b")
    ledger.came(0)
    ledger.refused("foreign", run="a", frame=True)
    ledger.refused("foreign", frame=True)  # of a series never seen

    first, second, ever = ledger.run("a"), ledger.run(), ledger.source()
    assert first["source"] == {
        "received": 3, "late": 1, "missing": 2, "duplicate": 1, "foreign": 0, "after_end": 1,
        "rejected": {"duplicate": 2},
    }  # fmt: skip
    assert (first["reason"], first["frames_expected"], first["frames_sent"]) == ("completed", 9, 5)
    assert (first["first"], first["last"], first["missing_ranges"]) == (0, 4, [[2, 3]])
    assert second["run"] == "b"
    assert second["source"]["foreign"] == 2
    assert (ever.received, ever.late, ever.missing) == (4, 1, 2)
    assert (ever.duplicate, ever.foreign, ever.after_end) == (1, 2, 1)
    assert ever.rejected == {"duplicate": 2, "foreign": 2}


def test_memory_does_not_grow_with_the_number_of_runs():
    ledger = Ledger()
    for number in range(100):
        ledger.begin(f"r{number}")
        ledger.came(0)
        ledger.end("completed")
    ledger.begin("now")
    over = [run["run"] for run in ledger.runs_over()]
    assert over == [f"r{number}" for number in range(99, 99 - RUNS_KEPT, -1)]
    ledger.sent("denoise", run="r3")  # long forgotten: counted, but in no run
    assert ledger.stages()["denoise"].sent == 1
    assert ledger.run("r3") is None
    assert ledger.run()["run"] == "now"

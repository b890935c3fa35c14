"""The demonstration: what a plan takes of clean and of raw frames, and whether it is right."""

import pytest

from helpers.dose import demonstrate

pytest.importorskip("ophyd", reason="needs the extra [bluesky]")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_measure_until_is_as_sure_on_clean_frames_with_a_quarter_of_the_raw_ones():
    told = demonstrate()
    assert told["times_fewer"] >= 4
    for source in ("clean", "raw"):  # as sure as it believes to be, by the truth
        assert told[source]["true_rms_error"] <= 1.6 * told["believed_sd"]

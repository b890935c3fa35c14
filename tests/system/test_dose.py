"""What a plan believes of clean and of raw frames, without the truth, and whether it is right."""

import pytest

from helpers.dose import demonstrate

pytest.importorskip("ophyd", reason="needs the extra [bluesky]")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plan_is_as_sure_of_clean_and_raw_frames_as_it_believes_by_the_truth():
    told = demonstrate()
    for source in ("clean", "raw"):
        assert 0.4 <= told[source]["true_rms_error"] / told["frame_sd"][source] <= 1.6
        assert told[source]["true_rms_error"] <= 1.6 * told["believed_sd"]

"""Frame numbers: seen once, missing ranges exact, memory bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietbeam.core.frame_numbers import REMEMBERED_GAPS, FrameNumbers


@given(st.lists(st.integers(0, 60)), st.none() | st.integers(0, 20))
def test_numbers_are_new_once_and_the_gaps_are_what_never_came(numbers, first):
    seen, known, late = FrameNumbers(first), set(), 0
    for number in numbers:
        below = first is not None and number < first
        assert seen.add(number) == (number not in known or below)
        late += bool(known) and number < max(known) and (number not in known or below)
        known.add(number)
    if not known:
        assert (seen.begin, seen.lowest, seen.highest, seen.missing, seen.gaps) == (
            *(None, None, -1, 0, []),
        )
        return
    begin = min(known) if first is None else first
    missing = sorted(set(range(begin, max(known) + 1)) - known)
    assert [number for gap in seen.gaps for number in gap] == missing
    assert seen.missing == len(missing)
    assert (seen.begin, seen.lowest, seen.highest) == (begin, min(known), max(known))
    assert seen.late == late


@pytest.mark.parametrize("first", [None, 0])
def test_memory_does_not_grow_with_the_run_and_the_total_stays_exact(first):
    seen = FrameNumbers(first)
    assert all(seen.add(number) for number in range(0, 20_000, 2))
    assert len(seen.gaps) == REMEMBERED_GAPS
    assert seen.gaps[-1] == range(19_997, 19_998)
    assert seen.missing == 9_999
    assert not seen.add(1)  # older than the oldest gap that is remembered
    assert seen.add(19_997)
    assert seen.missing == 9_998
    assert seen.add(2**62)

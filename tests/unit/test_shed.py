"""What is given up under load: in the stated order, and taken up again in reverse."""

import pytest

from helpers.recordings import result
from quietbeam import SinkPlugin
from quietbeam.core.channel import Delivery, Outbox
from quietbeam.core.ledger import Ledger
from quietbeam.pipeline.publish import Outlet
from quietbeam.pipeline.shed import STATES, Shed

ORDER = ["display", "training", "analyses", "denoising"]


def changes(shed):
    states = []
    shed.on_change = states.append
    return states


def test_what_is_given_up_comes_in_the_stated_order_however_suddenly_the_load_comes():
    slowly, suddenly = Shed(), Shed()
    gentle, harsh = changes(slowly), changes(suddenly)
    for step in range(120):
        slowly.update(step / 100, step)
    suddenly.update(5.0, 0)
    assert gentle == harsh == ORDER
    since = suddenly.account()["since_unix_s"]
    assert list(since) == ORDER
    assert list(since.values()) == sorted(since.values())


@pytest.mark.parametrize(
    ("fill", "given_up"),
    [(0.5, []), (0.6, ORDER[:1]), (0.8, ORDER[:2]), (1.0, ORDER[:3]), (1.01, ORDER)],
)
def test_a_fuller_backlog_gives_up_more(fill, given_up):
    shed = Shed()
    shed.update(fill, 0)
    assert [burden for burden in ORDER if shed.gives_up(burden)] == given_up
    assert shed.state == STATES[len(given_up)]


def test_all_is_taken_up_in_reverse_order_within_ten_seconds_of_calm():
    shed = Shed()
    shed.update(2.0, 0)
    states = changes(shed)
    for tick in range(100):
        shed.update(0.1, tick * 0.1)
    assert states == ["analyses", "training", "display", "normal"]
    assert shed.account() == {
        "state": "normal",
        "since_unix_s": {},
        "episodes": dict.fromkeys(ORDER, 1),
    }


def test_a_short_pause_of_the_load_takes_nothing_up():
    shed = Shed()
    shed.update(0.8, 0)
    states = changes(shed)
    for now, fill in ((1, 0.1), (2, 0.3), (3, 0.1), (4.9, 0.1), (4.95, 0.5), (6, 0.1), (7.9, 0.1)):
        shed.update(fill, now)
    assert states == []
    shed.update(0.1, 8.0)
    assert states == ["display"]


class View(SinkPlugin):
    """A light output that may lose frames, or not."""

    lossless: bool = False

    @property
    def delivery(self):
        return Delivery("lossless" if self.lossless else "newest")

    def open(self):
        raise NotImplementedError


@pytest.mark.parametrize(("lossless", "kept"), [(False, [0, 1, 2, 3]), (True, [0, 1, 2, 3, 4, 5])])
def test_only_views_go_without_frames_and_their_gaps_are_known(lossless, kept):
    shed, ledger = Shed(), Ledger()
    outbox = Outbox(Delivery())
    outlet = Outlet(View(lossless=lossless), outbox, shed, ledger, "view")
    for index in range(3):
        outlet.put(result(index))
    shed.update(0.6, 0)
    for index in range(3, 6):  # the first of them is the one that a view gets each second
        outlet.put(result(index))
    outbox.close()
    assert [item.index for item in outbox] == kept
    account = ledger.stages()["view"]
    assert outbox.lost == account.dropped.get("shed", 0) == 6 - len(kept)
    assert account.received == 6

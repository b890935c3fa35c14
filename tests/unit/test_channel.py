"""What waits for one consumer, and what is given up when it is slow."""

import threading

import pytest

from quietbeam.core.channel import Channel, Delivery, Outbox


def emptied(outbox):
    outbox.close()
    return list(outbox)


@pytest.mark.parametrize(
    ("delivery", "kept", "reasons"),
    [
        (Delivery("newest", 2), [3, 4], [None, None, "superseded", "superseded", "superseded"]),
        (Delivery("lossless", 2), [0, 1], [None, None, "full", "full", "full"]),
        (Delivery("every-nth", 8, 2), [0, 2, 4], [None, "every_nth", None, "every_nth", None]),
    ],
)
def test_a_full_outbox_gives_up_what_its_policy_says_and_says_so(delivery, kept, reasons):
    outbox = Outbox(delivery)
    assert [outbox.put_frame(i) for i in range(5)] == reasons
    assert outbox.lost == sum(reason in ("superseded", "full") for reason in reasons)
    assert emptied(outbox) == kept


@pytest.mark.parametrize("policy", ["newest", "lossless"])
def test_starts_and_ends_are_never_given_up_for_frames(policy):
    outbox = Outbox(Delivery(policy, 1))
    for item in ("start", 0, 1, 2, "end", "start", 3):
        if isinstance(item, str):
            outbox.put_mark(item)
        else:
            outbox.put_frame(item)
    frames = [3] if policy == "newest" else [0]
    assert [item for item in emptied(outbox) if item not in frames] == ["start", "end", "start"]


def test_an_outbox_nobody_reads_stays_bounded_over_any_number_of_runs():
    outbox = Outbox(Delivery("newest", 4))
    for run in range(1000):
        outbox.put_mark("start")
        outbox.put_frame(run)
        outbox.put_mark("end")
    assert len(outbox) <= 4 + 64
    assert outbox.lost == 996


def test_what_waits_when_it_is_closed_is_still_read():
    outbox = Outbox(Delivery("newest", 4))
    got = []
    reader = threading.Thread(target=lambda: got.extend(outbox))
    reader.start()
    for i in range(4):
        outbox.put_frame(i)
    assert outbox.closed_for_s is None
    outbox.close()
    reader.join(10)
    assert got == [0, 1, 2, 3]
    assert outbox.closed_for_s >= 0


def test_a_full_channel_slows_its_writer_down_and_closing_frees_it():
    channel = Channel(2)
    put = []
    writer = threading.Thread(target=lambda: put.extend(channel.put(i) for i in range(4)))
    writer.start()
    items = iter(channel)
    assert [next(items), next(items)] == [0, 1]
    while len(channel) < 2:
        assert writer.is_alive() or len(channel) == 2
    channel.close()
    writer.join(10)
    assert put == [True] * 4
    assert list(items) == [2, 3]
    assert channel.put(5) is False

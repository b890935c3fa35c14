"""The shared-memory ring: exact accounts, whole records, kills at any moment."""

import json
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from quietbeam import QuietbeamError
from quietbeam.core import ring_memory as mem
from quietbeam.core.ring import Kind, RingReader, RingWriter, create, pinned_path

FRAME = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.fixture
def ring(tmp_path):
    return create(tmp_path / "ring", 64 * 1024, entries=256)


def write(ring, first, count, array=FRAME):
    for index in range(first, first + count):
        ring.write(Kind.FRAME, {"index": index}, array + index % 100)


def drain(reader):
    got = []
    while (record := reader.read(0)) is not None:
        got.append(record)
    return got


def balance(ring, name):
    count = next(c for c in ring.readers() if c.name == name)
    return count.read + count.lost + count.skipped + count.in_flight


def test_a_record_comes_back_as_it_was_written(ring):
    reader = RingReader(ring.path, "a")
    arrays = (FRAME, np.float32([[1.5, np.nan]]), np.zeros((0, 3)), np.ones((2, 2), bool))
    ring.write(Kind.START, {"text": "ü", "n": np.int64(3), "x": np.float32(0.5)}, *arrays)
    record = reader.read(0)
    assert record.kind is Kind.START
    assert record.meta == {"text": "ü", "n": 3, "x": 0.5}
    for got, given in zip(record.arrays, arrays, strict=True):
        assert got.dtype == given.dtype
        assert got.flags.aligned
        np.testing.assert_array_equal(got, given)


def test_arrays_that_are_not_contiguous_or_big_endian_come_back_equal(ring):
    reader = RingReader(ring.path, "a")
    ring.write(Kind.FRAME, {}, FRAME.T[::2], FRAME.astype(">u2"))
    first, second = reader.read(0).arrays
    np.testing.assert_array_equal(first, FRAME.T[::2])
    np.testing.assert_array_equal(second, FRAME)


def test_what_cannot_be_put_into_json_is_refused_by_name(ring):
    with pytest.raises(TypeError, match="cannot be put into a record"):
        ring.write(Kind.START, {"x": object()})


def test_a_reader_sees_records_in_order_and_only_from_when_it_came(ring):
    write(ring, 0, 3)
    reader = RingReader(ring.path, "a")
    write(ring, 3, 4)
    assert [r.meta["index"] for r in drain(reader)] == [3, 4, 5, 6]
    assert balance(ring, "a") == 4


def test_a_reader_from_the_first_accounts_for_everything_ever_written(ring):
    write(ring, 0, 1000)
    reader = RingReader(ring.path, "a", from_first=True)
    got = drain(reader)
    assert got[-1].meta["index"] == 999
    assert len(got) + reader.lost == 1000


def test_readers_do_not_disturb_each_other(ring):
    one, two = RingReader(ring.path, "one"), RingReader(ring.path, "two")
    write(ring, 0, 5)
    assert len(drain(one)) == 5
    write(ring, 5, 5)
    assert [r.meta["index"] for r in drain(two)] == list(range(10))
    assert [r.meta["index"] for r in drain(one)] == list(range(5, 10))


def test_an_overrun_reader_knows_exactly_how_many_frames_it_lost(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 10)
    read = len(drain(reader))
    write(ring, 10, 5000)
    read += len(drain(reader))
    assert reader.lost == 5010 - read > 0
    assert balance(ring, "a") == 5010


def test_starts_and_ends_that_are_lost_count_as_no_frames(ring):
    reader = RingReader(ring.path, "a")
    for run in range(300):
        ring.write(Kind.START, {"run": str(run)})
        write(ring, 0, 2)
        ring.write(Kind.END, {"run": str(run)})
    frames = sum(record.kind is Kind.FRAME for record in drain(reader))
    assert frames + reader.lost == 600


def test_an_index_that_overflows_before_the_bytes_do_counts_as_well(tmp_path):
    ring = create(tmp_path / "ring", 1 << 20, entries=16)
    reader = RingReader(ring.path, "a")
    write(ring, 0, 100, np.zeros(1, np.uint8))
    got = drain(reader)
    assert 0 < len(got) <= 16
    assert len(got) + reader.lost == 100


def test_records_of_very_different_sizes_keep_their_content(tmp_path):
    ring = create(tmp_path / "ring", 8192, entries=64)
    reader = RingReader(ring.path, "a")
    rng = np.random.default_rng(0)
    seen = 0
    for index in range(500):
        size = int(rng.integers(1, 3500))
        ring.write(Kind.FRAME, {"i": index, "n": size}, np.full(size, index % 251, np.uint8))
        if index % 3 == 0:
            for record in drain(reader):
                assert record.arrays[0].size == record.meta["n"]
                assert (record.arrays[0] == record.meta["i"] % 251).all()
                seen += 1
    seen += len(drain(reader))
    assert seen + reader.lost == 500


def test_a_record_larger_than_half_the_ring_is_refused_and_harms_nothing(ring):
    reader = RingReader(ring.path, "a")
    with pytest.raises(QuietbeamError, match=r"\[rings\]"):
        ring.write(Kind.FRAME, {}, np.zeros(40_000, np.uint8))
    write(ring, 0, 1)
    assert len(drain(reader)) == 1
    assert ring.frames == 1


def test_skipping_a_frame_counts_it_and_leaves_other_records(ring):
    reader = RingReader(ring.path, "a")
    assert not reader.skip_frame()
    write(ring, 0, 2)
    ring.write(Kind.END, {"run": "1"})
    assert reader.skip_frame()
    assert reader.skip_frame()
    assert not reader.skip_frame()
    assert reader.read(0).kind is Kind.END
    count = ring.readers()[0]
    assert (count.read, count.skipped, count.in_flight) == (0, 2, 0)


def test_closing_lets_the_reader_finish(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 2)
    ring.close()
    assert not reader.finished
    assert len(drain(reader)) == 2
    assert reader.finished
    began = time.monotonic()
    assert reader.read(5) is None
    assert time.monotonic() - began < 1


def test_reading_waits_for_the_next_record_but_not_longer_than_asked(ring):
    reader = RingReader(ring.path, "a")
    began = time.monotonic()
    assert reader.read(0.05) is None
    assert 0.05 <= time.monotonic() - began < 0.5


def test_a_reader_that_resumes_starts_behind_what_it_acknowledged(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 10)
    for _ in range(4):
        reader.read(0)
    reader.ack([4, 7])
    for _ in range(3):
        reader.read(0)
    again = RingReader(ring.path, "a", resume=True)
    assert again.resumed
    assert again.kept[:2] == (4, 7)
    assert [r.meta["index"] for r in drain(again)] == [4, 5, 6, 7, 8, 9]
    assert balance(ring, "a") == 10
    assert ring.readers()[0].acked_frames == 4


def test_an_acknowledgement_can_leave_out_the_newest_record(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 3)
    reader.read(0)
    reader.read(0)
    reader.ack(without_last=True)
    again = RingReader(ring.path, "a", resume=True)
    assert [r.meta["index"] for r in drain(again)] == [1, 2]


def test_a_half_written_acknowledgement_changes_nothing(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 10)
    drain(reader)
    reader.ack([5])
    write(ring, 10, 1)
    drain(reader)
    acks = int(reader._me[mem.R_ACKS])
    reader.ack([6])
    reader._me[mem.R_ACKS] = acks  # as if killed before the last store
    again = RingReader(ring.path, "a", resume=True)
    assert again.kept[0] == 5
    assert [r.meta["index"] for r in drain(again)] == [10]


def test_what_is_lost_while_nobody_reads_is_counted_on_resuming(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 4)
    drain(reader)
    reader.ack()
    write(ring, 4, 3000)
    again = RingReader(ring.path, "a", resume=True)
    got = drain(again)
    assert len(got) + again.lost == 3000
    assert balance(ring, "a") == 3004


def test_attaching_again_without_resuming_counts_what_was_missed_as_lost(ring):
    reader = RingReader(ring.path, "a")
    write(ring, 0, 6)
    reader.read(0)
    again = RingReader(ring.path, "a")
    assert again.lost == 5
    assert again.backlog == 0
    assert balance(ring, "a") == 6


def test_pressure_tells_how_close_a_reader_is_to_losing_frames(ring):
    reader = RingReader(ring.path, "a")
    assert reader.pressure == 0
    write(ring, 0, 100)
    assert 0.2 < reader.pressure < 0.6
    write(ring, 100, 2000)
    assert reader.pressure == 1
    drain(reader)
    assert reader.pressure == 0


def test_the_writer_sees_how_close_a_living_reader_is_to_losing_frames(ring):
    assert ring.pressure_on("a") == 0  # nobody of this name
    reader = RingReader(ring.path, "a")
    write(ring, 0, 10)
    assert ring.pressure_on("a") == reader.pressure > 0
    reader._me[mem.R_BEAT] = max(0, time.monotonic_ns() - 6_000_000_000)
    assert ring.pressure_on("a") == 0  # it is dead: giving up other things does not help it
    drain(reader)
    assert ring.pressure_on("a") == 0


def test_the_last_starts_stay_known_when_the_ring_has_overwritten_them(ring):
    reader = RingReader(ring.path, "a")
    assert reader.pinned() is None
    for run in ("1", "2", "3"):
        ring.write(Kind.START, {"run": run}, FRAME)
    write(ring, 0, 1000)
    assert reader.pinned().meta["run"] == "3"
    assert reader.pinned("1").meta["run"] == "1"
    np.testing.assert_array_equal(reader.pinned("2").arrays[0], FRAME)
    assert reader.pinned("9") is None


def test_a_writer_that_attaches_again_goes_on_where_it_was(ring):
    reader = RingReader(ring.path, "a")
    ring.write(Kind.START, {"run": "1"})
    write(ring, 0, 5)
    later = RingWriter(ring.path)
    write(later, 5, 5)
    assert [r.meta.get("index") for r in drain(reader)] == [None, *range(10)]
    assert later.frames == 10
    assert reader.pinned().meta["run"] == "1"


def test_more_readers_than_there_are_places_are_refused_by_name(ring):
    for number in range(mem.READERS):
        RingReader(ring.path, f"r{number}")
    with pytest.raises(QuietbeamError, match="one too many"):
        RingReader(ring.path, "one too many")
    RingReader(ring.path, "r3", resume=True)  # a known one still finds its place


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_name_that_does_not_fit_is_refused(ring, name):
    with pytest.raises(QuietbeamError, match="1 to 64 bytes"):
        RingReader(ring.path, name)


def test_a_file_that_is_no_ring_is_refused(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(bytes(4096))
    with pytest.raises(QuietbeamError, match="not a quietbeam ring"):
        RingReader(path, "a")


def test_unlinking_removes_all_files_and_readers_go_on(ring):
    reader = RingReader(ring.path, "a")
    ring.write(Kind.START, {"run": "1"})
    ring.unlink()
    assert not ring.path.exists()
    assert not pinned_path(ring.path).exists()
    assert reader.read(0).meta == {"run": "1"}


WRITER = """
    import sys, time, numpy as np
    from pathlib import Path
    from quietbeam.core.ring import Kind, RingWriter
    ring = RingWriter(Path(sys.argv[1]))
    rng = np.random.default_rng(int(sys.argv[3]))
    sys.stdin.readline()
    for index in range(int(sys.argv[2])):
        # every byte tells which record it belongs to, so a torn copy cannot pass
        size = int(rng.integers(1, 3000))
        ring.write(Kind.FRAME, {"i": index, "n": size}, np.full(size, index, np.uint32))
        if index % 100 == 0:
            time.sleep(0.001)
    ring.close()
"""


def test_a_reader_overrun_by_another_process_never_sees_a_torn_record(tmp_path):
    ring = create(tmp_path / "ring", 64 * 1024, entries=64)
    fast, slow = RingReader(ring.path, "fast"), RingReader(ring.path, "slow")
    count = 15_000
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(ring.path), str(count), "1"]
    seen = {"fast": 0, "slow": 0}
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        deadline = time.monotonic() + 60
        while not (fast.finished and slow.finished) and time.monotonic() < deadline:
            for reader, name, pause in ((fast, "fast", 0), (slow, "slow", 0.002)):
                record = reader.read(0)
                if record is not None:
                    seen[name] += 1
                    assert record.arrays[0].size == record.meta["n"]
                    assert (record.arrays[0] == record.meta["i"]).all()
                if seen["fast"] % 50 == 0:
                    time.sleep(pause)
    assert fast.lost > 0
    for reader, name in ((fast, "fast"), (slow, "slow")):
        assert seen[name] + reader.lost == count
        assert balance(ring, name) == count


READER = """
    import sys
    from pathlib import Path
    from quietbeam.core.ring import RingReader
    reader = RingReader(Path(sys.argv[1]), "victim", resume=True, from_first=True)
    done = reader.kept[0]
    print("ready", flush=True)
    while not reader.finished:
        if reader.read(0.05) is not None:
            done += 1
            reader.ack([done, reader.lost])
"""


@pytest.mark.timeout(60)
def test_a_reader_killed_at_any_moment_resumes_with_an_exact_account(tmp_path):
    ring = create(tmp_path / "ring", 32 * 1024, entries=64)
    command = [sys.executable, "-c", textwrap.dedent(READER), str(ring.path)]
    rng = np.random.default_rng(5)
    written = 0

    def some(count):
        nonlocal written
        write(ring, written, count, np.zeros(200, np.uint8))
        written += count
        time.sleep(0.002)

    for _ in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
            assert victim.stdout.readline() == b"ready\n"
            try:
                for _ in range(int(rng.integers(1, 15))):
                    some(int(rng.integers(1, 60)))
            finally:
                victim.kill()
    ring.close()
    last = RingReader(ring.path, "victim", resume=True)
    done, lost = last.kept[:2]
    rest = len(drain(last))
    assert done + rest + last.lost == written
    assert lost <= last.lost
    count = next(c for c in ring.readers() if c.name == "victim")
    assert (count.read, count.in_flight) == (done + rest, 0)


def test_processes_that_attach_at_once_get_places_of_their_own(tmp_path):
    ring = create(tmp_path / "ring", 4096)
    code = (
        "import sys, json; from pathlib import Path; from quietbeam.core.ring import RingReader;"
        "sys.stdin.readline();"
        "rs = [RingReader(Path(sys.argv[1]), sys.argv[2] + str(i)) for i in range(5)];"
        "print(json.dumps(len(rs)))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(ring.path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("a", "b", "c")
    ]
    for process in started:
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [json.loads(process.communicate(timeout=30)[0]) for process in started] == [5] * 3
    assert sorted(c.name for c in ring.readers()) == [f"{n}{i}" for n in "abc" for i in range(5)]


def lent(ring):
    place = ring.lend(FRAME.nbytes)
    return None if place is None else place.view(FRAME.dtype).reshape(FRAME.shape)


def test_a_place_is_lent_for_a_frame_like_the_last_one_and_then_written_without_a_copy(ring):
    reader = RingReader(ring.path, "a")
    assert lent(ring) is None  # no frame was written yet
    ring.write(Kind.FRAME, {"index": 0}, FRAME)
    assert ring.lend(FRAME.nbytes + 2) is None  # another size
    place = lent(ring)
    place[:] = FRAME + 7
    ring.write(Kind.START, {"run": "r"})  # what is written meanwhile goes elsewhere
    seen = ring.write(Kind.FRAME, {"index": 1}, place)
    place[0, 0] = 99  # the array is the record itself
    records = drain(reader)
    assert [record.kind for record in records] == [Kind.FRAME, Kind.START, Kind.FRAME]
    assert (records[2].seq, records[2].meta) == (seen, {"index": 1})
    expected = FRAME + 7
    expected[0, 0] = 99
    np.testing.assert_array_equal(records[2].arrays[0], expected)


def test_one_place_is_lent_at_a_time_and_taken_back_when_nobody_holds_it(ring):
    ring.write(Kind.FRAME, {}, FRAME)
    place = lent(ring)
    part = place[2:]
    del place
    assert lent(ring) is None
    address = part.ctypes.data - 2 * FRAME.strides[0]
    del part
    for _ in range(1000):  # it never costs more than one frame's room
        assert lent(ring).ctypes.data == address


def test_a_frame_with_a_head_too_long_for_its_place_is_copied(ring):
    reader = RingReader(ring.path, "a")
    ring.write(Kind.FRAME, {}, FRAME)
    place = lent(ring)
    place[:] = FRAME + 1
    ring.write(Kind.FRAME, {"run": "x" * 2000}, place)
    np.testing.assert_array_equal(drain(reader)[1].arrays[0], FRAME + 1)


def test_lent_places_and_copies_in_any_order_give_every_reader_whole_records(tmp_path):
    rng, ring = np.random.default_rng(0), create(tmp_path / "ring", 16 * 1024, entries=64)
    quick, slow = RingReader(ring.path, "quick"), RingReader(ring.path, "slow")
    for index in range(2000):
        shape = (8, 8) if rng.random() < 0.9 else (9, 8)
        place = ring.lend(int(np.prod(shape)) * 2) if rng.random() < 0.7 else None
        array = np.empty(shape, "u2") if place is None else place.view("u2")
        array[...] = index
        del place
        if rng.random() < 0.1:
            continue  # refused: it is never written
        ring.write(Kind.FRAME, {"index": index}, array.reshape(shape))
        read = [*drain(quick)] + ([*drain(slow)] if rng.random() < 0.02 else [])
        for record in read:
            assert (record.arrays[0] == record.meta["index"]).all()
    drain(slow)
    assert slow.lost > 0
    assert quick.lost == 0
    for name in ("quick", "slow"):
        assert balance(ring, name) == ring.frames

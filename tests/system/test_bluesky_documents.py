"""Documents about a run: over a real 0MQ proxy, a real dispatcher, into a real Tiled server."""

import json

import h5py
import numpy as np
import pytest

from helpers.documents import Received, document_proxy, tiled_server
from helpers.recordings import frame, result, run_end, run_start
from helpers.waiting import until

event_model = pytest.importorskip("event_model", reason="needs the extra [bluesky]")
pytest.importorskip("bluesky", reason="needs the extra [bluesky]")

from quietbeam_plugins.sinks.bluesky.publisher import publishing, replay  # noqa: E402
from quietbeam_plugins.sinks.bluesky.run import PublishedRun  # noqa: E402
from quietbeam_plugins.sinks.hdf5 import Hdf5  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Daemon:
    """A real recorder, and what the daemon's status says of it."""

    def __init__(self, directory):
        self._opened = Hdf5(directory=directory, compression="bslz4").open()
        self.recorder = self._opened.__enter__()
        self._finished = []

    def status(self):
        self._finished += [vars_of(done) for done in self.recorder.take_finished()]
        status = {"file": self.recorder.status().file}
        account = {"kind": "hdf5", "status": status, "finished": list(self._finished)}
        return {"outputs": {"hdf5.0": account}}

    def frames(self, numbers):
        for number in numbers:
            self.recorder.raw(frame(number))
            self.recorder.write(result(number))
        self.recorder.flush()

    def close(self):
        self._opened.__exit__(None, None, None)


def vars_of(done):
    return {"file": done.file, "raw": done.raw, "clean": done.clean}


@pytest.fixture
def daemon(tmp_path):
    made = Daemon(tmp_path / "recordings")
    yield made
    made.close()


def look_until(run, daemon, condition):
    def looked():
        run.look(daemon.status())
        return condition()

    until(looked)


def published_whole_run(daemon, send, frames=12, **options):
    """Publish a run of so many frames, in two parts."""
    daemon.recorder.start(run_start())
    run = PublishedRun(run_start(), send, **options)
    daemon.frames(range(frames // 2))
    run.result(result(0))
    look_until(run, daemon, lambda: run._documents.rows["primary"] == frames // 2)
    daemon.frames(range(frames // 2, frames))
    run.result(result(1))
    daemon.recorder.stop(run_end())
    run.end(run_end())
    look_until(run, daemon, lambda: run.over)
    run.close()
    return run


def collected(daemon, **options):
    documents = []
    published_whole_run(daemon, lambda name, doc: documents.append((name, doc)), **options)
    return documents


def named(documents, name):
    return [doc for kind, doc in documents if kind == name]


def test_every_document_is_valid_small_and_without_arrays(daemon):
    documents = collected(daemon)
    for name, document in documents:
        schema = event_model.schema_validators[event_model.DocumentNames[name]]
        schema.validate(document)
        assert len(json.dumps(document)) < 64_000
    events = named(documents, "event")
    assert events
    assert all(np.ndim(value) == 0 for event in events for value in event["data"].values())
    assert documents[0][0] == "start"
    assert documents[-1][0] == "stop"
    assert named(documents, "stop")[0]["num_events"]["primary"] == 12


def test_the_rows_told_are_those_in_the_recording(daemon):
    documents = collected(daemon)
    resources = {doc["uid"]: doc for doc in named(documents, "stream_resource")}
    ends = {}
    for datum in named(documents, "stream_datum"):
        key = resources[datum["stream_resource"]]["data_key"]
        assert datum["indices"]["start"] == ends.get(key, 0)  # no row twice, none left out
        ends[key] = datum["indices"]["stop"]
    assert set(ends.values()) == {12}
    assert {"clean", "clean_data_errors", "raw", "clean_quality_psnr_db"} <= set(ends)
    for resource in resources.values():
        path = resource["uri"].removeprefix("file://localhost")
        with h5py.File(path, "r") as file:  # the name lasts, though the recording was renamed
            assert len(file[resource["parameters"]["dataset"]]) == 12


def test_a_run_nobody_records_is_published_without_rows():
    documents = []
    run = PublishedRun(run_start(), lambda name, doc: documents.append((name, doc)))
    run.result(result(3))
    run.end(run_end(reason="aborted"))
    until(lambda: run.look({"outputs": {}}) or run.over)
    run.close()
    assert [name for name, _ in documents] == ["start", "descriptor", "event", "stop"]
    assert documents[-1][1]["exit_status"] == "abort"


def test_a_run_that_goes_on_in_a_second_file_points_at_both(daemon, tmp_path):
    documents = []
    daemon.recorder.start(run_start())
    run = PublishedRun(run_start(), lambda name, doc: documents.append((name, doc)))
    daemon.frames(range(3))
    look_until(run, daemon, lambda: run._documents.rows["primary"] == 3)
    daemon.recorder._suspend()  # as when the disk is full
    daemon.frames(range(3, 8))
    look_until(run, daemon, lambda: run._documents.rows["primary"] == 8)
    daemon.recorder.stop(run_end())
    run.end(run_end())
    look_until(run, daemon, lambda: run.over)
    run.close()
    uris = {doc["uri"] for doc in named(documents, "stream_resource")}
    assert len(uris) == 2
    assert named(documents, "stop")[0]["num_events"]["primary"] == 8


@pytest.mark.parametrize(("encoding", "loads"), [("pickle", None), ("json", json.loads)])
def test_a_dispatcher_of_bluesky_reads_every_document(daemon, encoding, loads):
    options = {} if loads is None else {"deserializer": loads}
    sent = []
    with (
        document_proxy() as (inward, outward),
        Received(outward, prefix=b"quietbeam", **options) as received,
        publishing(inward, "quietbeam", encoding, bind=False) as publisher,
    ):
        assert publisher.wait_for_consumer(10)

        def send(name, document):
            publisher.send(name, document)
            sent.append((name, document))

        ping(publisher, received)
        published_whole_run(daemon, send)
        received.wait_for("stop")
        got = [(name, doc) for name, doc in received.documents if "ping" not in doc]
    assert json.loads(json.dumps(got)) == json.loads(json.dumps(sent))


def ping(publisher, received):
    """Send until the dispatcher hears: its subscription takes a moment."""

    def heard():
        publisher.send("start", {"uid": "ping", "time": 0.0, "ping": True})
        return bool(received.documents)

    until(heard)


@pytest.mark.slow
def test_documents_are_read_live_through_tiled_and_replayed_to_the_same_tree(daemon, tmp_path):
    pytest.importorskip("bluesky_tiled_plugins", reason="needs bluesky-tiled-plugins")
    pytest.importorskip("tiled.server", reason="needs tiled[server]")
    from bluesky_tiled_plugins import TiledWriter

    backup = tmp_path / "backup"
    backup.mkdir()
    with tiled_server(tmp_path / "tiled", tmp_path / "recordings") as client:
        writer = TiledWriter(client, batch_size=1, backup_directory=str(backup))
        daemon.recorder.start(run_start())
        run = PublishedRun(run_start(), writer)
        daemon.frames(range(5))
        look_until(run, daemon, lambda: run._documents.rows["primary"] == 5)
        live = client[run._documents.uid]["primary"]["clean"]
        assert live.shape == (5, 32, 48)
        np.testing.assert_array_equal(live[4], result(4).clean)  # before the run is over
        daemon.frames(range(5, 9))
        daemon.recorder.stop(run_end())
        run.result(result(8))
        run.end(run_end())
        look_until(run, daemon, lambda: run.over)
        run.close()
        assert not list(backup.iterdir())
        tree = client[run._documents.uid]
        check(tree)
        again = with_new_uids(
            replay(tmp_path / "recordings/bluesky" / f"{tree.start['uid']}.jsonl")
        )
        for name, document in again:
            writer(name, document)
        check(client["again" + tree.start["uid"][5:]])


def with_new_uids(documents):
    """Give the same run under another uid: Tiled refuses one that it has."""
    for name, kept in documents:
        document = dict(kept)
        key = "uid" if name == "start" else "run_start"
        if key in document:
            document[key] = "again" + document[key][5:]
        yield name, document


def check(run):
    primary, raw = run["primary"], run["raw"]
    assert primary["clean"].shape == (9, 32, 48)
    assert primary["clean"].dtype == np.dtype("<f4")
    assert raw["raw"].shape == (9, 32, 48)
    np.testing.assert_array_equal(primary["clean"][8], result(8).clean)
    np.testing.assert_array_equal(primary["clean_data_errors"][2], result(2).sd)
    np.testing.assert_array_equal(raw["raw"][3], frame(3).pixels)
    assert list(primary["clean_frame_id"][:]) == list(range(9))
    np.testing.assert_allclose(primary["clean_quality_psnr_db"][:], 20 + np.arange(9) / 8)
    assert run.metadata["stop"]["exit_status"] == "success"


def test_a_sidecar_that_was_cut_off_is_read_to_its_last_whole_line(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('["start", {"uid": "1"}]\n["stop", {"ui')
    assert list(replay(path)) == [("start", {"uid": "1"})]

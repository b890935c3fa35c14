"""Finished runs in the live view: how whole they are, thumbnails, download, the same viewer."""

import io

import h5py
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus

from helpers.recordings import frame, pixels, result, run_end, run_start
from helpers.web import serving, values
from quietbeam.core.plugin import SinkPlugin
from quietbeam.registry import find

Hdf5 = find("sinks", "hdf5", SinkPlugin)


def record(directory, name, numbers, *, reason="completed", clean=True):
    settings = Hdf5(directory=directory, filename=f"{name}.h5", reserve_bytes=0, clean=clean)
    with settings.open() as sink:
        sink.start(run_start(name))
        for index in numbers:
            sink.raw(frame(index, name))
            if clean:
                sink.write(result(index, name))
        sink.stop(run_end(name, reason))


@pytest.fixture
def server(tmp_path):
    record(tmp_path / "day", "whole", range(6))
    record(tmp_path, "gaps", [0, 1, 4, 5, 9])
    record(tmp_path, "aborted", range(3), reason="aborted")
    record(tmp_path, "rawonly", range(3), clean=False)
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF no more")
    (tmp_path / "notes.txt").write_text("not a recording")
    with serving(tmp_path, recordings=tmp_path) as served:
        yield served


def listed(server):
    return {one["name"]: one for one in server.get("/api/v1/recordings").json["recordings"]}


def test_the_list_tells_what_is_whole_and_what_is_missing(server):
    found = listed(server)
    assert set(found) == {"day~whole.h5", "gaps.h5", "aborted.h5", "rawonly.h5", "broken.h5"}
    whole = found["day~whole.h5"]
    assert (whole["verdict"], whole["frames_raw"], whole["frames_clean"]) == ("complete", 6, 6)
    assert (whole["shape"], whole["denoisers"]) == ([32, 48], ["kalman"])
    gaps = found["gaps.h5"]
    assert (gaps["verdict"], gaps["missing"]) == ("incomplete", [[2, 3], [6, 8]])
    assert gaps["missing_frames"] == 5
    assert found["aborted.h5"]["verdict"] == "incomplete"
    assert "aborted" in found["aborted.h5"]["problem"]
    assert found["broken.h5"]["verdict"] == "unreadable"


def test_a_recording_tells_how_it_came_about(server):
    about = server.get("/api/v1/recordings/day~whole.h5").json
    assert about["provenance"]["counts"]["written"] == 6
    assert about["metrics"]["quality.psnr_db"] == [20 + index / 8 for index in range(6)]
    assert about["frame_id"] == list(range(6))
    assert server.get("/api/v1/recordings/broken.h5").status == 404


def test_a_thumbnail_is_raw_beside_clean(server):
    for name in ("day~whole.h5", "rawonly.h5"):
        answer = server.get(f"/api/v1/recordings/{name}/thumbnail")
        assert answer.headers["content-type"] == "image/jpeg"
        image = np.asarray(Image.open(io.BytesIO(answer.body)))
        assert image.shape == (256, 512)
        assert image[:, :255].std() > 10
    assert server.get("/api/v1/recordings/broken.h5/thumbnail").status == 404


def test_the_file_can_be_downloaded_whole_or_in_parts(server, tmp_path):
    kept = (tmp_path / "day" / "whole.h5").read_bytes()
    path = "/api/v1/recordings/day~whole.h5/file"
    whole = server.get(path)
    assert whole.body == kept
    assert 'filename="whole.h5"' in whole.headers["content-disposition"]
    part = server.get(path, Range="bytes=100-199")
    assert (part.status, part.body) == (206, kept[100:200])


def test_the_same_viewer_shows_a_finished_file(server):
    with server.viewer("/ws/recording?name=day~whole.h5") as viewer:
        hello = viewer.text("hello")
        assert (hello["source"], hello["buffer"]["frames"]) == ("day~whole.h5", 6)
        assert hello["run"]["end_reason"] == "completed"
        header, data = viewer.frame()
        assert (header["index"], header["live"]) == (0, False)
        assert (values(header, data, "raw") == pixels(0)).all()
        viewer.say(type="seek", id=4)
        header, data = viewer.frame()
        assert (header["index"], header["metrics"]["quality.psnr_db"]) == (4, 20.5)
        assert (values(header, data, "raw") == pixels(4)).all()
        viewer.say(type="value", request=1, x=3, y=2)
        answer = viewer.text("value")
        assert (answer["raw"], answer["clean"]) == (pixels(4)[2, 3], pixels(4)[2, 3] / 2)
        region = {"id": "a", "kind": "rectangle", "x0": 0, "y0": 4, "x1": 8, "y1": 8}
        viewer.say(type="regions", regions=[region])
        series = viewer.text("series")
        assert series["raw_mean"] == [pixels(i)[4:8, :8].mean() for i in range(6)]


def test_frames_of_a_gap_are_shown_by_their_number(server):
    with server.viewer("/ws/recording?name=gaps.h5") as viewer:
        viewer.frame()
        viewer.say(type="seek", id=2)
        assert viewer.frame()[0]["index"] == 4


def test_a_recording_without_cleaned_frames_is_shown_raw(server):
    with server.viewer("/ws/recording?name=rawonly.h5") as viewer:
        header, _ = viewer.frame()
        assert [plane["name"] for plane in header["planes"]] == ["raw"]


def test_a_snapshot_of_a_recorded_frame(server):
    answer = server.get("/api/v1/snapshot?recording=day~whole.h5&id=3&format=h5")
    with h5py.File(io.BytesIO(answer.body)) as file:
        assert (file["entry/data/raw"][()] == pixels(3)).all()


@pytest.mark.parametrize("name", ["nothing.h5", "broken.h5", "notes.txt"])
def test_what_cannot_be_shown_is_refused_with_the_reason(server, name):
    with pytest.raises(InvalidStatus) as refused, server.viewer(f"/ws/recording?name={name}"):
        pass
    assert refused.value.response.status_code == 404

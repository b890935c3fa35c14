"""The live view over real WebSockets: frames, pacing, exact values, regions, scrubbing."""

import io
import json
import socket as sockets

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers.waiting import until
from helpers.web import CUT_OFF, FakeLink, RunEnd, counts, handshake, pair, serving, started, values


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as served:
        yield served


def kept(server):
    return server.get("/api/v1/hello").json["buffer"]["frames"]


def becomes_live(server, viewer):
    """Send frames until the view says so: what came a moment ago may be old on a busy machine."""

    def live():
        server.put(*pair(next(server.numbers)))
        return viewer.text("status")["freshness"]["state"] == "live"

    until(live)


def test_a_viewer_sees_raw_and_clean_of_the_same_frame_to_the_last_count(server):
    server.play(3)
    with server.viewer() as viewer:
        hello = viewer.text("hello")
        assert hello["protocol"] == 1
        viewer.say(type="view", planes=["raw", "clean", "difference", "sd"])
        header, pieces = viewer.frame()
        while len(header["planes"]) < 4 or header["index"] < 2:
            header, pieces = viewer.frame()
        raw = counts(2)
        assert (values(header, pieces, "raw") == raw).all()
        assert header["planes"][0]["exact"] is True
        step = header["planes"][1]["scale"]
        assert np.abs(values(header, pieces, "clean") - (raw + 0.25)).max() <= step
        assert np.abs(values(header, pieces, "difference") + 0.25).max() <= 1e-3
        assert np.abs(values(header, pieces, "sd") - 2).max() <= 1e-3
        assert header["shape"] == [48, 64]
        assert header["live"] is True
        assert header["denoiser"] == "kalman"


def test_the_next_frame_waits_for_the_acknowledgement_and_is_then_the_newest(server):
    server.play(1)
    with server.viewer() as viewer:
        viewer.say(type="view", max_fps=30)
        header, _ = viewer.frame(ack=False)
        for index in range(1, 40):
            server.put(*pair(index))
        until(lambda: kept(server) == 40)
        assert viewer.quiet(0.4)
        viewer.say(type="ack", seq=header["seq"])
        header, _ = viewer.frame()
        assert header["index"] == 39


def test_a_large_image_is_binned_to_the_viewport_and_zooming_brings_back_every_pixel(server):
    server.play(1, shape=(101, 130))
    raw = counts(0, (101, 130))
    with server.viewer() as viewer:
        viewer.say(type="view", planes=["raw"], size=[50, 50])
        header, pieces = viewer.frame()
        while header["bin"] == 1:
            header, pieces = viewer.frame()
        assert (header["bin"], header["size"]) == (3, [34, 44])
        got = values(header, pieces, "raw")
        assert got[1, 2] == pytest.approx(raw[3:6, 6:9].mean(), abs=0.05)
        assert got[-1, -1] == pytest.approx(raw[99:, 129:].mean(), abs=0.05)
        viewer.say(type="view", planes=["raw"], size=[50, 50], region=[70, 20, 110, 50])
        header, pieces = viewer.frame()
        assert (header["bin"], header["region"]) == (1, [70, 20, 110, 50])
        assert (values(header, pieces, "raw") == raw[20:50, 70:110]).all()


def test_bad_and_saturated_pixels_have_codes_of_their_own_and_spoil_no_limits(server):
    raw = counts(0)
    raw[1, 1], raw[2, 2] = 65535, 60000
    mask = np.zeros(raw.shape, bool)
    mask[3, 3] = True
    clean = raw.astype(np.float32)
    clean[3, 3] = np.nan
    server.put(started(nodata=65535, saturation=50000, mask=mask), *pair(0, raw=raw, clean=clean))
    with server.viewer() as viewer:
        viewer.say(type="view")
        header, pieces = viewer.frame()
        plane = header["planes"][0]
        codes = np.frombuffer(pieces["raw"], "<u2").reshape(48, 64)
        assert codes[1, 1] == codes[3, 3] == plane["nodata"] == 65535
        assert codes[2, 2] == plane["saturated"] == 65534
        assert plane["stats"]["max"] == counts(0).max()
        assert np.isnan(values(header, pieces, "clean")[3, 3])
        viewer.say(type="value", request=7, x=1, y=1)
        assert viewer.text("value")["raw"] is None
        viewer.say(type="value", request=8, x=3, y=3)
        answer = viewer.text("value", where=lambda t: t["request"] == 8)
        assert (answer["raw"], answer["clean"]) == (None, None)


def test_exact_values_are_those_of_the_frame_on_the_screen(server):
    server.play(1)
    with server.viewer() as viewer:
        header, _ = viewer.frame()
        viewer.say(type="pause")
        viewer.say(type="value", request=1, x=5, y=7)
        answer = viewer.text("value")
        assert answer["id"] == header["id"]
        assert (answer["raw"], answer["clean"], answer["sd"]) == (75, 75.25, 2.0)
        viewer.say(type="value", request=2, x=500, y=7)
        assert viewer.text("value", where=lambda t: t["request"] == 2)["raw"] is None


def test_a_slow_link_gets_small_jpegs_whose_grey_can_be_read_back(server):
    server.play(1)
    with server.viewer() as viewer:
        limits = {"raw": [0, 600]}
        viewer.say(type="view", planes=["raw"], encoding="jpeg", limits=limits, quality=95)
        header, pieces = viewer.frame()
        while header["planes"][0]["encoding"] != "jpeg":
            header, pieces = viewer.frame()
        grey = np.asarray(Image.open(io.BytesIO(pieces["raw"])))
        assert np.abs(grey[5:, 5:] - counts(0)[5:, 5:] * (255 / 600)).max() < 6
        assert (header["planes"][0]["low"], header["planes"][0]["high"]) == (0, 600)


def test_pausing_stops_frames_seeking_shows_kept_ones_and_live_goes_on(server):
    server.play(10)
    with server.viewer() as viewer:
        viewer.say(type="view", max_fps=30)
        while viewer.frame()[0]["index"] != 9:
            pass
        viewer.text("buffer", where=lambda t: t["frames"] == 10)
        viewer.say(type="pause")
        viewer.say(type="value", request=1, x=0, y=0)
        viewer.text("value")  # by then it is paused; one frame may be on its way still
        while not viewer.quiet(0.5):
            viewer.frame()
        server.put(*pair(10))
        until(lambda: kept(server) == 11)
        assert viewer.quiet(0.5)
        viewer.say(type="seek", id=4)
        header, pieces = viewer.frame()
        assert (header["index"], header["live"]) == (3, False)
        assert values(header, pieces, "raw")[0, 0] == 3
        viewer.say(type="view", region=[0, 0, 8, 8], max_fps=30)
        assert viewer.frame()[0]["index"] == 3
        viewer.say(type="live")
        header, _ = viewer.frame()
        assert (header["index"], header["live"]) == (10, True)


def test_a_region_has_a_history_at_once_and_grows_with_the_stream(server):
    server.play(5)
    region = {"id": "a", "kind": "rectangle", "x0": 2, "y0": 3, "x1": 6, "y1": 5}
    until(lambda: kept(server) == 5)
    with server.viewer() as viewer:
        viewer.frame()
        viewer.say(type="regions", regions=[region])
        series = viewer.text("series", where=lambda t: len(t["id"]) >= 5)
        mean = counts(0)[3:5, 2:6].mean()
        assert series["reset"] is True
        assert series["raw_mean"] == [mean] * 5
        assert series["clean_mean"] == [mean + 0.25] * 5
        assert series["clean_sem"][0] == pytest.approx(2 / np.sqrt(8))
        assert series["time_s"] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
        server.put(*pair(5))
        more = viewer.text("series")
        assert (more["reset"], more["id"]) == (False, [6])
        header, _ = viewer.frame()
        while "a" not in header["regions"]:
            header, _ = viewer.frame()
        assert header["regions"]["a"]["raw"]["sum"] == counts(0)[3:5, 2:6].sum()


def test_a_line_has_a_profile_of_raw_and_clean(server):
    server.play(1)
    line = {"id": "l", "kind": "line", "x0": 0.5, "y0": 10.5, "x1": 20.5, "y1": 10.5}
    with server.viewer() as viewer:
        viewer.frame()
        viewer.say(type="regions", regions=[line])
        header, _ = viewer.frame()
        profile = header["regions"]["l"]["profile"]
        assert profile["raw"] == counts(0)[10, :21].tolist()
        assert profile["clean"][3] == 103.25
        assert profile["distance"][-1] == 20


def test_maps_travel_with_the_frame_labels_as_they_are(server):
    labels = np.zeros((48, 64), np.int32)
    labels[10:20, 10:20] = 7
    labels[30, 30] = 65536
    server.put(started(), *pair(0, maps={"segmentation.labels": labels}))
    with server.viewer() as viewer:
        hello_maps = viewer.text("hello")["maps"] or viewer.text("run")["maps"]
        assert hello_maps["phase.classes"]["classes"][1] == {
            "value": 2,
            "name": "poor",
            "colour": "#0000ff",
        }
        viewer.say(type="view", maps=["segmentation.labels", "no.such"])
        header, pieces = viewer.frame()
        while not header["maps"]:
            header, pieces = viewer.frame()
        got = np.frombuffer(pieces["segmentation.labels"], "<u2").reshape(48, 64)
        assert (got[10:20, 10:20] == 7).all()
        assert got[30, 30] == 1
        assert got[0, 0] == 0


def test_strips_begin_with_what_is_kept_and_mark_runs_and_models(server):
    server.play(3)
    server.put(*pair(3, denoiser="quiet", model_version=1))
    name = "quality.psnr_estimated_db"
    with server.viewer() as viewer:
        viewer.say(type="strips", names=[name])
        kinds: list[str] = []
        first = viewer.text("strips")
        assert first["reset"] is True
        kinds += [event["kind"] for event in first["events"]]
        server.put(RunEnd(run="r1", reason="completed"))
        while "run_end" not in kinds:
            new = viewer.text("strips")
            kinds += [event["kind"] for event in new["events"]]
            first["values"][name] += new["values"][name]
        assert kinds == ["run_start", "promote", "run_end"]
        assert [round(value, 3) for value in first["values"][name]] == [21.5]
        history = server.get("/api/v1/history").json
        assert history["metrics"][name] == [21.5]


def test_a_picture_is_never_passed_off_as_live(server):
    server.play(1, frame_time_s=0.01)
    with server.viewer() as viewer:
        becomes_live(server, viewer)
        stale = viewer.text("status", where=lambda t: t["freshness"]["state"] == "stale")
        assert stale["banners"][0]["id"] == "stale"
        assert stale["banners"][0]["level"] == "alarm"
        becomes_live(server, viewer)
        server.put(RunEnd(run="r1", reason="completed"))
        viewer.text("status", where=lambda t: t["freshness"]["state"] == "idle")
        server.link.connected = False
        lost = viewer.text("status", where=lambda t: t["freshness"]["state"] == "lost")
        assert [banner["id"] for banner in lost["banners"]] == ["lost"]


def test_a_frame_that_is_never_cleaned_is_shown_raw_and_called_raw(server):
    server.put(started(), pair(0)[0])
    with server.viewer() as viewer:
        header, _ = viewer.frame()
        assert [plane["name"] for plane in header["planes"]] == ["raw"]
        assert header["denoiser"] is None
        viewer.text("status", where=lambda t: any(b["id"] == "raw_only" for b in t["banners"]))
        server.put(pair(0)[1])  # it comes late, and belongs to the same picture
        late, _ = viewer.frame()
        assert (late["id"], late["denoiser"]) == (header["id"], "kalman")
        assert [plane["name"] for plane in late["planes"]] == ["raw", "clean"]


def test_a_cleaned_frame_that_overtook_its_raw_one_is_joined_with_it(server):
    raw, clean = pair(0)
    server.put(started(), clean)
    with server.viewer() as viewer:
        header, _ = viewer.frame()
        assert [plane["name"] for plane in header["planes"]] == ["clean"]
        server.put(raw)
        late, pieces = viewer.frame()
        assert late["id"] == header["id"]
        assert [plane["name"] for plane in late["planes"]] == ["raw", "clean"]
        assert (values(late, pieces, "raw") == counts(0)).all()


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        '{"type": "fly"}',
        '{"type": "view", "size": [0, 10]}',
        '{"type": "view", "planes": ["raw", "secret"]}',
        '{"type": "view", "extra": 1}',
        '{"type": "regions", "regions": [{"id": "a", "kind": "rectangle", "x0": 1e99}]}',
        '{"type": "seek", "id": -5}',
        '{"type": "value", "request": 1, "x": NaN, "y": 2}',
        "[1, 2]",
    ],
)
def test_nonsense_is_answered_and_changes_nothing(server, message):
    server.play(1)
    with server.viewer() as viewer:
        viewer.frame()
        viewer.socket.send(message)
        assert "see the protocol" in viewer.text("error")["error"]
        viewer.say(type="value", request=1, x=1, y=1)
        assert viewer.text("value")["raw"] == 11


def test_a_chatterbox_and_a_giant_message_end_their_connection_only(server):
    server.play(1)
    with server.viewer() as calm:
        calm.frame()
        with server.viewer() as loud:
            assert loud.shout('{"type": "pause"}', 20_000) in {1008, *CUT_OFF}
        with server.viewer() as giant:
            assert giant.shout("x" * 200_000, 1) in {1009, *CUT_OFF}
        server.put(*pair(1))
        while calm.frame()[0]["index"] != 1:
            pass


def test_a_viewer_that_takes_nothing_costs_the_other_one_nothing_and_is_closed(server):
    shape = (1024, 1024)
    server.play(1, shape=shape)
    with server.viewer() as good:
        good.say(type="view", size=[2048, 2048], max_fps=30)
        stalled = sockets.create_connection(("127.0.0.1", server.port))
        stalled.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        stalled.sendall(handshake(server.port))
        good.text("status", where=lambda t: t["viewers"] == 2)
        for index in range(1, 8):
            server.put(*pair(index, shape=shape))
            while good.frame()[0]["index"] != index:
                pass
        good.text("status", where=lambda t: t["viewers"] == 1)
        stalled.close()


def test_equal_views_are_encoded_once(tmp_path):
    from quietbeam_plugins.sinks.web import hub as hubs

    link = FakeLink()
    kept = []
    original = hubs.Shared

    class Watched(original):
        def __init__(self):
            super().__init__()
            kept.append(self)

    hubs.Shared = Watched
    try:
        with serving(tmp_path, link) as server, server.viewer() as one, server.viewer() as two:
            for viewer in (one, two):
                viewer.say(type="view", planes=["raw"], max_fps=30)
                viewer.say(type="value", request=1, x=0, y=0)
                viewer.text("value")  # by then it has its view
            server.play(1)
            assert one.frame()[0]["index"] == two.frame()[0]["index"] == 0
            assert kept[0].encoded == 1
    finally:
        hubs.Shared = original


def test_shared_regions_and_annotations_reach_every_viewer(server):
    from helpers.web import TOKEN

    server.play(1)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    region = {"id": "s", "kind": "rectangle", "x0": 0, "y0": 0, "x1": 4, "y1": 4, "name": "edge"}
    with server.viewer() as viewer:
        viewer.frame()
        done = server.ask("PUT", "/api/v1/regions", {"regions": [region]}, **bearer)
        assert done.status == 200
        assert viewer.text("shared_regions")["regions"][0]["name"] == "edge"
        done = server.ask("POST", "/api/v1/annotations", {"text": "crack"}, **bearer)
        assert done.json["recorded"] is True
        assert server.link.commands == [("annotate", {"text": "frame 0: crack"})]
        assert viewer.text("annotation")["annotation"]["text"] == "crack"
    with server.viewer() as late:
        hello = late.text("hello")
        assert hello["shared_regions"][0]["id"] == "s"
        assert hello["annotations"][0]["index"] == 0


def test_a_snapshot_holds_every_pixel_and_how_it_came_about(server):
    server.play(2, pixel_size_m=7.5e-5)
    until(lambda: server.get("/api/v1/snapshot").status == 200)
    until(lambda: server.get("/api/v1/hello").json["buffer"]["last"] == 2)
    tiff = server.get("/api/v1/snapshot?id=2&format=tiff")
    assert tiff.headers["content-disposition"] == 'attachment; filename="r1_1.tiff"'
    with tifffile.TiffFile(io.BytesIO(tiff.body)) as file:
        assert (file.pages[0].asarray() == counts(1)).all()
        about = json.loads(file.pages[1].tags["ImageDescription"].value)
        assert (about["plane"], about["frame"], about["denoiser"]) == ("clean", 1, "kalman")
    with h5py.File(io.BytesIO(server.get("/api/v1/snapshot?id=2&format=h5").body)) as file:
        assert (file["entry/data/raw"][()] == counts(1)).all()
        assert file["entry/data/clean_errors"][0, 0] == 2
    npy = np.load(io.BytesIO(server.get("/api/v1/snapshot?format=npy").body), allow_pickle=False)
    assert npy[5, 5] == 55.25
    assert server.get("/api/v1/snapshot?format=exe").status == 400
    assert server.get("/api/v1/snapshot?id=1e9").status == 400


def test_several_channels_are_seen_one_at_a_time(server):
    raw = np.stack([counts(0), counts(0) + 1000])
    server.put(
        started(shape=(2, 48, 64), channels=("low", "high")),
        *pair(0, raw=raw),
    )
    with server.viewer() as viewer:
        viewer.say(type="view", planes=["raw"], channel="high")
        header, pieces = viewer.frame()
        while header["channel"] != "high":
            header, pieces = viewer.frame()
        assert (values(header, pieces, "raw") == raw[1]).all()
        assert header["shape"] == [48, 64]


def test_the_buffer_is_bounded_in_bytes(tmp_path):
    shape = (512, 512)  # 2.5 MiB of raw, clean and s.d. each
    with serving(tmp_path, buffer_mib=16) as server:
        server.play(1, shape=shape)
        for index in range(1, 30):
            server.put(*pair(index, shape=shape))
        until(lambda: server.get("/api/v1/hello").json["buffer"]["last"] == 30)
        span = server.get("/api/v1/hello").json["buffer"]
        assert span["frames"] == 6
        with server.viewer() as viewer:
            viewer.frame()
            viewer.say(type="seek", id=1)
            assert viewer.frame()[0]["id"] == 25

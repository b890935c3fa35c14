"""Reading the configuration again: validated first, all or nothing."""

from quietbeam.config import load
from quietbeam.service.reload import Reloader

SOURCE = '[source]\nkind = "array"\naddress = "tcp://127.0.0.1:1"\n'


def reloader(tmp_path, text=SOURCE):
    path = tmp_path / "beam.toml"
    path.write_text(text)
    return path, Reloader(load(path))


def test_the_same_file_changes_nothing(tmp_path):
    _, held = reloader(tmp_path)
    assert held.reload().result == "unchanged"


def test_live_keys_hold_at_once_and_others_wait_for_a_restart(tmp_path):
    path, held = reloader(tmp_path)
    path.write_text(
        SOURCE.replace(":1", ":2") + "[trainer]\nenabled = false\nbatch = 4\n"
        '[service]\nlog_level = "debug"\n[[sinks]]\nkind = "hdf5"\n'
    )
    done = held.reload()
    assert done.result == "restart_required"
    assert done.applied == ("service.log_level", "trainer.enabled")
    assert {"source.address", "trainer.batch", "sinks[1].kind"} <= set(done.restart_required)
    assert not held.config.trainer.enabled
    assert held.config.trainer.batch == 8
    assert held.config.service.log_level == "debug"
    assert held.config.sinks == ()
    assert held.account()["restart_required"] == list(done.restart_required)


def test_what_is_put_back_needs_no_restart_any_more(tmp_path):
    path, held = reloader(tmp_path)
    path.write_text(SOURCE + "[rings]\nraw_mib = 1\n")
    assert held.reload().restart_required == ("rings.raw_mib",)
    path.write_text(SOURCE)
    assert held.reload().result == "unchanged"
    assert held.pending == ()


def test_a_wrong_file_changes_nothing_and_is_told(tmp_path):
    path, held = reloader(tmp_path)
    before = held.config
    for wrong in ("nonsense", SOURCE + "[trainer]\nenabled = false\nbach = 1\n", ""):
        path.write_text(wrong)
        done = held.reload()
        assert done.result == "failed"
        assert str(path) in done.error
        assert held.config is before
    path.unlink()
    assert held.reload().result == "failed"
    assert held.counts["failed"] == 4
    assert not held.last_successful
    path.write_text(SOURCE)
    held.reload()
    assert held.last_successful

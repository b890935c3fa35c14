"""A daemon's snapshot, as ``Daemon.snapshot`` gives it."""


def snapshot(*, heartbeats=None, source=None, output_state="recording", **changes):
    account = {"received": 5, "sent": 4, "dropped": {"overload": 1}, "in_flight": 0}
    reader = {"name": "denoise", "read": 5, "lost": 0, "skipped": 0, "in_flight": 0}
    output = {
        "kind": "hdf5",
        "up": True,
        "status": {"state": output_state, "unflushed": 2, "free_bytes": 10**9},
        "totals": {"raw_written": 5, "clean_written": 4, "synced": 3, "bytes": 1000},
        "dropped_total": {"disk_full": 2},
        "finished": [],
    }
    child = {
        "state": "running",
        "pid": 1,
        "restarts": {"exit": 0, "signal": 1, "config": 0, "silent": 0, "spawn": 0},
        "silence_s": 0.1,
        "exit_code": None,
        "garbled": 0,
    }
    return {
        "name": "test",
        "version": "0.1.0",
        "pid": 1,
        "state": "running",
        "uptime_s": 10.0,
        "config": {
            "sha256": "abc",
            "reloads": {"failed": 1},
            "last_reload_successful": False,
            "last_reload_success_unix_s": 1.0,
        },
        "source": source or {"kind": "array", "state": "running", "up": True},
        "pipeline": {
            "denoiser": "kalman",
            "backlog": 0,
            "received_hz": 20.0,
            "clean_hz": 20.0,
            "psnr_estimated_db": float("nan"),
            "psnr_raw_db": 20.0,
            "trusted": 1.0,
            "received_bytes": 100,
            "last_frame_age_s": 0.1,
        },
        "ledger": {"ingest": {**account, "dropped": {}}, "denoise": account, "zmq.1": account},
        "sinks": ["hdf5.0", "zmq.1"],
        "connections": {"zmq.1": {"subscribers": 2, "refused": 3}},
        "rings": {"raw": {"frames": 5, "capacity_bytes": 10, "readers": [reader]}},
        "balanced": True,
        "frames": {
            "received": 5,
            "late": 2,
            "missing": 1,
            "duplicate": 1,
            "foreign": 0,
            "after_end": 0,
            "rejected": {"truncated": 2, "duplicate": 1},
        },
        "alarms": {"joined_late": {"run": "a", "message": "too late", "since_unix_s": 1.0}},
        "alarms_raised": {"joined_late": 3},
        "output_accounts": {"hdf5.0:raw": account},
        "queues": {"frames": {"denoise": 0}, "capacity": {"denoise": 64}},
        "degradation": "normal",
        "model": {
            "version": 2,
            "age_s": 3.0,
            "swaps": {"promoted": 2},
            "actions": {"promote": 2, "reject": 3, "demote": 0},
        },
        "trainer": {"up": True, "progress": {"steps": 10, "loss": 0.5}},
        "decisions": [],
        "views": {
            "epics.2": {
                "status": {"state": "serving"},
                "kind": "epics",
                "up": True,
                "given_total": 7,
                "dropped_total": {"behind": 2},
            }
        },
        "outputs": {"hdf5.0": output},
        "children": {"hdf5.0": child, "trainer": child},
        "threads": {"started": ["ingest"], "running": ["ingest"], "failed": {}},
        "heartbeats": heartbeats or {"ingest": 0.1, "denoise": 0.2},
        "auth_failures": {"control:wrong": 3},
        "watchdog_last_ping_unix_s": None,
        **changes,
    }

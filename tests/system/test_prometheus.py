"""A real Prometheus scrapes a real daemon: rules load, panels show something, alerts are true."""

import http.server
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.daemons import free_port, get, running, send_frames
from helpers.waiting import until

PROMETHEUS = shutil.which("prometheus")
DEPLOY = Path(__file__).parents[2] / "deploy"
SINKS = """
[[sinks]]
kind = "hdf5"
directory = "{directory}"
flush_interval_s = 0.2
reserve_bytes = 1000000
[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:{port}"
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]


class Prometheus:
    def __init__(self, url):
        self._url = url

    def ask(self, path, **query):
        status, body = get(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}")
        answer = json.loads(body)
        assert status == 200, answer
        return answer["data"]

    def value(self, expression):
        return self.ask("query", query=expression)["result"]

    def alerts(self):
        firing = [a for a in self.ask("alerts")["alerts"] if a["state"] == "firing"]
        return {(a["labels"]["alertname"], a["labels"]["instance"]) for a in firing}


@contextmanager
def prometheus(directory, targets):
    """Start one with the shipped rules, made to wait seconds instead of minutes."""
    rules = (DEPLOY / "prometheus/rules.yml").read_text()
    (directory / "rules.yml").write_text(re.sub(r"for: \S+", "for: 3s", rules))
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    config = config.replace('["127.0.0.1:9469"]', json.dumps(targets)).replace(": 5s", ": 1s")
    (directory / "prometheus.yml").write_text(config)
    port = free_port()
    argv = [
        PROMETHEUS, f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _is_ready(url), 60, "a ready Prometheus")
        yield Prometheus(url)
    finally:
        process.kill()
        process.wait(10)


def _is_ready(url):
    try:
        return get(f"{url}/-/ready")[0] == 200
    except OSError:
        return False


@contextmanager
def with_a_frame_too_many(url):
    """Serve the daemon's own metrics, but for one frame that came in and went nowhere."""

    class Altered(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = get(f"{url}/metrics")[1].decode()
            line = re.search(r'quietbeam_stage_frames_in_total\{stage="publish"\} (\S+)', text)
            planted = line[0].replace(line[1], str(float(line[1]) + 1))
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.replace(line[0], planted).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Altered) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def expressions():
    board = json.loads((DEPLOY / "grafana/quietbeam.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "20s")


def test_rules_and_dashboard_work_and_only_a_planted_imbalance_breaks_the_accounts(tmp_path):
    sinks = SINKS.format(directory=tmp_path / "files", port=free_port())
    with running(tmp_path, sinks=sinks) as daemon, with_a_frame_too_many(daemon.url) as planted:
        real = daemon.url.removeprefix("http://")
        with prometheus(tmp_path, [real, planted]) as server:
            over = threading.Event()
            frames = threading.Thread(
                target=send_frames, args=(daemon.port, 100_000),
                kwargs={"rate_hz": 30.0, "stop": over.is_set},
            )  # fmt: skip
            frames.start()
            try:
                broken = ("QuietbeamAccountingBroken", planted)
                until(lambda: broken in server.alerts(), 90, "the alarm of the accounts")
                until(lambda: len(server.value("quietbeam:frames_received:rate1m")) == 2, 60)
                rules = [r for g in server.ask("rules")["groups"] for r in g["rules"]]
                assert len(rules) == (DEPLOY / "prometheus/rules.yml").read_text().count("expr:")
                assert {rule["health"] for rule in rules} == {"ok"}
                empty = []
                for title, expression in expressions():
                    given = expression.replace("$instance", ".*")
                    if not server.value(given):
                        empty.append((title, given))
                assert empty == []
                assert ("QuietbeamAccountingBroken", real) not in server.alerts()
                assert ("QuietbeamDown", real) not in server.alerts()
                fired = 'ALERTS{alertname="QuietbeamAccountingBroken", alertstate="firing"}'
                ever = server.value(f"max_over_time({fired}[5m])")
                assert {series["metric"]["instance"] for series in ever} == {planted}
            finally:
                over.set()
                frames.join(30)

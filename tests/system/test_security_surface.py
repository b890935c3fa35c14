"""What a running daemon lays open, held against SECURITY.md; where its secrets may not be found."""

import contextlib
import re
import socket
from pathlib import Path

import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from helpers.daemons import OPENER, free_port, get, running, send_frames
from helpers.processes import descendants
from helpers.waiting import until
from quietbeam.service.http import Endpoints
from quietbeam_plugins.sinks.web.app import Api

WRITTEN = (Path(__file__).parents[2] / "SECURITY.md").read_text()
TOKEN = "a-control-token-that-nobody-may-ever-see"
SINKS = """
[[sinks]]
kind = "hdf5"
directory = "{directory}"
reserve_bytes = 0
flush_interval_s = 0.2
[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:{zmq}"
[[sinks]]
kind = "web"
address = "127.0.0.1:{web}"
"""


def table(title):
    """The rows of the table under a heading of SECURITY.md, without its head."""
    section = WRITTEN.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def served(routes):
    """Path and method of every route; HEAD comes with GET."""
    found = set()
    for route in routes:
        if isinstance(route, WebSocketRoute):
            found.add((route.path, "WebSocket"))
        elif isinstance(route, Mount):
            found.add((route.path, "GET"))
        else:
            assert isinstance(route, Route)
            found |= {(route.path, method) for method in route.methods - {"HEAD"}}
    return found


@pytest.mark.parametrize(
    ("title", "routes"),
    [
        ("Routes of `[service] http`", lambda: _service().routes),
        ("Routes of sink `web`", lambda: _web().routes),
    ],
)
def test_the_routes_are_those_that_are_written_down(title, routes):
    written = {(path, method) for path, method, _ in table(title)}
    assert served(routes()) == written


@pytest.mark.parametrize("title", ["Routes of `[service] http`", "Routes of sink `web`"])
def test_what_is_written_down_lets_nothing_change_without_a_credential(title):
    changing = [(path, needs) for path, method, needs in table(title) if method in {"POST", "PUT"}]
    assert changing
    assert [path for path, needs in changing if not re.search("token|own session", needs)] == []


def _service():
    return Endpoints(None, None, None, None, None).application()


def _web():
    return Api(None, None, None, None).application()._application


def sockets_of(pids):
    """Inodes of all sockets of these processes."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # ended meanwhile
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    target = str(descriptor.readlink())
                    if target.startswith("socket:["):
                        found.add(target[8:-1])
    return found


def listening(pids):
    """(address, port) of every socket of these processes that others can send to."""
    ours, found = sockets_of(pids), set()
    for name, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        table_of_kernel = Path(f"/proc/net/{name}")
        lines = table_of_kernel.read_text().splitlines()[1:] if table_of_kernel.exists() else []
        for fields in map(str.split, lines):
            address, _, port = fields[1].rpartition(":")
            if fields[9] in ours and fields[3] in states:
                shown = address
                if len(address) == 8:
                    shown = socket.inet_ntoa(bytes.fromhex(address)[::-1])
                found.add((shown, int(port, 16)))
    return found


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    directory = tmp_path_factory.mktemp("surface")
    (directory / "credentials").mkdir()
    (directory / "credentials/web-token").write_text(TOKEN + "\n")
    ports = {"zmq": free_port(), "web": free_port()}
    sinks = SINKS.format(directory=directory / "files", **ports)
    environment = {"CREDENTIALS_DIRECTORY": str(directory / "credentials")}
    with running(directory, environment, sinks=sinks) as started:
        started.ports = ports
        until(lambda: _answers(ports["web"]), 60, "the live view")
        yield started


def _answers(port):
    try:
        return get(f"http://127.0.0.1:{port}/api/v1/status")[0] == 200
    except OSError:
        return False


def ask(url, method, **headers):
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, b"{}", headers, method=method)
    try:
        with OPENER.open(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_only_the_sockets_of_the_list_are_open_and_only_to_this_computer(daemon):
    http = int(daemon.url.rpartition(":")[2])
    wanted = {http, daemon.port, daemon.ports["zmq"], daemon.ports["web"]}
    found = listening(descendants(daemon.process.pid))
    assert found == {("127.0.0.1", port) for port in wanted}
    named = " ".join(row[0] for row in table("Listening sockets"))
    for part in ("[service] http", "web", "zmq", "bind = true"):
        assert part in named


def test_no_method_of_any_route_changes_anything_without_a_credential(daemon):
    places = (
        (daemon.url, _service().routes),
        (f"http://127.0.0.1:{daemon.ports['web']}", _web().routes),
    )
    before = daemon.status()["config"]
    for url, routes in places:
        paths = {route.path.format(command="record_stop", name="x") for route in routes}
        paths -= {"/api/v1/logout"}  # ends the session that is given, and here none is
        for path in paths:
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                assert ask(url + path, method) in {400, 401, 403, 404, 405, 429}, (method, path)
    assert daemon.status()["config"] == before


def test_the_token_stands_nowhere(daemon):
    header = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(f"{daemon.url}/api/v1/control/status", "POST", **header) == 200
    assert ask(f"{daemon.url}/api/v1/control/status", "POST", Authorization="Bearer no") == 403
    send_frames(daemon.port, 20, rate_hz=100)
    daemon.wait_for(lambda s: s["outputs"]["hdf5.0"]["totals"]["raw_written"] == 20, 60, "frames")
    shown = {
        path: get(daemon.url + path)[1]
        for path in ("/", "/metrics", "/api/v1/status", "/api/v1/ledger", "/readyz")
    }
    shown["log"] = daemon.log_path.read_bytes()
    for pid in descendants(daemon.process.pid):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # ended meanwhile
                shown[f"{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    assert f"{daemon.process.pid}/environ" in shown
    files = [path for path in (daemon.directory / "files").rglob("*") if path.is_file()]
    assert files
    shown |= {path.name: path.read_bytes() for path in files}
    assert [name for name, content in shown.items() if TOKEN.encode() in content] == []
    assert all(content for name, content in shown.items() if "/" not in name[1:])

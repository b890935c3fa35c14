"""The HTTP interface, over real sockets."""

import asyncio
import http.client
import json
import socket
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from helpers.snapshots import snapshot
from quietbeam.core.errors import ConfigError, QuietbeamError
from quietbeam.service.access import Access, own_names
from quietbeam.service.control import COMMANDS, Control
from quietbeam.service.http import Endpoints, HttpServer, listen, url_of
from quietbeam.service.telemetry import Telemetry

TOKEN = "correct-horse-battery"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


ACCOUNTS = {"balanced": True, "runs": [{"run": "a", "missing_ranges": [[3, 4]]}]}


class Actions:
    """Does nothing, and remembers what it was told."""

    def __init__(self):
        self.told = []

    def status(self):
        return {"state": "running", "value": float("nan")}

    def ledger(self):
        return ACCOUNTS

    def record(self, *, on):
        self.told.append(("record", on))
        return {"recording": on}

    def train(self, *, on):
        self.told.append(("train", on))
        return {}

    def annotate(self, text):
        return {"outputs": [text]}

    def checkpoint(self):
        raise QuietbeamError("the trainer is not running")

    async def rollback(self, version):
        self.told.append(("rollback", version))
        return {"model_version": version or 0}

    async def use(self, which):
        self.told.append(("use", which))
        return {}

    async def reset(self):
        self.told.append(("reset",))
        return {}

    async def reload(self):
        raise QuietbeamError("the configuration in force stays: beam.toml: ...")


class Served:
    def __init__(self, url, actions, access, status):
        self.url, self.actions, self.access, self.status = url, actions, access, status

    async def ask(self, method, path, body=None, headers=None):
        return await asyncio.to_thread(self._ask, method, path, body, headers or {})

    def _ask(self, method, path, body, headers):
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=5)
        try:
            content = json.dumps(body) if isinstance(body, (dict, list)) else body
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()


@asynccontextmanager
async def served(status=None):
    actions, access = Actions(), Access(TOKEN, own_names("127.0.0.1"))
    status = snapshot() if status is None else status
    telemetry = Telemetry(lambda: status)
    endpoints = Endpoints(
        lambda: status, lambda: ACCOUNTS, telemetry.registry, Control(actions), access
    )
    listener = listen("127.0.0.1:0")
    server = HttpServer(endpoints.application(), listener)
    server.start()
    try:
        yield Served(url_of(listener), actions, access, status)
    finally:
        await server.stop()


def serve(scenario, status=None):
    async def run():
        async with served(status) as server:
            await scenario(server)

    asyncio.run(run())


def test_reading_is_open():
    async def scenario(server):
        for path in ("/", "/healthz", "/readyz", "/api/v1/status", "/api/v1/ledger", "/metrics"):
            code, _, headers = await server.ask("GET", path)
            assert code == 200, path
            if path != "/metrics":
                assert headers["x-content-type-options"] == "nosniff"

    serve(scenario)


def test_the_ledger_has_a_page_and_a_command():
    async def scenario(server):
        _, content, _ = await server.ask("GET", "/api/v1/ledger")
        assert json.loads(content) == ACCOUNTS
        code, content, _ = await server.ask("POST", "/api/v1/control/ledger", {}, AUTH)
        assert (code, json.loads(content)) == (200, ACCOUNTS)

    serve(scenario)


def test_health_tells_which_part_is_not_well_and_why():
    async def scenario(server):
        code, content, _ = await server.ask("GET", "/healthz")
        assert code == 503
        assert json.loads(content)["checks"]["ingest"] == {
            "ok": False, "reason": "last heartbeat 9.0 s ago",
        }  # fmt: skip
        code, content, _ = await server.ask("GET", "/readyz")
        assert code == 503
        checks = json.loads(content)["checks"]
        assert checks["output:hdf5.0"] == {"ok": False, "reason": "disk_full"}
        assert not checks["source"]["ok"]

    serve(
        scenario,
        snapshot(
            heartbeats={"ingest": 9.0, "denoise": 9.0},
            source={"kind": "array", "state": "failed: gone", "up": False},
            output_state="disk_full",
        ),
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_is_carried_out_without_the_token(command):
    async def scenario(server):
        path = f"/api/v1/control/{command}"
        code, _, headers = await server.ask("POST", path, {})
        assert (code, headers["www-authenticate"]) == (401, "Bearer")
        assert (await server.ask("POST", path, {}, {"Authorization": "Bearer wrong"}))[0] == 403
        assert (await server.ask("POST", path, {}, {"Authorization": f"Basic {TOKEN}"}))[0] == 401
        assert server.actions.told == []
        assert server.access.failures["control", "wrong"] == 1
        assert server.access.failures["control", "missing"] == 2

    serve(scenario)


def test_commands_reach_the_daemon_with_their_argument():
    async def scenario(server):
        post = server.ask
        assert (await post("POST", "/api/v1/control/record_stop", None, AUTH))[0] == 200
        assert (await post("POST", "/api/v1/control/rollback", {"version": 3}, AUTH))[0] == 200
        assert (await post("POST", "/api/v1/control/use", {"which": "live"}, AUTH))[0] == 200
        assert server.actions.told == [("record", False), ("rollback", 3), ("use", "live")]
        code, content, _ = await post("POST", "/api/v1/control/status", {}, AUTH)
        assert (code, json.loads(content)) == (200, {"state": "running", "value": None})

    serve(scenario)


@pytest.mark.parametrize(
    ("command", "body", "code", "words"),
    [
        ("explode", {}, 404, "known: status"),
        ("rollback", {"version": "3"}, 400, "whole number"),
        ("rollback", {"version": True}, 400, "whole number"),
        ("rollback", {"generation": 3}, 400, "unknown argument 'generation'"),
        ("use", {}, 400, "'classical' or 'live'"),
        ("reset", {"x": 1}, 400, "it takes none"),
        ("reset", b"{not json", 400, "not JSON"),
        ("reset", [1], 400, "JSON object"),
        ("reset", b"x" * 100_000, 400, "larger than"),
        ("checkpoint", {}, 409, "trainer is not running"),
        ("reload", {}, 409, "configuration in force stays"),
    ],
)
def test_a_wrong_command_is_refused_with_the_reason(command, body, code, words):
    async def scenario(server):
        got, content, _ = await server.ask("POST", f"/api/v1/control/{command}", body, AUTH)
        assert got == code
        assert words in json.loads(content)["error"]
        assert server.actions.told == []

    serve(scenario)


def test_other_web_pages_and_other_names_are_refused():
    async def scenario(server):
        path = "/api/v1/control/reset"
        foreign = {**AUTH, "Origin": "http://evil.example"}
        assert (await server.ask("POST", path, {}, foreign))[0] == 403
        rebound = {**AUTH, "Host": "evil.example"}
        assert (await server.ask("POST", path, {}, rebound))[0] == 403
        assert (await server.ask("GET", "/api/v1/status", None, {"Host": "evil.example"}))[0] == 403
        own = {**AUTH, "Origin": server.url}
        assert (await server.ask("POST", path, {}, own))[0] == 200
        assert server.access.failures["control", "origin"] == 1
        assert server.access.failures["control", "host"] == 1
        assert server.actions.told == [("reset",)]

    serve(scenario)


def test_guessing_the_token_is_slowed_down():
    async def scenario(server):
        wrong = {"Authorization": "Bearer guess"}
        codes = [
            (await server.ask("POST", "/api/v1/control/reset", {}, wrong))[0] for _ in range(12)
        ]
        assert codes == [403] * 10 + [429] * 2
        assert server.access.failures["control", "throttled"] == 2

    serve(scenario)


@pytest.mark.parametrize("path", ["/..%2f..%2fetc/passwd", "/api/v1/control/", "/api/v2/status"])
def test_what_is_not_served_is_not_found(path):
    async def scenario(server):
        assert (await server.ask("GET", path))[0] in {404, 405}

    serve(scenario)


def test_health_answers_beside_hundreds_of_idle_connections():
    async def scenario(server):
        where = urlsplit(server.url)
        idle = await asyncio.to_thread(connect, (where.hostname, where.port), 300)
        try:
            for connection in idle[:50]:
                connection.sendall(b"GET / HTTP/1.1\r\n")  # and never more
            async with asyncio.timeout(3):
                assert (await server.ask("GET", "/healthz"))[0] == 200
        finally:
            for connection in idle:
                connection.close()

    serve(scenario)


def connect(address, count):
    return [socket.create_connection(address, timeout=5) for _ in range(count)]


def test_a_taken_port_is_named():
    with listen("127.0.0.1:0") as first:
        taken = f"127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(ConfigError, match=taken):
            listen(taken)


@pytest.mark.parametrize("address", ["", "9469", "localhost", "127.0.0.1:x", "127.0.0.1:70000"])
def test_an_address_must_be_host_and_port(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        listen(address)


def test_stopping_is_safe_before_the_start_and_twice():
    async def scenario():
        server = HttpServer(
            Endpoints(
                dict, dict, Telemetry(dict).registry, Control(Actions()), Access("", frozenset())
            ).application(),
            listen("127.0.0.1:0"),
        )
        await server.stop()
        await server.stop()

    asyncio.run(scenario())

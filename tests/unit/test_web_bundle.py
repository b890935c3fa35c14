"""The page that is shipped is the one its sources make, small, and of this server alone."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins" / "web"
STATIC = ROOT / "plugins" / "quietbeam_plugins" / "sinks" / "web" / "static"
MOST_BYTES = 150_000
HASHED = (
    "index.html",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.ts",
    "src",
)

pytestmark = pytest.mark.skipif(
    not SOURCES.is_dir(), reason="needs plugins/web, which an installed package does not have"
)


def sources_digest() -> str:
    """Do as plugins/web/tools/stamp.mjs does."""
    files = [
        file
        for name in HASHED
        for file in ((SOURCES / name).rglob("*") if name == "src" else [SOURCES / name])
        if file.is_file()
    ]
    digest = hashlib.sha256()
    for name in sorted(file.relative_to(SOURCES).as_posix() for file in files):
        digest.update(name.encode() + b"\0" + (SOURCES / name).read_bytes() + b"\0")
    return digest.hexdigest()


def test_the_bundle_is_built_from_its_sources_as_they_are() -> None:
    stamp = (STATIC / "sources.sha256").read_text().strip()
    assert stamp == sources_digest(), "the page is older than its sources: run `make web`"


def test_the_whole_page_is_small() -> None:
    files = [file for file in STATIC.rglob("*") if file.suffix in {".html", ".js", ".css", ".svg"}]
    assert len(files) >= 3
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) < MOST_BYTES


def test_the_page_asks_no_other_server_and_holds_nothing_a_strict_policy_refuses() -> None:
    index = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", index)
    addresses = re.findall(r"""(?:src|href)="([^"]+)\"""", index)
    assert len(addresses) >= 2
    for address in addresses:
        assert re.match(r"static/[\w./-]+$", address), f"{address} is not relative to the page"
        assert (STATIC / address.removeprefix("static/")).is_file()
    for file in STATIC.rglob("*.*s"):
        found = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, f"{file.name} knows outside addresses"
        assert "url(data:" not in file.read_text()

"""What is installed with us: licences, the hashed lock, the bill of materials."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXCEPTIONS = tomllib.loads((DEPLOY / "licences.toml").read_text())
EXTRAS = tuple(name for name in PROJECT["optional-dependencies"] if name != "dev")
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|CC0|BSL-1\.0|MIT-CMU)\b", re.I
)
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EUPL|CDDL|Eclipse|Proprietary|Commercial|NVIDIA", re.I)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name, extras=(), found=None):
    """Everything installed that ``name`` with ``extras`` asks for, by canonical name."""
    found = {} if found is None else found
    try:
        package = distribution(name)
    except PackageNotFoundError:  # an extra that is not installed here
        return found
    found[canonical(name)] = package
    for line in package.requires or ():
        wanted = Requirement(line)
        holds = [
            wanted.marker is None or wanted.marker.evaluate({"extra": e}) for e in ("", *extras)
        ]
        if any(holds) and (canonical(wanted.name) not in found):
            installed(wanted.name, tuple(wanted.extras), found)
    return found


def licence_of(package):
    """What a package says of itself: an expression, else a short text and classifiers."""
    told = package.metadata
    short = (told.get("License") or "").split("\n")[0]
    classified = [c for c in told.get_all("Classifier") or () if c.startswith("License ::")]
    return told.get("License-Expression") or " ".join([short, *classified])


def names_of_lock():
    lines = (DEPLOY / "requirements.lock").read_text().splitlines()
    return {
        canonical(found[1]): found[2]
        for line in lines
        if (found := re.match(r"^([A-Za-z0-9_.-]+)==(\S+)", line))
    }


def test_every_dependency_is_permissive_or_a_documented_exception():
    packages = installed("quietbeam", EXTRAS)
    assert len(packages) > 30
    judged = {name: licence_of(package) for name, package in packages.items()}
    refused = {
        name: licence
        for name, licence in judged.items()
        if name not in EXCEPTIONS and (COPYLEFT.search(licence) or not PERMISSIVE.search(licence))
    }
    assert refused == {}


@pytest.mark.parametrize(
    ("licence", "fits"),
    [("MIT License", True), ("GPL-3.0-only", False), ("LGPL", False), ("UNKNOWN", False)],
)
def test_the_judge_of_licences_knows_the_difference(licence, fits):
    assert (not COPYLEFT.search(licence) and bool(PERMISSIVE.search(licence))) is fits


def test_every_exception_has_a_licence_and_a_reason():
    assert all(set(entry) == {"licence", "reason"} for entry in EXCEPTIONS.values())
    assert not any(re.search(r"(?<!L)GPL", entry["licence"]) for entry in EXCEPTIONS.values())


def test_the_lock_holds_every_dependency_with_hashes_in_the_versions_tested():
    locked = names_of_lock()
    wanted = {canonical(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert wanted - set(locked) == set()
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pins = {canonical(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    other = {n: v for n, v in locked.items() if v.partition("+")[0] != pins.get(n, v)}
    assert other == {}
    blocks = re.split(r"\n(?=[A-Za-z])", (DEPLOY / "requirements.lock").read_text())
    pinned = [block for block in blocks if "==" in block.split("\n")[0]]
    assert len(pinned) == len(locked)
    assert [block.split("\n")[0] for block in pinned if "--hash=sha256:" not in block] == []


def test_the_bill_of_materials_names_what_the_lock_names():
    bill = json.loads((DEPLOY / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"] >= "1.5") == ("CycloneDX", True)
    listed = {canonical(part["name"]): part["version"] for part in bill["components"]}
    assert listed == names_of_lock()
    for part in bill["components"]:
        assert part["purl"].startswith("pkg:pypi/")
        [digest] = part["hashes"]
        assert digest["content"] in (DEPLOY / "requirements.lock").read_text()

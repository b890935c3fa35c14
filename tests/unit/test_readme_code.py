"""The code in every README runs as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = {".venv", "node_modules"}
READMES = [path for path in sorted(ROOT.rglob("*.md")) if IGNORED.isdisjoint(path.parts)]


def blocks(language):
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for path in READMES:
        for number, match in enumerate(pattern.finditer(path.read_text())):
            yield pytest.param(match[1], id=f"{path.relative_to(ROOT)}#{number}")


@pytest.mark.parametrize("code", list(blocks("python")))
def test_python_code_in_a_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=110)


@pytest.mark.parametrize("text", list(blocks("sh")))
def test_commands_in_a_readme_exist_with_the_options_they_are_shown_with(text):
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["quietbeam"]:
            continue
        command = [sys.executable, "-m", "quietbeam", words[1], "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert {option for option in options if option not in shown} == set(), line


def test_links_between_documents_lead_somewhere():
    links = [
        (path, target)
        for path in READMES
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    ]
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []

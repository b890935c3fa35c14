"""The shipped configurations and their generated reference."""

import json
from pathlib import Path

import pytest

from quietbeam.cli import _reference
from quietbeam.config import SECTIONS, load

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_valid(path):
    assert load(path).source.name


def test_the_reference_is_what_the_code_says():
    stale = "run: python -m quietbeam.cli._reference configs"
    assert (CONFIGS / "README.md").read_text() == _reference.readme(CONFIGS), stale
    assert json.loads((CONFIGS / "schema.json").read_text()) == json.loads(
        json.dumps(_reference.schema(), default=str)
    ), stale


def test_every_key_of_every_section_has_a_line():
    text = _reference.readme(CONFIGS)
    for name, model in SECTIONS.items():
        part = text.split(f"## [{name}]")[1].split("\n## ")[0]
        for key in model.model_fields:
            assert f"| `{key}` |" in part


def test_the_readme_names_every_shipped_configuration():
    text = (CONFIGS / "README.md").read_text()
    assert [path.name for path in SHIPPED if f"`{path.name}`" not in text] == []


def test_dimensional_keys_tell_their_unit():
    keys = {
        setting["key"]: setting["unit"] for setting in _reference.settings_of(SECTIONS["service"])
    }
    assert keys["drain_s"] == "s"
    assert keys["http"] == ""

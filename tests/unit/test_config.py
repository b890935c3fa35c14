"""The configuration: what is accepted, and what is said about what is not."""

from pathlib import Path

import pytest

from quietbeam.config import load, load_service, parse
from quietbeam.core.errors import ConfigError

PATH = Path("beam.toml")
SOURCE = '[source]\nkind = "array"\naddress = "tcp://127.0.0.1:1"\n'


def test_the_smallest_file_gets_defaults_for_all_else():
    config = parse(SOURCE, PATH)
    assert config.name == "beam"
    assert (config.denoiser.name, config.fallback.name) == ("quiet", "kalman")
    assert config.sinks == ()
    assert config.trainer.enabled
    assert config.service.http == "127.0.0.1:9469"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["[source]", "missing"]),
        ("a = 1\nb\n", ["not valid TOML", "line 2"]),
        ("name = 3\n" + SOURCE, ["name = 3", "expected a text"]),
        (SOURCE + "[trainner]\n", ["'trainner'", "known:", "trainer"]),
        (SOURCE + "[trainer]\nbach = 8\n", ["[trainer] bach", "known keys:", "batch"]),
        (SOURCE + "[trainer]\nbatch = 0\n", ["[trainer] batch", "greater than 0", "got 0"]),
        (SOURCE + '[trainer]\nbatch = "8x"\n', ["[trainer] batch", "valid integer", "'8x'"]),
        (SOURCE + "[rings]\nraw_mib = -1\n", ["[rings] raw_mib", "got -1"]),
        (SOURCE + '[engine]\nprecision = "f8"\n', ["[engine] precision", "'bf16'", "'f8'"]),
        (SOURCE + '[service]\nlog = "xml"\n', ["[service] log", "'xml'"]),
        (SOURCE + "[sinks]\n", ["[[sinks]]", "list of tables"]),
        (SOURCE + "[[sinks]]\n", ["[[sinks]] #1", "kind"]),
        (SOURCE + '[[sinks]]\nkind = "hdf6"\n', ["[[sinks]] #1", "'hdf6'", "installed:", "hdf5"]),
        (SOURCE + "[denoiser]\nkind = 3\n", ["[denoiser]", "kind"]),
        ('[source]\nkind = "array"\n', ["[source] address", "required"]),
        (SOURCE + "addres = 1\n", ["[source] addres", "known keys:", "address"]),
        (
            SOURCE + '[trainer]\nclassical = ["svt"]\n',
            ["[trainer] classical", "'svt'", "installed:", "svd"],
        ),
        (SOURCE + "[trainer]\nema_decay = 1.5\n", ["[trainer] ema_decay", "less than 1"]),
    ],
)
def test_an_error_names_file_table_and_key_and_what_would_do(text, parts):
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    message = str(caught.value)
    assert message.startswith("beam.toml: ")
    for part in parts:
        assert part in message


def test_the_gate_may_choose_any_classical_denoiser_unless_told_otherwise():
    def classical(text):
        return [(named.name, named.plugin) for named in parse(SOURCE + text, PATH).classical]

    assert [name for name, _ in classical("")] == ["kalman", "median", "svd"]
    own = classical('[fallback]\nkind = "median"\nframes = 5\n')
    assert [name for name, _ in own] == ["median", "kalman", "svd"]
    assert own[0][1].frames == 5
    assert [name for name, _ in classical("[trainer]\nclassical = []\n")] == ["kalman"]


def test_every_error_of_a_table_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(SOURCE + "[rings]\nraw_mib = 0\nclean_mib = 0\n", PATH)
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nowhere.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(binary)


def test_the_digest_is_of_the_text_as_it_stands():
    assert parse(SOURCE, PATH).sha256 != parse(SOURCE + "\n", PATH).sha256


def test_the_service_table_can_be_read_without_any_plugin(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('name = "n"\n[source]\nkind = "unknown"\n[service]\nhttp = "127.0.0.1:7"\n')
    name, service = load_service(path)
    assert (name, service.http) == ("n", "127.0.0.1:7")

"""Coverage-guided fuzzing of the decoders: ``python tests/fuzz/decoders.py --seconds 60``.

One input is a message of any number of parts for one of the formats, in the
middle of a run or before it, whole or flattened.  An input that breaks one of
the promises in ``helpers.survival`` is kept (``--keep``) and ends the run with an
error; add it to ``quietbeam.testing.hostile`` when it is mended.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["quietbeam_plugins.sources"]):
    from helpers import survival
    from quietbeam.testing import hostile

_LARGEST = 1 << 16
_MESSAGE_S = 5  # of processor time: instrumented, and not the time that others take on the machine
_HANG_S = 60  # of the clock, for what never comes back


def packed(case: int, parts: list[bytes]) -> bytes:
    """Write a case as the bytes of one input: a byte of choices, then parts with their lengths."""
    return bytes([case]) + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unpacked(data: bytes) -> tuple[int, list[bytes]]:
    """Read any bytes as a case; a length beyond the end takes what is left."""
    parts, at = [], 1
    while at < len(data) and len(parts) < 64:
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return data[0] if data else 0, parts


def one_input(data: bytes) -> None:
    """Feed one case to its decoder."""
    case, parts = unpacked(data)
    choice, number = divmod(case, len(survival.FORMATS))
    form = survival.FORMATS[number]
    began_s = time.thread_time()
    survival.assert_survives(form, parts, mid_run=bool(choice & 1), flat=bool(choice & 2))
    assert time.thread_time() - began_s < _MESSAGE_S


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Change one part, or which parts there are: bytes moved across parts teach nothing."""
    dice = random.Random(seed)
    case, parts = unpacked(data)
    at = dice.randrange(len(parts) + 1)
    match dice.randrange(8):
        case 0:
            case = dice.randrange(256)
        case 1:
            parts.insert(at, dice.choice(parts) if parts else b"")
        case 2 if at < len(parts):
            del parts[at]
        case _ if at < len(parts):
            parts[at] = atheris.Mutate(parts[at], max(len(parts[at]) * 2, 64))
        case _:
            parts.append(atheris.Mutate(b"", 64))
    return packed(case, parts)[:max_size]


def seeds(folder: Path) -> None:
    """Write good messages and the whole corpus as first inputs."""
    for number, form in enumerate(survival.FORMATS):
        good = [*hostile.before(form), *hostile.after(form)]
        bad = [case.message for case in hostile.corpus() if case.format == form]
        for count, message in enumerate([*good, *bad]):
            case = number + count % 4 * len(survival.FORMATS)
            (folder / f"{form}-{count}").write_bytes(packed(case, message)[:_LARGEST])


def main() -> None:
    """Fuzz for a while."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--keep", type=Path, default=Path(".fuzz"),
        help="folder of inputs that reached new code, and of those that broke something",
    )  # fmt: skip
    parser.add_argument("inputs", nargs="*", type=Path, help="only run these inputs")
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quietbeam-fuzz-") as name:
        seeds(Path(name))
        limits = [f"-max_len={_LARGEST}", f"-timeout={_HANG_S}", "-rss_limit_mb=2048"]
        limits += [
            f"-max_total_time={arguments.seconds}",
            "-verbosity=0",
            f"-artifact_prefix={arguments.keep}/",
        ]
        what = [str(path) for path in arguments.inputs or (arguments.keep, Path(name))]
        atheris.Setup([sys.argv[0], *limits, *what], one_input, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

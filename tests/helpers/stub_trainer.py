"""A trainer that does what a directory says: each ``N.json`` in it is an event, told in order.

``python -m helpers.stub_daemon CONFIG DIRECTORY`` is a daemon with this trainer.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path


def main(directory: Path) -> int:
    """Tell what is there, then what comes."""
    threading.Thread(target=_until_hung_up, daemon=True).start()
    print(json.dumps({"type": "ready", "onnx": None}), flush=True)
    told = 0
    while not _over.is_set():
        path = directory / f"{told}.json"
        if path.exists():
            print(path.read_text(), flush=True)
            told += 1
        time.sleep(0.02)
    return 0


_over = threading.Event()


def _until_hung_up() -> None:
    for line in sys.stdin:
        if json.loads(line)["type"] == "stop":
            break
    _over.set()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

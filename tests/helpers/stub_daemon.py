"""The real daemon with the stub trainer: ``python -m helpers.stub_daemon CONFIG DIRECTORY``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from quietbeam.config import load
from quietbeam.service.daemon import Daemon
from quietbeam.service.logs import configure

if __name__ == "__main__":
    config = load(Path(sys.argv[1]))
    configure(config.service.log, config.service.log_level)
    trainer = (sys.executable, "-m", "helpers.stub_trainer", sys.argv[2])
    code = asyncio.run(Daemon(config, trainer_argv=trainer).run())
    sys.stdout.flush()
    os._exit(code)

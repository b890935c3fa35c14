"""Recognises Python objects on the wire by their bytes; none is ever loaded.

Loading a pickle runs whatever its sender wrote into it.
"""

from __future__ import annotations

import re

_PICKLE = rb"(?:\x80[\x02-\x05]|\([dl]p\d+\n|[}\]]q|c[\w.]+\n\w+\n)"
_DOCUMENT = rb"(?:start|stop|descriptor|event|event_page|resource|datum|datum_page)"
_LOOKED_AT = 65536
_KINDS = [
    (
        rb"(?:[^ ]{0,256} )?" + _DOCUMENT + rb" " + _PICKLE,
        "a bluesky document as a Python pickle; give its Publisher serializer=orjson.dumps",
    ),
    (
        rb"(?:view:)?(?:om|onda)\w*data\Z",
        "the tag of an OM or OnDA message, whose data are a Python pickle",
    ),
    (
        rb".*\xc4\x02nd",  # the key b"nd" of msgpack_numpy, which pickles what it cannot pack
        "objects of msgpack_numpy (karabo-bridge 1.0); have the server send version 2.2",
    ),
    (
        _PICKLE + rb"(?=.*status).*(?:heartbeat|snapshot|scannr|running)",
        "a Python pickle of contrast",
    ),
    (
        _PICKLE + rb"(?=.*content).*source",
        "a Python pickle of karabo-bridge; have the server serialise with msgpack",
    ),
    (_PICKLE, "a Python pickle"),
]
_PATTERNS = [(re.compile(pattern, re.DOTALL), text) for pattern, text in _KINDS]


def who_pickled(part: bytes | memoryview) -> str | None:
    """Say what sends such a part and what to do about it; None if it is no Python object."""
    start = bytes(part[:_LOOKED_AT])
    return next((text for pattern, text in _PATTERNS if pattern.match(start)), None)

"""Python's own serialisation, for data only: what ``bluesky`` puts on a socket by default.

Loading such bytes the usual way runs whatever their sender wrote into them.
Here nothing is imported and nothing is called by a name that came in: the
opcodes are read one by one (``pickletools.genops``, which executes none), and
those that build plain data are obeyed.  Of the names of functions only a few
are known, each stands for a function of this file.  Anything else is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pickletools import genops
from typing import Any, Literal

import numpy as np

from quietbeam.core.errors import DataError

MAX_BYTES = 16 << 20
"""Of one message; a bluesky document has no arrays and is far smaller."""
MAX_DEPTH, MAX_NODES = 32, 1 << 20
_KINDS = "biufcSU"


class RefusedError(DataError):
    """Bytes that hold more than plain data, or are damaged."""


# -- writing


def encode(value: Any) -> bytes:
    """Write plain data (protocol 3): what any Python reads back with its own loader.

    Args:
        value: None, bool, int, float, str, bytes, and lists, tuples and mappings of those.

    Raises:
        TypeError: Anything else.
    """
    return b"\x80\x03" + b"".join(_written(value)) + b"."


def _written(value: Any) -> list[bytes]:
    for kind, write in _WRITERS.items():
        if isinstance(value, kind):
            return write(value)
    raise TypeError(f"{type(value).__name__}: expected plain data (text, numbers, lists)")


def _integer(value: int) -> list[bytes]:
    if -(1 << 31) <= value < 1 << 31:
        return [b"J" + struct.pack("<i", value)]
    size = value.bit_length() // 8 + 1
    return [b"\x8b" + struct.pack("<i", size) + value.to_bytes(size, "little", signed=True)]


def _text(value: str) -> list[bytes]:
    text = value.encode("utf-8", "surrogatepass")
    return [b"X" + struct.pack("<I", len(text)) + text]


def _all(values: Iterable[Any]) -> list[bytes]:
    return [part for one in values for part in _written(one)]


_WRITERS: Mapping[type, Callable[[Any], list[bytes]]] = {  # in this order: a bool is an int
    type(None): lambda _: [b"N"],
    bool: lambda value: [b"\x88" if value else b"\x89"],
    int: lambda value: _integer(int(value)),
    float: lambda value: [b"G" + struct.pack(">d", value)],
    str: _text,
    bytes: lambda value: [b"B" + struct.pack("<I", len(value)) + value],
    Mapping: lambda value: [b"}(", *_all(one for pair in value.items() for one in pair), b"u"],
    tuple: lambda value: [b"(", *_all(value), b"t"],
    list: lambda value: [b"](", *_all(value), b"e"],
}


# -- reading


def decode(message: bytes) -> Any:
    """Give the plain data of ``message``: arrays of numpy as arrays, its scalars as numbers.

    Raises:
        RefusedError: It names anything that is not known to be data, is
            damaged, refers to itself, or is too large.
    """
    if len(message) > MAX_BYTES:
        raise RefusedError(f"{len(message)} bytes; at most {MAX_BYTES} are read")
    reader = _Reader()
    try:
        for opcode, argument, _ in genops(message):
            reader.obey(opcode.name, argument)
        value = reader.stack.pop()
    except RefusedError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise RefusedError(f"damaged: {type(error).__name__}: {error}") from error
    _check_size(value)
    return value


class _Mark:
    """Where the items of a container begin."""


class _Dtype:
    """A numpy dtype being put together."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = str(name)
        self.order: Literal["<", ">", "="] = "="

    def build(self, state: Sequence[Any]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def resolved(self) -> np.dtype[Any]:
        found = np.dtype(self.name)
        if found.kind not in _KINDS or found.names:
            raise RefusedError(f"an array of {self.name!r}; numbers and text are read")
        return found.newbyteorder(self.order)


class _Array:
    """A numpy array being put together; ``value`` is a list until it is."""

    def __init__(self) -> None:
        self.value: Any = None

    def build(self, state: Sequence[Any]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: _Dtype, shape: Sequence[int], order: str) -> Any:
    flat = np.frombuffer(bytes(data), dtype.resolved())
    return flat.reshape(tuple(shape), order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return np.frombuffer(bytes(data), dtype.resolved())[0].item()


def _bytes(text: str, codec: str = "latin1") -> bytes:
    """Bytes as protocol 2 writes them."""
    if codec != "latin1":
        raise RefusedError(f"bytes by way of the codec {codec!r}; expected latin1")
    return str(text).encode(codec)


_KNOWN: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": dict,
    "collections deque": lambda items=(), _=None: list(items),
    "builtins set": lambda items=(): sorted(items, key=repr),
    "builtins frozenset": lambda items=(): sorted(items, key=repr),
    "builtins complex": complex,
    "builtins bytearray": lambda data=b"": bytes(data),
    "_codecs encode": _bytes,
    "numpy dtype": _Dtype,
    "numpy ndarray": _Array,
    **{
        f"{module}.{name}": made
        for module in ("numpy.core", "numpy._core")
        for name, made in {
            "multiarray scalar": _scalar,
            "multiarray _reconstruct": lambda *_: _Array(),
            "numeric _frombuffer": _array,
        }.items()
    },
}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_LITERALS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}) | {
    *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class _Reader:
    """The stack on which data are put together."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def obey(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name not in _IGNORED:
            action = getattr(self, f"_{name.lower()}", None)
            if action is None:
                raise RefusedError(f"opcode {name}: not one of plain data")
            action(argument)

    # containers

    def _append(self, _: Any) -> None:
        item = self._value()
        self.stack[-1].append(item)

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self.stack[-1].extend(items)

    _additems = _appends

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    _frozenset = _list

    def _tuple1(self, _: Any) -> None:
        self._last_as_tuple(1)

    def _tuple2(self, _: Any) -> None:
        self._last_as_tuple(2)

    def _tuple3(self, _: Any) -> None:
        self._last_as_tuple(3)

    def _setitem(self, _: Any) -> None:
        item, key = self._value(), self._value()
        self.stack[-1][key] = item

    def _setitems(self, _: Any) -> None:
        items = self._since_mark()
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    # what was seen before

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _binput(self, number: int) -> None:
        self._memo[number] = self.stack[-1]

    _put = _long_binput = _binput

    def _binget(self, number: int) -> None:
        self.stack.append(self._memo[number])

    _get = _long_binget = _binget

    # the few names that stand for data

    def _global(self, name: str) -> None:
        if name not in _KNOWN:
            raise RefusedError(f"names {name!r}, which is not data")
        self.stack.append(_KNOWN[name])

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(f"{module} {name}")

    def _reduce(self, _: Any) -> None:
        arguments, function = self._value(), self.stack.pop()
        if not any(function is known for known in _KNOWN.values()):
            raise RefusedError("calls what is no known constructor of data")
        self.stack.append(function(*arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state = self._value()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise RefusedError("sets the state of something that is no array")
        self.stack[-1].build(state)

    # the stack

    def _value(self) -> Any:
        return _finished(self.stack.pop())

    def _last_as_tuple(self, count: int) -> None:
        items = tuple(_finished(item) for item in self.stack[-count:])
        if len(items) != count:
            raise IndexError("the stack is empty")
        self.stack[-count:] = [items]

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(_finished(item))
        return items[::-1]


def _finished(item: Any) -> Any:
    return item.value if isinstance(item, _Array) and item.value is not None else item


def _check_size(value: Any) -> None:
    """Refuse what refers to itself, or unfolds into too much; and what is not data at all."""
    nodes, layer = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in layer:
            below.extend(_children(item))
            if nodes + len(below) > MAX_NODES:
                raise RefusedError(f"unfolds into more than {MAX_NODES} values")
        nodes += len(below)
        if not below:
            return
        layer = below
    raise RefusedError(f"is nested more than {MAX_DEPTH} deep, or in itself")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, list | tuple):
        return list(item)
    if item is None or isinstance(item, bool | int | float | complex | str | bytes | np.ndarray):
        return []
    raise RefusedError(f"a {type(item).__name__} on its own is not data")

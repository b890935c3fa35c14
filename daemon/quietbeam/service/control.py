"""The control commands: one small set, offered alike by HTTP, the command line and PVs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from quietbeam.core.errors import QuietbeamError

log = structlog.get_logger()


class ControlError(QuietbeamError):
    """A command that cannot be carried out; nothing was changed."""


class UnknownCommandError(ControlError):
    """There is no such command."""


@dataclass(frozen=True, slots=True)
class Argument:
    """The one argument that a command may take.

    Attributes:
        name: Its key in the JSON body.
        type: ``int`` or ``str``.
        choices: What it may be, or None for anything of the type.
        required: Without it the command is refused.
    """

    name: str
    type: type[int] | type[str]
    choices: tuple[str, ...] | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """What a command is: shown by every way to give it."""

    help: str
    argument: Argument | None = None


COMMANDS: Mapping[str, CommandSpec] = {
    "status": CommandSpec("the full snapshot of the daemon"),
    "ledger": CommandSpec("the account of every frame: by source, stage, output and run"),
    "record_start": CommandSpec("record from now on"),
    "record_stop": CommandSpec("close the recording; data keep flowing"),
    "process_start": CommandSpec("clean the frames that come"),
    "process_stop": CommandSpec("let frames pass without cleaning; raw recording goes on"),
    "train_freeze": CommandSpec("stop learning, keep the model in use"),
    "train_resume": CommandSpec("learn again"),
    "checkpoint": CommandSpec("write the trainer's state to disk now"),
    "rollback": CommandSpec(
        "use an earlier promoted model again (0: the classical denoiser)",
        Argument("version", int),
    ),
    "use": CommandSpec(
        "hold the classical denoiser, or let promoted models run",
        Argument("which", str, ("classical", "live"), required=True),
    ),
    "weights_freeze": CommandSpec("keep the weights in use; models that pass the gate wait"),
    "weights_release": CommandSpec("use the newest model that has passed the gate again"),
    "describe_run": CommandSpec(
        "say what is known of the run: a JSON object, e.g. run_uid, scan_id, sample",
        Argument("metadata", str, required=True),
    ),
    "reset": CommandSpec("forget what was learned and the frames seen"),
    "reload": CommandSpec("validate the configuration file and apply what can be applied live"),
    "annotate": CommandSpec(
        "keep a remark with the recordings", Argument("text", str, required=True)
    ),
    "commands": CommandSpec("every command with the argument it takes"),
}
"""Every command by name."""


class Actions(Protocol):
    """What the daemon can do when told to; each gives what the caller is answered."""

    def status(self) -> Mapping[str, Any]:
        """Give the full snapshot."""
        ...

    def ledger(self) -> Mapping[str, Any]:
        """Give the account of every frame."""
        ...

    def record(self, *, on: bool) -> Mapping[str, Any]:
        """Start or stop recording."""
        ...

    def clean(self, *, on: bool) -> Mapping[str, Any]:
        """Clean frames, or let them pass."""
        ...

    def describe_run(self, metadata: str) -> Mapping[str, Any]:
        """Keep a JSON object with the recordings and in the status."""
        ...

    async def freeze_weights(self, *, on: bool) -> Mapping[str, Any]:
        """Keep the weights in use as they are, or not."""
        ...

    def train(self, *, on: bool) -> Mapping[str, Any]:
        """Let training rest or go on."""
        ...

    def checkpoint(self) -> Mapping[str, Any]:
        """Have the trainer write its state."""
        ...

    def annotate(self, text: str) -> Mapping[str, Any]:
        """Keep a remark with the recordings."""
        ...

    async def rollback(self, version: int | None) -> Mapping[str, Any]:
        """Use an earlier model."""
        ...

    async def use(self, which: str) -> Mapping[str, Any]:
        """Hold the classical denoiser, or not."""
        ...

    async def reset(self) -> Mapping[str, Any]:
        """Forget."""
        ...

    async def reload(self) -> Mapping[str, Any]:
        """Read the configuration again."""
        ...


class Control:
    """Checks a command and has it carried out; every one is logged with who gave it."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    async def run(self, command: str, arguments: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        """Carry out one command.

        Raises:
            UnknownCommandError: There is no such command.
            ControlError: Wrong arguments.
            QuietbeamError: It failed; the message says why.
        """
        spec = COMMANDS.get(command)
        if spec is None:
            raise UnknownCommandError(f"no command {command!r}; known: {', '.join(COMMANDS)}")
        value = checked_argument(command, spec.argument, arguments)
        if command not in {"status", "ledger", "commands"}:
            log.info("control_command", command=command, arguments=dict(arguments), who=who)
        return await self._call(command, value)

    async def _call(self, command: str, value: Any) -> Mapping[str, Any]:
        actions = self._actions
        plain: dict[str, Callable[[], Mapping[str, Any]]] = {
            "status": actions.status,
            "ledger": actions.ledger,
            "record_start": lambda: actions.record(on=True),
            "record_stop": lambda: actions.record(on=False),
            "process_start": lambda: actions.clean(on=True),
            "process_stop": lambda: actions.clean(on=False),
            "describe_run": lambda: actions.describe_run(value),
            "train_freeze": lambda: actions.train(on=False),
            "train_resume": lambda: actions.train(on=True),
            "checkpoint": actions.checkpoint,
            "annotate": lambda: actions.annotate(value),
            "commands": described,
        }
        if command in plain:
            return plain[command]()
        waiting: dict[str, Callable[[], Awaitable[Mapping[str, Any]]]] = {
            "rollback": lambda: actions.rollback(value),
            "use": lambda: actions.use(value),
            "weights_freeze": lambda: actions.freeze_weights(on=True),
            "weights_release": lambda: actions.freeze_weights(on=False),
            "reset": actions.reset,
            "reload": actions.reload,
        }
        return await waiting[command]()


def described() -> Mapping[str, Any]:
    """Describe every command as JSON, for those who offer them."""
    return {"commands": {name: _described(spec) for name, spec in COMMANDS.items()}}


def _described(spec: CommandSpec) -> dict[str, Any]:
    argument = spec.argument
    if argument is None:
        return {"help": spec.help, "argument": None}
    about = {"name": argument.name, "type": argument.type.__name__}
    about |= {"choices": argument.choices, "required": argument.required}
    return {"help": spec.help, "argument": about}


def checked_argument(
    command: str, argument: Argument | None, given: Mapping[str, Any]
) -> int | str | None:
    """Give the value of the command's argument, or None if it may be left out and was.

    Raises:
        ControlError: An unknown key, a missing or a wrong value.
    """
    known = set() if argument is None else {argument.name}
    unknown = sorted(set(given) - known)
    if unknown:
        expected = f"only {argument.name!r}" if argument else "none"
        raise ControlError(f"{command}: unknown argument {unknown[0]!r}; it takes {expected}")
    value = given.get(argument.name) if argument else None
    if argument is None or (value is None and not argument.required):
        return None
    if type(value) is not argument.type:
        raise ControlError(
            f"{command}: {argument.name} = {value!r}: expected {_expected(argument)}"
        )
    if argument.choices is not None and value not in argument.choices:
        raise ControlError(
            f"{command}: {argument.name} = {value!r}: expected {_expected(argument)}"
        )
    return value


def _expected(argument: Argument) -> str:
    if argument.choices is not None:
        return " or ".join(repr(choice) for choice in argument.choices)
    return "a whole number" if argument.type is int else "a text"

"""What the stream is cleaned with: weights and a classical denoiser that the gate has chosen."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from quietbeam.core.errors import EngineError, QuietbeamError
from quietbeam.service.training import Decision, Trainer

log = structlog.get_logger()


class Swappable(Protocol):
    """What a pipeline offers for changing the model."""

    def offer(self, onnx: Path | None, checkpoint: Path, version: int) -> Future[None]:
        """Load weights beside the live ones and use them from the next frame on."""
        ...

    def demote(self) -> None:
        """Go back to the classical denoiser."""
        ...

    @property
    def fallback(self) -> str:
        """Name of the classical denoiser in use."""
        ...

    def use_fallback(self, name: str) -> Future[None]:
        """Change the classical denoiser from the next frame on."""
        ...


@dataclass(frozen=True, slots=True)
class Promotion:
    """A model that has passed the gate."""

    version: int
    checkpoint: Path
    sha256: str
    denoiser: str
    reason: str
    unix_time_s: float


SWAP_RESULTS = ("promoted", "demoted", "rolled_back", "refused", "held", "fallback")
_ACTIONS = ("promote", "reject", "demote", "fallback")


class LiveModel:
    """Which weights the stream uses; only ones that passed the gate ever are.

    Args:
        pipeline: Where weights are changed.
        trainer: Told of every change; None without training.
        note: Keeps a decision with the recordings.
    """

    def __init__(
        self,
        pipeline: Swappable,
        trainer: Trainer | None,
        note: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.version = 0
        self.since_s = time.time()
        self.held = False
        """The operator holds the classical denoiser: promotions wait."""
        self.frozen = False
        """The operator keeps the weights in use: promotions wait, a demotion does not."""
        self.promotions: list[Promotion] = []
        self.decisions: deque[dict[str, Any]] = deque(maxlen=50)
        self.actions: Counter[str] = Counter(dict.fromkeys(_ACTIONS, 0))
        self.swaps: Counter[str] = Counter(dict.fromkeys(SWAP_RESULTS, 0))
        self._pipeline, self._trainer, self._note = pipeline, trainer, note
        self._one_at_a_time = asyncio.Lock()
        self._refusal: str | None = None  # why the last decision was not carried out
        self._configured_fallback = pipeline.fallback

    async def decided(self, decision: Decision) -> None:
        """Act on one decision of the gate and keep it with the recording."""
        action = str(decision["action"])
        self.actions[action] += 1
        # None: it is being carried out; weights are loaded, probed and warmed for seconds.
        entry = {"unix_time_s": time.time(), **decision, "applied": None}
        self.decisions.append(entry)
        log.info("gate_decision", **decision)
        async with self._one_at_a_time:
            self._refusal = None
            if action == "promote":
                entry["applied"] = await self._promote(_promotion(decision))
            elif action == "demote":
                # The better one first: a warm one takes over directly from the network.
                await self._use_fallback(str(decision.get("classical") or self.fallback))
                self._go_classical("demoted")
                entry["applied"] = True
            elif action == "fallback":
                entry["applied"] = await self._use_fallback(str(decision["denoiser"]))
            else:
                entry["applied"] = False
            entry["refused"] = self._refusal
        self._note(
            {"gate_decision": entry, "live_version": self.version, "fallback": self.fallback}
        )

    @property
    def fallback(self) -> str:
        """Name of the classical denoiser that runs where no network does."""
        return self._pipeline.fallback

    async def rollback(self, version: int | None) -> int:
        """Use an earlier promotion again (None: the one before; 0: the classical one).

        Raises:
            QuietbeamError: There is no such promotion, or its weights are gone.
        """
        async with self._one_at_a_time:
            target = self._earlier() if version is None else version
            if target == 0:
                self._go_classical("rolled_back")
                return 0
            promotion = next((p for p in self.promotions if p.version == target), None)
            if promotion is None:
                known = ", ".join(str(p.version) for p in self.promotions) or "none"
                raise QuietbeamError(f"no promoted model {target}; known: 0 (classical), {known}")
            self.held = False
            if not await self._use(promotion, "rolled_back"):
                raise QuietbeamError(f"model {target} could not be used again; see the log")
            return self.version

    async def use(self, which: str) -> int:
        """Hold the classical denoiser, or go back to the newest promoted model."""
        async with self._one_at_a_time:
            self.held = which == "classical"
            if self.held:
                self._go_classical("held")
            elif self.promotions and self.promotions[-1].version != self.version:
                await self._use(self.promotions[-1], "promoted")
            return self.version

    async def freeze(self, *, on: bool) -> int:
        """Keep the weights in use, or go on to the newest promoted model."""
        async with self._one_at_a_time:
            self.frozen = on
            newest = self.promotions[-1] if self.promotions else None
            if not on and not self.held and newest and newest.version != self.version:
                await self._use(newest, "promoted")
            return self.version

    async def reset(self) -> None:
        """Forget every model and choice; the configured fallback runs until one is proven."""
        async with self._one_at_a_time:
            self.promotions.clear()
            self._go_classical("rolled_back")
            await self._use_fallback(self._configured_fallback)

    def account(self) -> dict[str, Any]:
        """Describe the models for the status page."""
        return {
            "version": self.version,
            "age_s": round(time.time() - self.since_s, 3),
            "held": self.held,
            "frozen": self.frozen,
            "fallback": self.fallback,
            "promotions": [asdict(promotion) for promotion in self.promotions],
            "actions": dict(self.actions),
            "swaps": dict(self.swaps),
        }

    async def _promote(self, promotion: Promotion) -> bool:
        if self.held or self.frozen:
            self.promotions.append(promotion)
            self.swaps["held"] += 1
            self._refusal = "the operator holds what runs"
            self._tell()
            return False
        used = await self._use(promotion, "promoted")
        if used:
            self.promotions.append(promotion)
        return used

    async def _use(self, promotion: Promotion, result: str) -> bool:
        try:
            await asyncio.to_thread(_verify, promotion)
            onnx = None if self._trainer is None else self._trainer.onnx
            offered = self._pipeline.offer(onnx, promotion.checkpoint, promotion.version)
            await asyncio.wrap_future(offered)
        except (QuietbeamError, OSError, ValueError) as error:
            self.swaps["refused"] += 1
            self._refusal = str(error)
            log.error("model_refused", version=promotion.version, error=str(error))  # noqa: TRY400
            self._tell()
            return False
        self.swaps[result] += 1
        self._set(promotion.version)
        log.info("model_live", version=promotion.version, sha256=promotion.sha256[:12])
        return True

    async def _use_fallback(self, name: str) -> bool:
        """Change the classical denoiser; False where it is in use already or cannot be."""
        if name == self.fallback:
            return False
        try:
            await asyncio.wrap_future(self._pipeline.use_fallback(name))
        except (QuietbeamError, OSError, ValueError) as error:
            self.swaps["refused"] += 1
            self._refusal = str(error)
            log.error("fallback_refused", denoiser=name, error=str(error))  # noqa: TRY400
            self._tell()
            return False
        self.swaps["fallback"] += 1
        log.info("fallback_changed", denoiser=name)
        self._tell()
        return True

    def _go_classical(self, result: str) -> None:
        self._pipeline.demote()
        self.swaps[result] += 1
        self._set(0)
        log.info("model_live", version=0, why=result)

    def _set(self, version: int) -> None:
        self.version, self.since_s = version, time.time()
        self._tell()

    def _tell(self) -> None:
        if self._trainer is not None:
            self._trainer.live(self.version, self.fallback)

    def _earlier(self) -> int:
        versions = [p.version for p in self.promotions]
        if self.version not in versions:
            return versions[-1] if versions else 0
        place = versions.index(self.version)
        return versions[place - 1] if place > 0 else 0


def _promotion(decision: Decision) -> Promotion:
    return Promotion(
        version=int(decision["version"]),
        checkpoint=Path(decision["checkpoint"]),
        sha256=str(decision.get("sha256") or ""),
        denoiser=str(decision.get("denoiser") or ""),
        reason=str(decision.get("reason") or ""),
        unix_time_s=time.time(),
    )


def _verify(promotion: Promotion) -> None:
    """Refuse a checkpoint that is not the file the gate judged."""
    found = hashlib.sha256(promotion.checkpoint.read_bytes()).hexdigest()
    if promotion.sha256 and found != promotion.sha256:
        raise EngineError(
            f"{promotion.checkpoint} has sha256 {found[:12]}..., the gate judged "
            f"{promotion.sha256[:12]}...; it is not used"
        )

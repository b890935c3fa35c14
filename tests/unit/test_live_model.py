"""Which weights are in use: promotion, demotion, roll-back, refusal."""

import asyncio
import hashlib
from concurrent.futures import Future

import pytest

from quietbeam.core.errors import EngineError, QuietbeamError
from quietbeam.service.live_model import LiveModel
from quietbeam.service.training import Trainer


class FakePipeline:
    """Does as it is told; refuses the versions in ``refused``."""

    def __init__(self):
        self.live, self.offers, self.refused = 0, [], set()
        self.slow = None
        self.fallback = "kalman"

    def offer(self, onnx, checkpoint, version):
        self.offers.append((onnx, checkpoint, version))
        if self.slow is not None:
            return self.slow
        done = Future()
        if version in self.refused:
            done.set_exception(EngineError("weights do not fit"))
        else:
            self.live = version
            done.set_result(None)
        return done

    def demote(self):
        self.live = 0

    def use_fallback(self, name):
        done = Future()
        if name in self.refused:
            done.set_exception(EngineError("too slow for the frame rate"))
        else:
            self.fallback = name
            done.set_result(None)
        return done


class World:
    def __init__(self, directory):
        self.directory = directory
        self.pipeline, self.notes = FakePipeline(), []
        self.trainer = Trainer({"type": "init"}, 1, lambda decision: None)
        self.model = LiveModel(self.pipeline, self.trainer, self.notes.append)

    def promote(self, version, **changes):
        path = self.directory / f"{version}.safetensors"
        path.write_bytes(b"weights %d" % version)
        decision = {
            "action": "promote",
            "version": version,
            "checkpoint": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "reason": "better",
            "denoiser": "quiet",
        }
        return self.model.decided(decision | changes)


def play(tmp_path, scenario):
    asyncio.run(scenario(World(tmp_path)))


def told(trainer, what="version"):
    return next(command[what] for command in trainer._greet() if command["type"] == "live")


def better(name):
    return {"action": "fallback", "denoiser": name, "classical": name, "checkpoint": None}


def test_a_promotion_goes_live_and_everyone_is_told(tmp_path):
    async def scenario(world):
        await world.promote(1)
        assert (world.pipeline.live, world.model.version, told(world.trainer)) == (1, 1, 1)
        assert world.notes[-1]["gate_decision"]["applied"]
        assert world.notes[-1]["live_version"] == 1
        assert world.model.swaps["promoted"] == 1

    play(tmp_path, scenario)


def test_a_promotion_that_is_being_loaded_is_not_yet_called_one_that_was_not_applied(tmp_path):
    async def scenario(world):
        world.pipeline.slow = Future()
        promoting = asyncio.create_task(world.promote(1))
        while not world.pipeline.offers:
            await asyncio.sleep(0.005)
        assert world.model.decisions[-1]["applied"] is None
        world.pipeline.slow.set_result(None)
        await promoting
        assert world.model.decisions[-1]["applied"] is True

    play(tmp_path, scenario)


def test_a_rejection_changes_nothing_and_is_kept(tmp_path):
    async def scenario(world):
        await world.promote(1)
        await world.model.decided({"action": "reject", "version": 2, "checkpoint": None})
        assert world.pipeline.live == 1
        assert world.model.actions["reject"] == 1
        assert len(world.model.decisions) == len(world.notes) == 2

    play(tmp_path, scenario)


def test_weights_the_engine_refuses_leave_the_old_ones_in_use(tmp_path):
    async def scenario(world):
        await world.promote(1)
        world.pipeline.refused.add(2)
        await world.promote(2)
        assert (world.pipeline.live, world.model.version, told(world.trainer)) == (1, 1, 1)
        assert world.model.swaps["refused"] == 1
        decision = world.notes[-1]["gate_decision"]
        assert (decision["applied"], decision["refused"]) == (False, "weights do not fit")
        assert [p.version for p in world.model.promotions] == [1]

    play(tmp_path, scenario)


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"checkpoint": "/nowhere/at/all"}])
def test_a_file_the_gate_did_not_judge_is_never_offered(tmp_path, changes):
    async def scenario(world):
        await world.promote(1, **changes)
        assert world.pipeline.offers == []
        assert world.model.version == 0
        assert world.model.swaps["refused"] == 1

    play(tmp_path, scenario)


def test_a_demotion_goes_back_to_the_classical_denoiser(tmp_path):
    async def scenario(world):
        await world.promote(1)
        await world.model.decided({"action": "demote", "version": 1, "checkpoint": None})
        assert (world.pipeline.live, world.model.version, told(world.trainer)) == (0, 0, 0)

    play(tmp_path, scenario)


def test_a_better_classical_denoiser_takes_over_and_everyone_is_told(tmp_path):
    async def scenario(world):
        await world.promote(1)
        await world.model.decided(better("svd"))
        assert (world.pipeline.fallback, world.pipeline.live) == ("svd", 1)
        assert (told(world.trainer), told(world.trainer, "fallback")) == (1, "svd")
        assert world.notes[-1]["gate_decision"]["applied"]
        assert world.notes[-1]["fallback"] == world.model.account()["fallback"] == "svd"
        assert (world.model.swaps["fallback"], world.model.actions["fallback"]) == (1, 1)
        await world.model.decided(better("svd"))
        assert not world.notes[-1]["gate_decision"]["applied"]
        assert world.model.swaps["fallback"] == 1

    play(tmp_path, scenario)


def test_a_classical_denoiser_that_is_too_slow_leaves_the_one_in_use(tmp_path):
    async def scenario(world):
        world.pipeline.refused.add("svd")
        await world.model.decided(better("svd"))
        assert world.pipeline.fallback == "kalman"
        assert world.model.swaps["refused"] == 1
        assert not world.notes[-1]["gate_decision"]["applied"]

    play(tmp_path, scenario)


@pytest.mark.parametrize("refused", [False, True])
def test_a_demotion_goes_to_the_best_classical_denoiser_or_at_least_to_one(tmp_path, refused):
    async def scenario(world):
        await world.promote(1)
        world.pipeline.refused |= {"median"} if refused else set()
        await world.model.decided({"action": "demote", "version": 0, "classical": "median"})
        assert (world.pipeline.live, world.model.version) == (0, 0)
        assert world.pipeline.fallback == ("kalman" if refused else "median")
        assert told(world.trainer, "fallback") == world.pipeline.fallback

    play(tmp_path, scenario)


def test_the_chosen_fallback_outlives_roll_backs_and_holds_but_not_a_reset(tmp_path):
    async def scenario(world):
        await world.model.decided(better("svd"))
        await world.promote(1)
        await world.model.rollback(0)
        await world.model.use("classical")
        await world.model.use("live")
        assert (world.pipeline.live, world.pipeline.fallback) == (1, "svd")
        await world.model.reset()
        assert (world.pipeline.live, world.pipeline.fallback) == (0, "kalman")
        assert told(world.trainer, "fallback") == "kalman"

    play(tmp_path, scenario)


def test_rolling_back_goes_one_promotion_back_each_time(tmp_path):
    async def scenario(world):
        for version in (1, 2, 3):
            await world.promote(version)
        assert await world.model.rollback(None) == 2
        assert await world.model.rollback(None) == 1
        assert await world.model.rollback(None) == 0
        assert world.pipeline.live == 0
        assert await world.model.rollback(3) == 3
        assert told(world.trainer) == 3
        with pytest.raises(QuietbeamError, match=r"no promoted model 9; known: 0 \(classical\), 1"):
            await world.model.rollback(9)

    play(tmp_path, scenario)


def test_weights_that_are_gone_cannot_be_rolled_back_to(tmp_path):
    async def scenario(world):
        await world.promote(1)
        await world.promote(2)
        (tmp_path / "1.safetensors").unlink()
        with pytest.raises(QuietbeamError, match="could not be used"):
            await world.model.rollback(1)
        assert world.pipeline.live == 2

    play(tmp_path, scenario)


def test_while_the_classical_denoiser_is_held_promotions_wait(tmp_path):
    async def scenario(world):
        await world.promote(1)
        assert await world.model.use("classical") == 0
        await world.promote(2)
        assert (world.pipeline.live, world.model.version) == (0, 0)
        assert await world.model.use("live") == 2
        assert world.pipeline.live == 2

    play(tmp_path, scenario)


def test_a_reset_forgets_every_promotion(tmp_path):
    async def scenario(world):
        await world.promote(1)
        await world.model.reset()
        assert world.pipeline.live == 0
        with pytest.raises(QuietbeamError, match="no promoted model 1"):
            await world.model.rollback(1)

    play(tmp_path, scenario)


def test_a_new_trainer_is_told_what_the_last_one_knew():
    trainer = Trainer({"type": "init", "raw_ring": "r"}, 1, lambda decision: None)
    noise = {"run": "a", "gain": 2.0, "offset_variance": 1.0, "impulsive": False}
    trainer.calibrated(noise)
    trainer.live(4, "svd")
    trainer.freeze("operator")
    trainer.freeze("overload")
    trainer.resume("operator")
    assert list(trainer._greet()) == [
        {"type": "init", "raw_ring": "r"},
        {
            "type": "calibration",
            "run": "a",
            "gain": 2.0,
            "offset_variance": 1.0,
            "impulsive": False,
        },
        {"type": "live", "version": 4, "fallback": "svd"},
        {"type": "freeze"},
    ]
    trainer.resume("overload")
    assert {"type": "freeze"} not in list(trainer._greet())

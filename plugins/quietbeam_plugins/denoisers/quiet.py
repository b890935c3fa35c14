"""``quiet``: our own streaming network, and the default.

The features of a frame are computed once, when it comes, and kept in the
state.  The estimate of frame i is made ``lag`` frames later from its
``2 * lag`` neighbours and from two memories of all that is older, never from
the frame itself: it is *blind*, so its error can be measured against the
frame, and the frame can be fused with it afterwards.

What the network puts out is mostly a choice: pixel by pixel, how to weigh four
means in time (nearest pair, window, fast and slow memory) and then four blurs
in space, plus a correction.  Because the filter is known, so is the variance
of the noise that passes it; the network only learns what the scene adds.
Before any training all weigh the same: a fair filter, not noise.  The answer
is one term of a linear filter, the same everywhere, that is fitted to the
stream in closed form (``_bank``): what is slow and regular needs no training.

Shapes: n streams, h height, w width, t frames of a clip; h2, w2 half of h, w
(up to a multiple of eight).  Units are stabilised: noise of unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from quietbeam import DenoiserPlugin, EngineError
from quietbeam_plugins.denoisers._bank import FilterBank, Moments
from quietbeam_plugins.denoisers._filters import Blurs, fold, median_3x3, unfold

if TYPE_CHECKING:
    from pathlib import Path

    from quietbeam.core.denoiser import State

HISTORY = 32
"""Frames older than the window that a training clip brings along to fill the memories."""

FAST, SLOW = 0.2, 0.05
"""Rates of the two memories."""

MEANS = 4
SPIKE = 6.0
"""A pixel so many noise s.d. off its surroundings and its past is a spike."""

_RAW = 3  # frames a pixel is compared with
_RARE = 0.002  # share of suddenly changed pixels below which training looks for no spikes
_CHANGE = 5.0  # standard errors by which the memories must differ to be a change
_TRUST = 0.5  # how far the logarithm of a variance may be off before anything is measured
_CUTS = torch.linspace(0, 1, 17)[1:-1]  # quantiles of brightness between which noise is measured
_NOTHING = 1e4  # times the variance: what is said of a frame before which none was seen
_OTHER = 4  # of so many batches one also fits the filters for the other use of the same weights
_PREVIEWS = 0.25  # share of training steps that learn to do without later frames

_SIZES = {"S": (4, (16, 24, 32)), "L": (16, (32, 48, 64))}  # features, channels of three scales


class Quiet(DenoiserPlugin):
    """Settings of the network."""

    size: Literal["S", "L"] = "S"
    """S for a processor (46,342 weights), L for a GPU (182,542)."""
    lag: PositiveInt = 3
    """Frames before and after the one estimated that are looked at one by one."""
    blind_frames: NonNegativeInt = 0
    """Neighbours on both sides that are left out too, because they share its noise."""
    preview: bool = False
    """Estimate each frame at once, from earlier ones only: lag 0, the same weights."""
    prior: bool = True
    """Start from weights trained on simulations, where there are any for this size and lag."""
    two_way: bool = True
    """Offline: estimate with time running backwards too, and put both together."""

    def build(self) -> QuietNet:
        """Give the network, with prior weights or fresh ones."""
        net = QuietNet(
            self.lag, *_SIZES[self.size], blind_frames=self.blind_frames, preview=self.preview
        )
        path = self.prior_path()
        if self.prior and path is not None:
            net.load_prior(path)
        net.two_way = self.two_way and not self.preview
        return net

    def prior_path(self) -> Path | None:
        """Where the prior weights for these settings are; None if there are none."""
        name = f"quiet-{self.size.lower()}{self.lag}.safetensors"
        path = resources.files(__package__ or "") / "priors" / name
        return path if path.is_file() else None  # pyright: ignore[reportReturnType]


class Memory(NamedTuple):
    """What is kept of the frames older than the window, folded.

    Attributes:
        fast: (n, 4, h2, w2) exponential mean of rate ``FAST``.
        slow: (n, 4, h2, w2) of rate ``SLOW``; begins anew where the scene changes.
        age: (n, 1, 1, 1) frames in ``fast``.
        since: (n, 1, h2, w2) frames in ``slow``: since the scene changed there.
    """

    fast: Tensor
    slow: Tensor
    age: Tensor
    since: Tensor

    @staticmethod
    def empty(n: int, h2: int, w2: int) -> Memory:
        """Nothing seen yet."""
        image = torch.zeros(n, 4, h2, w2)
        return Memory(image, image.clone(), torch.zeros(n, 1, 1, 1), torch.zeros(n, 1, h2, w2))

    def absorb(self, frame: Tensor, use: Tensor) -> Memory:
        """Take in a frame that has left the window, where ``use`` is 1 (0: nothing happens)."""
        fast = self.fast + use * (1 / (self.age + 1)).clamp(min=FAST) * (frame - self.fast)
        slow = self.slow + use * (1 / (self.since + 1)).clamp(min=SLOW) * (frame - self.slow)
        age, since = self.age + use, self.since + use
        # Where the memories disagree by more than their noise, the scene has changed.
        apart = (fast - slow).mean(1, keepdim=True)
        apart = F.avg_pool2d(apart, 3, 1, 1, count_include_pad=False)  # mean of 36 pixels
        frames = age.clamp(max=(2 - FAST) / FAST)
        limit = _CHANGE**2 / 36 / frames.clamp(min=1.0)
        changed = ((apart**2 > limit) & (since > frames)).to(frame.dtype)
        slow = slow + changed * (fast - slow)
        return Memory(fast, slow, age, since + changed * (frames - since))

    def variances(self) -> tuple[Tensor, Tensor]:
        """Noise variance left in ``fast`` and in ``slow``."""
        fast = 1 / self.age.clamp(min=1.0, max=(2 - FAST) / FAST)
        return fast, 1 / self.since.clamp(min=1.0, max=(2 - SLOW) / SLOW)


class Seen(NamedTuple):
    """What an estimate is made from; neighbours in order of time, or the nearest in the middle.

    Attributes:
        maps: 2 * reach features (n, features, h2, w2) of the neighbours.
        frames: The neighbours themselves, folded, (n, 4, h2, w2) each.
        memory: Of all that is older.
        levels: (n, 2, 1, 1) level and scale of the run.
    """

    maps: list[Tensor]
    frames: list[Tensor]
    memory: Memory
    levels: Tensor


class QuietNet(nn.Module):
    """A ``StreamingDenoiser``; see the module."""

    blind = True
    trainable = True
    two_way = True

    def __init__(
        self,
        reach: int,
        features: int,
        widths: tuple[int, int, int],
        *,
        blind_frames: int = 0,
        preview: bool = False,
    ) -> None:
        super().__init__()
        self.reach, self.gap, self.preview = reach, blind_frames, preview
        self.kept = 2 * (reach + blind_frames)
        self.lag = 0 if preview else reach + blind_frames
        self.window = self.kept + 1 + HISTORY
        self.features = features
        self.pretrained = False
        width = widths[0]
        self.encode1, self.encode2 = conv(4, features), conv(features, features)
        self.context = conv(4 * MEANS + 2, width)
        self.gather = nn.Conv2d(2 * reach * features, width, 1)
        self.unet = UNet(widths)
        self.blurs = Blurs()
        self.correction, self.doubt = silent(width, 4), silent(width, 1)
        self.when, self.where = silent(width, MEANS), silent(width, Blurs.count)
        self.scale = nn.Parameter(torch.zeros(1, 1, 1, 1))
        self.bank = FilterBank(1 + 2 * reach + 2)

    def load_prior(self, path: Path) -> None:
        """Start from the weights in a safetensors file.

        Raises:
            EngineError: They are not of this network.
        """
        try:
            self.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise EngineError(f"{path}: not the prior weights of this network: {error}") from error
        self.pretrained = True

    def initial_state(self, n: int, h: int, w: int) -> State:
        """Give level and scale, features, folded frames, newest raw frames, memory, frames seen."""
        h2, w2 = -(-h // 8) * 4, -(-w // 8) * 4
        maps = [torch.zeros(n, self.features, h2, w2) for _ in range(self.kept)]
        frames = [torch.zeros(n, 4, h2, w2) for _ in range(self.kept)]
        raw = [torch.zeros(n, 1, h, w) for _ in range(_RAW)]
        seen = torch.zeros(n, 1, 1, 1)
        return (torch.zeros(n, 2, 1, 1), *maps, *frames, *raw, *Memory.empty(n, h2, w2), seen)

    def forward(self, frame: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Take frame i, give mean and variance of frame i - lag; see ``StreamingDenoiser``."""
        k = self.kept
        levels, maps, frames = state[0], list(state[1 : 1 + k]), list(state[1 + k : 1 + 2 * k])
        raw, memory, seen = state[1 + 2 * k : -5], Memory(*state[-5:-1]), state[-1]
        levels = torch.where(levels[:, 1:] > 0, levels, level_and_scale(frame))
        folded = fold(without_spikes(frame, raw))
        new_maps, new_frames = [*maps, self.encode(folded, levels)], [*frames, folded]
        order = self.order(preview=self.preview)
        shown_maps = pick(self.filled(new_maps, seen), order)
        shown_frames = pick(self.filled(new_frames, seen), order)
        seen_now = Seen(shown_maps, shown_frames, memory, levels)
        answer = self.estimate(seen_now, preview=self.preview)
        memory = memory.absorb(frames[0], (seen >= k).to(frame.dtype))
        mean, variance = at_full_resolution(*answer, frame.shape)
        if self.preview:
            variance = variance * self.shortage(seen)
        kept = (levels, *new_maps[1:], *new_frames[1:], *raw[1:], frame, *memory, seen + 1)
        return mean, variance, kept

    def order(self, *, preview: bool) -> list[int]:
        """Which of ``kept + 1`` frames to show, the nearest to the one estimated in the middle.

        The one estimated is in the middle of them, or for a preview the last.
        """
        if preview:
            newest = self.kept - self.gap
            shown = range(newest - 2 * self.reach, newest)
            return [*shown[::2], *shown[::-2]]
        return [*range(self.reach), *range(self.kept + 1 - self.reach, self.kept + 1)]

    def filled(self, images: list[Tensor], seen: Tensor) -> list[Tensor]:
        """At the start of a run a preview has too few frames: the oldest is shown again.

        Without a preview, whoever streams shows mirrored frames before the first.
        """
        if not self.preview:
            return images
        filled = list(images)
        newest = self.kept - self.gap - 1
        for i in range(newest - 1, newest - 2 * self.reach, -1):
            filled[i] = torch.where(seen >= self.kept - i, images[i], filled[i + 1])
        return filled

    def shortage(self, seen: Tensor) -> Tensor:
        """Factor on a preview's variance while it has seen too few frames, or none."""
        whole, own = 2.0 * self.reach, seen - self.gap
        return torch.where(own > 0, whole / own.clamp(1.0, whole), torch.full_like(seen, _NOTHING))

    def encode(self, folded: Tensor, levels: Tensor) -> Tensor:
        """Give the features of a folded frame: (n, 4, h2, w2) -> (n, features, h2, w2)."""
        x = (folded - levels[:, :1]) / levels[:, 1:]
        return F.relu(self.encode2(F.relu(self.encode1(x))))

    def estimate(self, seen: Seen, *, preview: bool) -> tuple[Tensor, Tensor]:
        """Estimate a frame from its neighbours and from older memory.

        Returns:
            Mean (n, 4, h2, w2) and variance (n, 1, h2, w2), folded.
        """
        images, variance = self.choose(seen, preview=preview)
        return self.bank(self.blurs, images, preview=preview), variance

    def choose(self, seen: Seen, *, preview: bool) -> tuple[list[Tensor], Tensor]:
        """Let the network weigh filters pixel by pixel.

        Returns:
            What the filter bank puts together, its mean first, and its variance.
        """
        frames, memory, levels = seen.frames, seen.memory, seen.levels
        near = (frames[self.reach - 1] + frames[self.reach]) / 2
        base = sum(frames[1:], frames[0]) / len(frames)
        fast = torch.where(memory.age > 0, memory.fast, base)
        slow = torch.where(memory.since > 0, memory.slow, base)
        contrasts = torch.cat([base - levels[:, :1], near - base, fast - base, slow - base], 1)
        few = torch.rsqrt(memory.since + 1)
        mode = torch.full_like(few, float(preview))
        context = self.context(torch.cat([contrasts / levels[:, 1:], few, mode], 1))
        x = self.unet(F.relu(self.gather(torch.cat(seen.maps, 1)) + context))
        when, where = torch.softmax(self.when(x), 1), torch.softmax(self.where(x), 1)
        mean = weighted([near, base, fast, slow], when)
        mean = weighted(self.blurs(mean), where) + self.correction(x)
        # A tenth: one pixel tells next to nothing of a variance, so this is learned slowly.
        scene = (0.1 * self.doubt(x) + self.scale).clamp(-6.0, 6.0)
        variance = self._passed_noise(when, where, memory) * torch.exp(scene)
        return [mean, *frames, fast, slow], variance

    def _passed_noise(self, when: Tensor, where: Tensor, memory: Memory) -> Tensor:
        """Variance of unit white noise after the chosen filters: (n, 1, h2, w2)."""
        near, base, fast, slow = (when[:, i : i + 1] for i in range(MEANS))
        k = 2 * self.reach
        known = (memory.age > 0).to(when.dtype)  # before that the window stands in for memories
        base = base + (1 - known) * (fast + slow)
        fast, slow = known * fast, known * slow
        time = 2 * (near / 2 + base / k) ** 2 + (k - 2) * (base / k) ** 2
        of_fast, of_slow = memory.variances()
        time = time + fast**2 * of_fast + (slow**2 + 2 * fast * slow) * of_slow
        space = (where * F.conv2d(where, self.blurs.get_buffer("energies"))).sum(1, keepdim=True)
        return time * space

    def training_loss(self, clip: Tensor, valid: Tensor, generator: Generator) -> Tensor:
        """Squared error of the blind mean, and likelihood of its variance; robust if need be.

        The variance is fitted to the residual of a *detached* mean: fitting
        both jointly by likelihood trains badly.  Spikes are no target.
        """
        mean, variance = self._estimate_somehow(clip, generator)
        at = clip.shape[1] - 1 - self.kept // 2
        target, use = clip[:, at, None], valid[:, at, None].to(clip.dtype)
        before = [clip[:, at - j, None] for j in range(1, _RAW + 1)]
        use = use * (oddness(target, before, median_3x3(target)) <= SPIKE)
        error = target - mean
        squared = error.detach() ** 2
        if has_outliers(clip, valid):
            fit = torch.sqrt(error**2 + 0.01)
            squared = squared.clamp(max=9.0)
        else:
            fit = error**2
        total = noise_power(clip, valid) + variance
        loss = fit + 0.5 * (torch.log(total) + squared / total)
        return (loss * use).sum() / use.sum().clamp(min=1.0)

    def supervised_loss(self, clip: Tensor, truth: Tensor, generator: Generator) -> Tensor:
        """Loss against the truth (n, h, w) of frame -1 - lag, which only simulations know."""
        mean, variance = self._estimate_somehow(clip, generator)
        squared = (truth[:, None] - mean) ** 2
        known = squared.detach().clamp(min=1e-5)
        # each clip counts alike, whether it is hard or easy
        fit = squared.mean((1, 2, 3)) / (known.mean((1, 2, 3)) + 0.01)
        doubt = 0.5 * (torch.log(variance) + known / variance)
        return fit.mean() + 0.1 * doubt.mean()

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit the filter bank, then scale the variances to what the residual says on the whole.

        Training sees weights that still move; the mean of them, which is used,
        errs less.  The residual is that error and a noise a hundred times
        larger: what few pixels say is believed in part only.

        Args:
            batches: Clips and valid pixels, as for ``training_loss``.
        """
        batches = list(batches)
        self._fit_bank(batches[::_OTHER], preview=not self.preview)
        moments, told, noise = self._fit_bank(batches, preview=self.preview)
        if told <= 0 or not noise > 0:
            return
        excess = moments.left(self.bank.weights(preview=self.preview)) - noise * moments.pixels
        ratio = min(max(excess / told, 0.1), 10.0)
        # s.e. of its logarithm; neighbours overlap
        doubt = math.sqrt(4 * moments.pixels) / told / ratio
        believed = _TRUST**2 / (_TRUST**2 + doubt**2)
        self.scale += believed * math.log(ratio)

    def _fit_bank(
        self, batches: list[tuple[Tensor, Tensor]], *, preview: bool
    ) -> tuple[Moments, float, float]:
        """Fit the filter bank; give the moments, the sum of told variance, and the noise power.

        The noise is that of the very frames estimated, from second differences about them
        (variance 6): most of what it is off by chance is then in the residual as well.
        """
        moments, told, squares, triples = self.bank.moments(), 0.0, 0.0, 0
        for clip, valid in batches:
            at = clip.shape[1] - 1 - self.kept // 2
            target = clip[:, at]
            images, variance = self.choose(self._seen(clip, preview=preview), preview=preview)
            h, w = target.shape[1:]
            terms = self.bank.terms(self.blurs, images)
            terms = unfold(terms.flatten(0, 1), h, w).reshape(len(terms), *target.shape)
            use = valid[:, at] & ((target - terms[0]).abs() < SPIKE)
            moments.add(terms[:, use], target[use])
            told += float(up(variance)[:, 0, :h, :w][use].sum())
            known = use & valid[:, at - 1] & valid[:, at + 1]
            second = (clip[:, at - 1] - 2 * target + clip[:, at + 1])[known]
            squares += float((second.clamp(-6 * SPIKE, 6 * SPIKE) ** 2).sum()) / 6
            triples += int(known.sum())
        if moments.pixels:
            self.bank.take(moments.solve(), preview=preview)
        return moments, told, squares / max(triples, 1)

    def _estimate_somehow(self, clip: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Estimate with a history of random length, sometimes without later frames.

        So the same weights learn the start of a run, and the preview.
        """
        preview = self.preview or float(torch.rand(1, generator=generator)) < _PREVIEWS
        first = int(torch.randint(0, HISTORY + 1 - self.kept // 2, (1,), generator=generator))
        return self._estimate_clip(clip[:, first:], preview=preview)

    def _estimate_clip(self, clip: Tensor, *, preview: bool) -> tuple[Tensor, Tensor]:
        """Estimate frame -1 - kept / 2 of (n, t, h, w); what is older than the window is memory."""
        answer = self.estimate(self._seen(clip, preview=preview), preview=preview)
        return at_full_resolution(*answer, clip.shape)

    def _seen(self, clip: Tensor, *, preview: bool) -> Seen:
        """What a stream of these frames (n, t, h, w) would have kept for that frame."""
        clip = clip[:, : clip.shape[1] - self.kept // 2 if preview else None]
        n, t, h, w = clip.shape
        levels = level_and_scale(clip[:, :1])
        folded = fold(calm(clip).reshape(n * t, 1, h, w))
        folded = folded.reshape(n, t, *folded.shape[1:])
        memory = Memory.empty(n, *folded.shape[-2:])
        oldest = t - self.kept - 1
        for frame in folded[:, :oldest].unbind(1):
            memory = memory.absorb(frame, torch.ones_like(memory.age))
        frames = pick(list(folded[:, oldest:].unbind(1)), self.order(preview=preview))
        encoded = self.encode(torch.cat(frames), levels.repeat(len(frames), 1, 1, 1))
        return Seen(list(encoded.split(n)), frames, memory, levels)

    @torch.no_grad()
    def blind_estimate(self, frames: Tensor) -> Tensor:
        """Estimate each frame of (t, h, w) by streaming; the ends are mirrored."""
        t, lag = len(frames), self.lag
        places = range(-lag, t + lag)
        estimates = self._streamed(frames, [mirror(j, t) for j in places])[2 * lag :]
        for i in range(t):
            # Near an end a frame meets its own mirror image: it gets a stream without that.
            places = range(max(-lag, i - 4 * lag), i + lag + 1)
            seen = [mirror(j, t) for j in places]
            if seen.count(i) > 1:
                other = i + 1 if i + 1 < t else i - 1
                shown = [other if k == i != j else k for j, k in zip(places, seen, strict=True)]
                estimates[i] = self._streamed(frames, shown)[-1]
        return estimates

    def _streamed(self, frames: Tensor, indices: list[int]) -> Tensor:
        """Means that all calls give when the frames of these indices come one after the other."""
        state = self.initial_state(1, *frames.shape[1:])
        means = []
        for i in indices:
            mean, _, state = self(frames[None, None, i], state)
            means.append(mean[0, 0])
        return torch.stack(means)


class UNet(nn.Module):
    """Three scales, dense 3x3 convolutions, additive skips; (n, a, h, w) -> the same."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = widths
        self.down1, self.down2 = conv(a, b, stride=2), conv(b, b)
        self.down3 = conv(b, c, stride=2)
        self.middle1, self.middle2 = conv(c, c), conv(c, b)
        self.up1, self.up2, self.up3 = conv(b, b), conv(b, a), conv(a, a)

    def forward(self, fine: Tensor) -> Tensor:
        """Run the network; h and w must be multiples of four."""
        medium = F.relu(self.down2(F.relu(self.down1(fine))))
        coarse = F.relu(self.middle1(F.relu(self.down3(medium))))
        x = F.relu(self.up1(up(F.relu(self.middle2(coarse))) + medium))
        return F.relu(self.up3(up(F.relu(self.up2(x))) + fine))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (or halves it)."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias) if layer.bias is not None else None
    return layer


def silent(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that says nothing before it is trained."""
    layer = nn.Conv2d(inputs, outputs, 1)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def up(x: Tensor) -> Tensor:
    """Double the size by repetition."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def weighted(images: list[Tensor], weights: Tensor) -> Tensor:
    """Sum of images (n, 4, h2, w2), each times its channel of ``weights``."""
    total = images[0] * weights[:, :1]
    for i, image in enumerate(images[1:], start=1):
        total = total + image * weights[:, i : i + 1]
    return total


def at_full_resolution(mean: Tensor, variance: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Unfold a mean; a variance is the same for all four pixels of a fold."""
    h, w = shape[-2:]
    return unfold(mean, h, w), up(variance)[..., :h, :w]


def pick(images: list[Tensor], order: list[int]) -> list[Tensor]:
    """Images in another order."""
    return [images[i] for i in order]


def level_and_scale(frame: Tensor) -> Tensor:
    """Mean and contrast of a frame (n, 1, h, w) -> (n, 2, 1, 1): keeps inputs near one.

    Taken once per run from its first frame, so that it can never flicker.
    """
    level = frame.mean((2, 3), keepdim=True)
    spread = ((frame - level) ** 2).mean((2, 3), keepdim=True).sqrt()
    return torch.cat([level, (spread / 3).clamp(1.0, 10.0)], 1)


def oddness(frame: Tensor, before: list[Tensor] | State, around: Tensor) -> Tensor:
    """How far each pixel is off both its surroundings and any of the frames before it.

    A small bright thing that stays agrees with the past after a few frames;
    what moves on agrees with its surroundings unless it is a single pixel.
    """
    past = (frame - before[0]).abs()
    for other in before[1:]:
        past = torch.maximum(past, (frame - other).abs())
    return torch.minimum((frame - around).abs(), past)


def without_spikes(frame: Tensor, before: list[Tensor] | State) -> Tensor:
    """Replace cosmic rays and impulses by the median around them; all (n, 1, h, w)."""
    around = median_3x3(frame)
    return torch.where(oddness(frame, before, around) > SPIKE, around, frame)


def calm(clip: Tensor) -> Tensor:
    """``without_spikes`` for all frames of (n, t, h, w), if there are enough of them to matter."""
    n, t, h, w = clip.shape
    first = clip[:, :1].expand(-1, _RAW, -1, -1)
    late = torch.cat([first, clip], 1)
    before = [late[:, _RAW - j : _RAW - j + t].reshape(n * t, 1, h, w) for j in range(1, _RAW + 1)]
    flat = clip.reshape(n * t, 1, h, w)
    sudden = (flat - before[0]).abs() > SPIKE
    if float(sudden.to(clip.dtype).mean()) < _RARE:
        return clip
    return without_spikes(flat, before).reshape(clip.shape)


@torch.no_grad()
def noise_power(clip: Tensor, valid: Tensor) -> Tensor:
    """Noise variance where it is like that of a clip (n, t, h, w): (n, 1, h, w), about one.

    Second temporal differences (variance 6) of pixels of the same brightness;
    stabilised noise is not quite one at very few photons.  A scene that moves
    adds to some of the brightnesses: none may exceed the usual by more than 3 %.
    """
    if clip.shape[1] < 3:
        return torch.ones_like(clip[:, :1])
    second = clip[:, 2:] - 2 * clip[:, 1:-1] + clip[:, :-2]
    use = (valid[:, 2:] & valid[:, 1:-1] & valid[:, :-2]) & (second.abs() < 6 * SPIKE)
    squares = torch.where(use, second**2 / 6, torch.zeros_like(second)).sum(1).flatten()
    counts = use.sum(1).flatten().to(clip.dtype)
    level = clip.mean(1)
    cuts = torch.quantile(level.flatten()[:: max(1, level.numel() // 16_384)], _CUTS)
    place = torch.bucketize(level, cuts)
    total = torch.zeros(len(_CUTS) + 1).index_add_(0, place.flatten(), squares)
    number = torch.zeros(len(_CUTS) + 1).index_add_(0, place.flatten(), counts)
    power = total / number.clamp(min=1.0)
    usual = power[number > 0].median() if (number > 0).any() else torch.tensor(1.0)
    return torch.minimum(power, 1.03 * usual).clamp(0.3, 3.0)[place][:, None]


def has_outliers(clip: Tensor, valid: Tensor) -> bool:
    """More than 1 % of temporal differences lie beyond six robust standard deviations."""
    difference = (clip[:, 1:] - clip[:, :-1])[valid[:, 1:] & valid[:, :-1]].abs()
    if difference.numel() == 0:
        return False
    # stabilised noise has unit variance, so a difference has a s.d. of at least 1.4
    limit = 6 * max(float(difference.median()) / 0.6745, 1.4)
    return float((difference > limit).float().mean()) > 0.01


def mirror(i: int, t: int) -> int:
    """Index of frame ``i`` of a series of ``t`` frames mirrored about both ends."""
    if t == 1:
        return 0
    period = 2 * (t - 1)
    i = abs(i) % period
    return period - i if i >= t else i

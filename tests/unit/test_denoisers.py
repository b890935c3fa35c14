from __future__ import annotations

import pytest

from quietbeam.testing.conformance import DenoiserContract, EngineContract
from quietbeam_plugins.denoisers.kalman import Kalman
from quietbeam_plugins.denoisers.median import Median
from quietbeam_plugins.denoisers.n2v import N2V
from quietbeam_plugins.denoisers.quiet import Quiet
from quietbeam_plugins.denoisers.svd import SVD
from quietbeam_plugins.denoisers.umvd import UMVD


class TestKalman(DenoiserContract, EngineContract):
    plugin = Kalman()


class TestMedian(DenoiserContract):
    plugin = Median()


class TestSVD(DenoiserContract, EngineContract):
    plugin = SVD()


class TestQuiet(DenoiserContract, EngineContract):
    plugin = Quiet(prior=False)


class TestN2V(DenoiserContract):
    plugin = N2V()


class TestUMVD(DenoiserContract):
    plugin = UMVD()
    steps = 15
    patch_px = 19
    shape = (19, 23)


@pytest.mark.slow
class TestMedianInEngines(EngineContract):
    plugin = Median()


@pytest.mark.slow
class TestN2VInEngines(EngineContract):
    plugin = N2V()


@pytest.mark.slow
class TestUMVDInEngines(EngineContract):
    plugin = UMVD()
    steps = TestUMVD.steps
    patch_px = TestUMVD.patch_px
    shape = TestUMVD.shape

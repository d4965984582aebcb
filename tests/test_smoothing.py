"""SmoothQuant of our own: exact in float, the closed form of its factors, the same as modelopt's; and before GPTQ, for scales a token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openclaw_opt.models.calibrate import decoder_calibration
from openclaw_opt.models.linear import QuantLinear
from openclaw_opt.models.modelopt import calibrated
from openclaw_opt.models.schemes import Algorithm, Scheme
from openclaw_opt.models.smoothing import smooth
from openclaw_opt.numerics.smoothing import LARGEST, SMALLEST, smoothing_factors
from openclaw_opt.passes.quantize import Quantize
from tests.test_prune import LAYER, complaints, decoder_of, silent
from tests.test_prune import SPEC as DECODER


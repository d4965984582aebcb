"""The third real checkpoint: a small convolutional classifier trained on scikit-learn's digits, through the whole pipeline."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from openclaw_opt.backends.torch_sessions import open_checkpoint_session
from openclaw_opt.checkpoint import open_checkpoint
from openclaw_opt.cli.progress import Silent
from openclaw_opt.data import parse_source
from openclaw_opt.data.load import ImageSet, load_images
from openclaw_opt.errors import RecipeError
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import Report
from openclaw_opt.store import Store
from tests.tiny import write_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "results"))

import digits

RECIPE = """\
model: {model}
target: {target}
data:
  calibration: {{source: digits, split: calibration, samples: 100}}
  evaluation:  {{source: digits, split: evaluation, samples: 150}}
passes:
{passes}  - export
  - fuse
  - build
metrics: [classification, size]
budgets:
  accuracy.top1.recovery: ">= 0.97"
"""


def _images(split: str, samples: int) -> ImageSet:
    return load_images(parse_source({"source": "digits", "split": split, "samples": samples}))


@pytest.fixture(scope="module")
def digits_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet of two stages that has learned the digits."""
    return digits.train(tmp_path_factory.mktemp("digits") / "resnet")


def test_the_classifier_has_learned(digits_resnet: Path) -> None:
    data = _images("evaluation", 150)
    with open_checkpoint_session(open_checkpoint(str(digits_resnet))) as session:
        logits = session.infer({"pixel_values": data.images})["logits"]  # type: ignore[union-attr]
    assert float(np.mean(logits.argmax(-1) == data.labels)) > 0.9


def _build(model: Path, tmp_path: Path, target: str, passes: str) -> Report:
    file = tmp_path / "digits.yaml"
    file.write_text(RECIPE.format(model=model, target=target, passes=passes))
    return build(load_recipe(file), store=Store(tmp_path / "cache"), output=tmp_path / "out", hooks=Silent())


def test_images_of_another_size_are_refused_before_work(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "resnet", "resnet")  # its config names no image_size, which means 224
    with pytest.raises(RecipeError) as caught:
        _build(model, tmp_path, "host", "")
    assert [str(one) for one in caught.value.mistakes] == [
        f"{tmp_path / 'digits.yaml'}:{line}: {role} images are 1×8×8 (channels × height × width), the model takes 1×224×224 "
        "(config.json: num_channels, image_size)\n  fix: a source of images of that size, or a model for these"
        for line, role in ((4, "calibration"), (5, "evaluation"))
    ]


@pytest.mark.slow
def test_int8_on_the_cpu(digits_resnet: Path, tmp_path: Path) -> None:
    report = _build(digits_resnet, tmp_path, "host", "  - quantize: {format: int8}\n")
    assert report.verdict == "within budget"
    assert report.receipt
    assert all(row.ok for row in report.receipt)


@pytest.mark.slow
def test_int8_for_an_rtx_card(digits_resnet: Path, tmp_path: Path) -> None:
    report = _build(digits_resnet, tmp_path, "rtx4090", "  - quantize: {format: int8}\n")
    assert report.verdict == "within budget"
    assert (tmp_path / "out" / "engine-sm89.plan").is_file()
    assert all(row.ok for row in report.receipt)

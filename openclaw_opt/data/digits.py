"""`digits`: scikit-learn's 1797 images of handwritten digits, 8×8 pixels, inside that package: no download.

An image goes to a split by a hash of its index: a tenth `evaluation`, a tenth `calibration`, the rest `train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from openclaw_opt.data import Images, Kind, Source, part_of, shuffled

COUNT = 1797
BRIGHTEST = 16.0


class Digits(Source):
    """Pixels float32 [n, 1, 8, 8] in −1…1 (value / 8 − 1), labels 0…9."""

    kind: ClassVar[Kind] = "images"
    splits: ClassVar[tuple[str, ...]] = ("train", "calibration", "evaluation")
    image: ClassVar[tuple[int, int, int] | None] = (1, 8, 8)
    packages: ClassVar[Mapping[str, str]] = {"sklearn": "scikit-learn"}

    def identities(self) -> frozenset[str]:
        names = (f"digits/{index}" for index in range(COUNT))
        return frozenset(name for name in names if part_of(name) == self.split)

    def images(self) -> Images:
        if problem := self.missing():
            raise problem
        import numpy as np
        from sklearn.datasets import load_digits

        ids = shuffled(sorted(self.identities()), self.seed)
        index = np.array([int(name.rpartition("/")[2]) for name in ids])
        pixels, labels = load_digits(return_X_y=True)
        scaled = (pixels[index] * (2 / BRIGHTEST) - 1).astype(np.float32).reshape(-1, 1, 8, 8)
        return Images(scaled, labels[index].astype(np.int64), tuple(ids))

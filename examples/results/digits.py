"""The digits model of the results: a ResNet of two stages trained on scikit-learn's 8×8 images in half a minute.

python examples/results/digits.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

from openclaw_opt.data import parse_source
from openclaw_opt.data.load import load_images

STEPS, BATCH, IMAGES = 120, 64, 1200


def train(folder: Path) -> Path:
    """A checkpoint in `folder`, the same every time on one machine; made once."""
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10, image_size=8
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config)
    data = load_images(parse_source({"source": "digits", "split": "train", "samples": IMAGES}))
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=random)
        loss = torch.nn.functional.cross_entropy(model(pixel_values=images[rows]).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(train(Path(sys.argv[1])))

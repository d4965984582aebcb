"""Encoders and vision models, run by Hugging Face's own code inside a wrapper with plain tensors in and out.

Their modules keep Hugging Face's names under `model.`, e.g. `model.encoder.layer.0.attention.self.query`; any nn.Linear
and nn.Conv2d among them can be replaced by its quantized form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.models.blocks import fit
from openclaw_opt.models.families import HfFamily, find_family, image_size
from openclaw_opt.models.quiet import quiet
from openclaw_opt.models.spec import HfSpec, ModelFacts

POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Encoder(nn.Module):
    """int64 [batch, sequence] in; last_hidden_state [batch, sequence, hidden] and embedding [batch, hidden] out, float32.

    The embedding pools the tokens that attention_mask marks and, where the spec says so, is scaled to length 1.
    """

    def __init__(self, model: nn.Module, spec: HfSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("input_ids", "attention_mask", *(("token_type_ids",) if self.spec.token_types else ()))

    output_names = ("last_hidden_state", "embedding")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        types = {"token_type_ids": token_type_ids} if self.spec.token_types else {}
        # Four axes are taken as they are; a mask of two would be built anew with a dozen nodes.
        mask = (attention_mask != 0)[:, None, None].expand(-1, -1, attention_mask.shape[1], -1)
        hidden = self.model(input_ids=input_ids, attention_mask=mask, **types).last_hidden_state.float()
        return hidden, embed(hidden, attention_mask, self.spec)


class Classifier(nn.Module):
    """pixel_values [batch, channels, height, width] in; logits [batch, classes] out; both float32 whatever is between."""

    input_names = ("pixel_values",)
    output_names = ("logits",)

    def __init__(self, model: nn.Module, spec: HfSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values.to(next(self.model.parameters()).dtype)).logits
        return logits.float()


def embed(hidden: Tensor, attention_mask: Tensor, spec: HfSpec) -> Tensor:
    """One vector a sequence from [batch, sequence, hidden], padding left out."""
    real = attention_mask[..., None].to(hidden.dtype)
    if spec.pooling == "cls":
        pooled = hidden[:, 0]
    elif spec.pooling == "max":
        pooled = torch.where(real > 0, hidden, torch.finfo(hidden.dtype).min).amax(1)
    else:
        pooled = (hidden * real).sum(1) / real.sum(1).clamp_min(1e-9)
    return pooled / pooled.norm(dim=-1, keepdim=True).clamp_min(1e-12) if spec.normalize else pooled


def load_hf(checkpoint: Checkpoint) -> tuple[nn.Module, HfSpec]:
    """The checkpoint's encoder or classifier in float32, and its spec.

    Raises:
        RecipeError: a weight is missing or has no place, or the sentence encoder has a part that is not supported.
    """
    family = find_family(checkpoint.config)
    assert isinstance(family, HfFamily)
    spec = family.read(checkpoint.config)
    if spec.task == "encoder":
        spec = spec.model_copy(update=read_pooling(checkpoint.folder))
    elif "image_size" not in checkpoint.config:
        spec = spec.model_copy(update=read_image(checkpoint.folder, spec))
    kind = getattr(transformers, family.module)
    with quiet("transformers"):
        model, info = kind.from_pretrained(
            checkpoint.folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **family.options
        )
    _check_loaded(family, checkpoint.folder, info)
    return wrap(model, spec), spec


def _check_loaded(family: HfFamily, folder: Path, info: Mapping[str, Any]) -> None:
    mistakes = [RecipeError(f"tensor {name!r} is missing", where=str(folder)) for name in sorted(info["missing_keys"])]
    mistakes += [
        RecipeError(f"tensor {name!r} has no place in a {family.name} model", where=str(folder))
        for name in sorted(info["unexpected_keys"])
        if not re.search(family.unused, name)
    ]
    mistakes += [
        RecipeError(f"tensor {name!r} has shape {list(got)}, its config.json needs {list(want)}", where=str(folder))
        for name, got, want in info["mismatched_keys"]
    ]
    if mistakes:
        raise RecipeError(f"{len(mistakes)} tensors do not match", where=str(folder), mistakes=mistakes)


def wrap(model: nn.Module, spec: HfSpec) -> nn.Module:
    """The task's wrapper, in eval mode and without gradients."""
    wrapper = Encoder(model, spec) if spec.task == "encoder" else Classifier(model, spec)
    return wrapper.eval().requires_grad_(False)


def build_hf(facts: ModelFacts, assets: Path) -> nn.Module:
    """The wrapper with weights still to be loaded, from `assets/config.json`; its layers have the sizes that the facts state."""
    assert facts.hf is not None
    config = transformers.AutoConfig.from_pretrained(assets, local_files_only=True)
    family = find_family({"architectures": [facts.hf.architecture]})
    assert isinstance(family, HfFamily)
    with no_init_weights():
        model = getattr(transformers, family.module)(config, **family.options)
    module = wrap(model, facts.hf)
    fit(module, facts.hf)
    return module.eval().requires_grad_(False)


def read_pooling(folder: Path) -> dict[str, Any]:
    """`pooling` and `normalize` as sentence-transformers' modules.json states them; mean and scaled without one."""
    if not (folder / "modules.json").is_file():
        return {"pooling": "mean", "normalize": True}
    modules = {
        module["type"].rsplit(".", 1)[-1]: module for module in json.loads((folder / "modules.json").read_text())
    }
    for kind in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise RecipeError(
                f"sentence-transformers module {kind!r} is not supported",
                where=str(folder / "modules.json"),
                fix="legal: Transformer, Pooling, Normalize",
            )
    pooling = "mean"
    if "Pooling" in modules:
        pooling = _pooling(folder / str(modules["Pooling"].get("path", "1_Pooling")) / "config.json")
    return {"pooling": pooling, "normalize": "Normalize" in modules}


def read_image(folder: Path, spec: HfSpec) -> dict[str, Any]:
    """`image` as preprocessor_config.json leaves it, for models whose config.json states no size."""
    file = folder / "preprocessor_config.json"
    if spec.image is None or not file.is_file():
        return {}
    stated = json.loads(file.read_text())
    size = stated.get("crop_size") if stated.get("do_center_crop") else None
    size = size or stated.get("size")
    return {"image": (spec.image[0], *image_size(size))} if size else {}


def _pooling(file: Path) -> str:
    stated = json.loads(file.read_text())
    words = [word for key, word in POOLINGS.items() if stated.get(key)]
    given = stated.get("pooling_mode")
    words += [given] if isinstance(given, str) else list(given or [])
    if len(words) != 1 or words[0] not in ("mean", "cls", "max"):
        raise RecipeError(
            f"pooling {words} is not supported",
            where=str(file),
            fix=nearest(words[0] if words else "", ("mean", "cls", "max")),
        )
    return words[0]

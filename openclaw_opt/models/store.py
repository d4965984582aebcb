"""Model folders: model.json, model.safetensors, assets/. No pickle."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from openclaw_opt.artifacts import Model, Task
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.spec import ModelFacts, read_facts, write_facts

WEIGHTS = "model.safetensors"
CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "modules.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def save_model(module: nn.Module, facts: ModelFacts, folder: Path, assets_from: Path) -> Model:
    """Write `module` and what `facts` states of it. `assets_from` is a checkpoint folder or another `assets/`.

    Raises:
        RecipeError: config.json or the tokenizer is missing in `assets_from`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(folder)
    copy_assets(assets_from, model.assets, facts.task)
    tensors = {name: value.contiguous() for name, value in _stored(module).items()}
    save_file(tensors, folder / WEIGHTS)
    write_facts(model, facts)
    return model


def _stored(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict; of a tied head only the embedding."""
    state = dict(module.state_dict())
    if isinstance(module, Decoder) and getattr(module.head, "weight", None) is module.embed.weight:
        del state["head.weight"]
    return state


def open_model(model: Model) -> nn.Module:
    """The module, its weights memory-mapped, in eval mode and without gradients."""
    facts = read_facts(model)
    assert facts.decoder is not None
    with torch.device("meta"):
        module = Decoder(facts.decoder)
    module.load_state_dict(load_file(model.folder / WEIGHTS), strict=False, assign=True)
    module.tie()
    return module.eval().requires_grad_(False)


def copy_assets(source: Path, target: Path, task: Task) -> None:
    """Copy configs and tokenizer files from `source` to `target`.

    Raises:
        RecipeError: config.json is missing, or tokenizer.json where the task reads text.
    """
    needed = ["config.json"] if task == "vision" else ["config.json", "tokenizer.json"]
    for name in needed:
        if not (source / name).is_file():
            raise RecipeError(f"{name} is missing", where=str(source), fix=f"put the checkpoint's {name} there")
    for name in (*CONFIGS, *TOKENIZER):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)

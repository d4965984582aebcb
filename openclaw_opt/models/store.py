"""Model folders: model.json, model.safetensors, assets/. No pickle.

Float weights are stored in one dtype, quantized layers as the buffers of `models.linear`; a tied head is not stored.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openclaw_opt.artifacts import FloatType, Model, Task
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.linear import QuantConv2d, QuantLinear, quantized_layers, replace_layer
from openclaw_opt.models.spec import DecoderSpec, HfSpec, LayerQuant, ModelFacts, read_facts, write_facts
from openclaw_opt.models.tensor_file import Read, write_tensors

WEIGHTS = "model.safetensors"
DTYPES: dict[FloatType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
ASSETS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
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
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def save_model(module: nn.Module, facts: ModelFacts, folder: Path, assets_from: Path) -> Model:
    """Write `module`, and `facts` brought up to date with its sizes, dtype and quantized layers.

    Args:
        assets_from: a checkpoint folder, or the `assets/` of another artifact.

    Raises:
        RecipeError: config.json or the tokenizer is missing in `assets_from`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(folder)
    copy_assets(assets_from, model.assets, facts.task)
    state = _stored(module)
    changes: dict[str, object] = {"quant": quantized_layers(module), "dtype": float_type(module)}
    if isinstance(module, Decoder):
        changes["decoder"] = module.spec
    elif isinstance(spec := getattr(module, "spec", None), HfSpec):
        changes["hf"] = spec
    _save({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)
    write_facts(model, facts.model_copy(update=changes))
    return model


def write_decoder(
    facts: ModelFacts, entries: Mapping[str, Tensor], read: Read, folder: Path, assets_from: Path
) -> Model:
    """Write a decoder tensor by tensor: the folder that `save_model` writes from the whole.

    Args:
        facts: those of the model that is written.
        entries, read: as `models.tensor_file.write_tensors` takes them; a tied head is not among them.

    Raises:
        RecipeError: config.json or the tokenizer is missing in `assets_from`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(folder)
    copy_assets(assets_from, model.assets, facts.task)
    write_tensors(folder / WEIGHTS, entries, read)
    write_facts(model, facts)
    return model


def float_type(module: nn.Module) -> FloatType:
    """The dtype of the float weights; of the first that there is."""
    dtype = next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)
    return next(name for name, known in DTYPES.items() if known == dtype)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Raises OSError where the library wraps one: a full disk is no fault of the weights."""
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        if "os error" not in str(error):
            raise
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(file)) from error


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """The state dict, each storage once: of tied weights only the first."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, value in module.state_dict().items():
        key = (value.data_ptr(), value.shape)
        if value.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = value
    return kept


def open_model(model: Model) -> nn.Module:
    """The module (a Decoder, or what `models.hf` builds), its weights memory-mapped, in eval mode, without gradients."""
    facts = read_facts(model)
    if facts.decoder is not None:
        module: nn.Module = empty_decoder(facts.decoder, facts.quant)
    else:
        from openclaw_opt.models.hf import build_hf

        module = build_hf(facts, model.assets)
        _place(module, facts.quant)
    _fill(module, load_file(model.folder / WEIGHTS), model.folder / WEIGHTS)
    return module.eval().requires_grad_(False)


def empty_decoder(spec: DecoderSpec, quant: Mapping[str, LayerQuant]) -> Decoder:
    """The decoder on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        decoder = Decoder(spec)
    _place(decoder, quant)
    return decoder


def _place(module: nn.Module, quant: Mapping[str, LayerQuant]) -> None:
    for name, one in quant.items():
        replace_layer(module, name, empty_layer(module.get_submodule(name), one))


def empty_layer(layer: nn.Module, quant: LayerQuant) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return QuantConv2d.like(layer, quant)
    assert isinstance(layer, nn.Linear)
    return QuantLinear.like(layer, quant)


def _fill(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    missing, unknown = module.load_state_dict(state, strict=False, assign=True)
    absent = list(missing)
    if isinstance(module, Decoder) and module.tie() and "head.weight" in absent:
        absent.remove("head.weight")
    refuse_damage(absent, unknown, where)


def refuse_damage(missing: Sequence[str], unknown: Sequence[str], where: Path) -> None:
    """RecipeError where a model folder lacks tensors or has some that nobody knows."""
    if missing or unknown:
        raise RecipeError(
            f"the model folder is damaged: missing {[*missing[:3]]}, unknown {[*unknown[:3]]}",
            where=str(where),
            fix="delete the folder and build again",
        )


def copy_assets(source: Path, target: Path, task: Task) -> None:
    """Copy configs and tokenizer files from `source` to `target`.

    Raises:
        RecipeError: config.json is missing, or tokenizer.json where the task reads text.
    """
    needed = ["config.json"] if task == "vision" else ["config.json", "tokenizer.json"]
    for name in needed:
        if not (source / name).is_file():
            raise RecipeError(f"{name} is missing", where=str(source), fix=f"put the checkpoint's {name} there")
    for name in ASSETS:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)

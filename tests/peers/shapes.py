"""Random Llamas of public shapes, to be timed: a checkpoint is written when it is asked for and never committed.

    python tests/peers/shapes.py 0.41b FOLDER

Weights are normal with standard deviation 0.02 in bfloat16, seeded; the tokenizer is the demo decoder's, so ids above its
vocabulary have no text. Nothing about accuracy can be learnt from them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "tiny-llama"
SHAPES = {
    "125m": {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 64, "vocab_size": 32000,
    },
    "0.41b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 32000,
    },
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 151936,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048,
    },
}  # fmt: skip
"""By name: a GPT-2-small-sized Llama, the 0.41 B of the goals, the sizes of Qwen2.5-0.5B and of Llama-3.1-8B, one to try a script."""


def write(name: str, folder: Path) -> Path:
    """The checkpoint of that shape in `folder`; made once."""
    import torch
    import transformers

    if (folder / "config.json").is_file():
        return folder
    config = transformers.LlamaConfig(
        **SHAPES[name], max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, pad_token_id=0, dtype="bfloat16"
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for key, value in model.named_parameters():
        value.data.fill_(1.0) if "norm" in key else value.data.normal_(0.0, 0.02)
    part = folder.with_name(f"{folder.name}.part")
    model.save_pretrained(part)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / file, part / file)
    (part / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
    part.rename(folder)
    return folder


if __name__ == "__main__":
    print(write(sys.argv[1], Path(sys.argv[2])))

"""Train the small Llama of this folder on the Python standard library's sources, on a CPU.

    python examples/tiny-llama/train.py --steps 1100     train (resumes where it stopped), then save and evaluate
    python examples/tiny-llama/train.py --evaluate       bits per byte of the saved checkpoint on held-out modules
    python examples/tiny-llama/train.py --continue "def __init__(self"

The split is `python-stdlib`'s own: the model and its tokenizer see `train` modules only. Weights train in float32
(AdamW, warm-up, cosine) and are saved as bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from openclaw_opt.data.python_stdlib import PythonStdlib

HERE = Path(__file__).parent
SEPARATOR = "<|endoftext|>"  # id 0: between documents; begin, end and padding in one
VOCAB, CONTEXT, BATCH_TOKENS = 2048, 512, 2048
SHORT, SHORT_SHARE = 256, 0.75  # the first three quarters of the steps see half the context: attention is dear here
PEAK_RATE, WARMUP, DECAY = 2.5e-3, 100, 0.1
SAVE_EVERY = 100


def documents(split: str) -> list[str]:
    return [document.text for document in PythonStdlib(split=split).documents()]


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE: any text goes in, and decoding gives back the very bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents("train"), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    config = folder / "tokenizer_config.json"  # transformers 5 names its own class; this name is known everywhere
    named = {**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(named, indent=2) + "\n")


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).float()


def optimizer_for(model: LlamaForCausalLM) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def rate(step: int, steps: int) -> float:
    """Learning rate: linear to the peak, then a cosine down to nothing."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def batch_at(stream: np.ndarray, step: int, length: int) -> torch.Tensor:
    """[BATCH_TOKENS / length, length + 1] token ids. A function of the step: a resumed run sees what it would have."""
    rows, windows = BATCH_TOKENS // length, (len(stream) - 1) // length - 1
    batch = []
    for index in range(step * rows, (step + 1) * rows):
        random = np.random.default_rng([index // windows])  # one order and one offset an epoch
        start = random.integers(length) + random.permutation(windows)[index % windows] * length
        batch.append(stream[start : start + length + 1])
    return torch.from_numpy(np.stack(batch))


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    logits = model(tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction=reduction)


def save(model: LlamaForCausalLM, folder: Path) -> None:
    saved = LlamaForCausalLM(model.config).to(torch.bfloat16)
    saved.load_state_dict(model.state_dict())
    saved.save_pretrained(folder)


def train(folder: Path, work: Path, steps: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stream = np.concatenate([[0, *encoding.ids] for encoding in tokenizer.encode_batch(documents("train"))])
    model, state = new_model(), work / "state.pt"
    optimizer, first = optimizer_for(model), 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} training tokens, steps {first} to {steps}", flush=True)
    begun, tail = time.monotonic(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = loss_of(model, batch_at(stream, step, SHORT if step < SHORT_SHARE * steps else CONTEXT))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tail = loss.item() if step == first else 0.95 * tail + 0.05 * loss.item()
        if (step + 1) % 20 == 0:
            speed = (step + 1 - first) * BATCH_TOKENS / (time.monotonic() - begun)
            print(f"step {step + 1}  loss {tail:.3f} nats/token  {speed:.0f} tokens/s", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(kept, work / "new.pt")
            (work / "new.pt").replace(state)
            save(model, work / "checkpoint")
    save(model, folder)


@torch.no_grad()
def bits_per_byte(folder: Path, split: str) -> tuple[float, int, int]:
    """Bits per UTF-8 byte over whole documents, in windows of CONTEXT tokens; also bytes and tokens scored."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    nats = size = scored = 0
    for text in documents(split):
        ids = torch.tensor([0, *tokenizer.encode(text).ids])
        size, scored = size + len(text.encode()), scored + len(ids) - 1
        for start in range(0, len(ids) - 1, CONTEXT):
            nats += loss_of(model, ids[None, start : start + CONTEXT + 1], "sum").item()
    return nats / math.log(2) / size, size, scored


@torch.no_grad()
def continuation(folder: Path, prompt: str, new_tokens: int = 96) -> str:
    """What the checkpoint writes after `prompt`, greedily."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    return str(tokenizer.decode(made[0].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1100, help="steps in total; a stopped run resumes")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the checkpoint is, or goes")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-llama"), help="where a stopped run is kept")
    parser.add_argument("--evaluate", action="store_true", help="only print bits per byte on held-out modules")
    parser.add_argument("--continue", dest="prompt", help="only print a greedy continuation of this text")
    arguments = parser.parse_args()
    if arguments.prompt is not None:
        print(continuation(arguments.folder, arguments.prompt))
        return
    if not arguments.evaluate:
        train(arguments.folder, arguments.work, arguments.steps)
    bits, size, scored = bits_per_byte(arguments.folder, "evaluation")
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"{bits:.3f} bits per byte on {size:,} bytes ({scored:,} tokens) of held-out modules of Python {python}")


if __name__ == "__main__":
    main()

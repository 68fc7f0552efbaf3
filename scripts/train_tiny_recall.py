"""Train kvx's embedded model: a 2-layer Llama recalling `key -> several values` from filler text.

The result (about 0.65 MB) is shipped in `kvx/assets/tiny_recall` with its tokenizer and word lists,
so that the whole harness runs on a real, if tiny, transformer without any download. It says nothing
about which press is better on real models.

What made it train in minutes rather than not at all: an untied, bias-carrying attention with a wide
initialisation; one head started as a rough previous-token head, so that the induction circuit forms
at once; a first stage of dense key/value chains; then contexts of growing length.

    python scripts/train_tiny_recall.py --minutes 6 --out kvx/assets/tiny_recall
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "?", "."]
PAD, BOS, EOS, UNK, ASK, DOT = range(6)
N_KEYS, N_VALUES, N_FILLER = 96, 128, 96
MIN_VALUES, MAX_VALUES = 2, 4
STAGES = (48, 96, 192, 384, 768, 1536, 3072, 4096)
FIRST_KEY = len(SPECIAL)
FIRST_VALUE = FIRST_KEY + N_KEYS
FIRST_FILLER = FIRST_VALUE + N_VALUES
N_WORDS = FIRST_FILLER + N_FILLER
IGNORE = -100
THETA = 1_000_000.0


def word_lists() -> dict[str, list[str]]:
    """Keys and filler from wonderwords' nouns (MIT), values as numbers; deterministic."""
    from wonderwords import RandomWord

    nouns = RandomWord().filter(
        include_parts_of_speech=["noun"], word_min_length=4, word_max_length=8
    )
    plain = sorted({w for w in nouns if w.isalpha() and w.islower()})
    random.Random(1).shuffle(plain)
    return {
        "keys": sorted(plain[:N_KEYS]),
        "values": [str(10 + i) for i in range(N_VALUES)],
        "filler": sorted(plain[N_KEYS : N_KEYS + N_FILLER]),
    }


def dense_batch(
    rng: np.random.Generator, rows: int, length: int, n_pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Few pairs drawn again and again; a target wherever the key was seen before.

    Both tensors are (rows, length).
    """
    keys = np.argsort(rng.random((rows, N_KEYS)), 1)[:, :n_pairs] + FIRST_KEY
    values = rng.integers(FIRST_VALUE, FIRST_VALUE + N_VALUES, size=(rows, n_pairs))
    pick = rng.integers(0, n_pairs, size=(rows, length // 2))
    row = np.arange(rows)[:, None]
    ids = np.empty((rows, length), dtype=np.int64)
    ids[:, 0::2], ids[:, 1::2] = keys[row, pick], values[row, pick]
    targets = np.full_like(ids, IGNORE)
    for j in range(1, length // 2):
        seen = (pick[:, :j] == pick[:, j : j + 1]).any(1)
        targets[seen, 2 * j] = ids[seen, 2 * j + 1]
    return torch.from_numpy(ids), torch.from_numpy(targets)


def recall_batch(
    rng: np.random.Generator, rows: int, length: int, n_facts: int, n_questions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Filler of `length` tokens with `key v1..vk .` facts, then `? key v1..vk <eos>` questions."""
    slot = MAX_VALUES + 2  # a fact never overlaps the next one
    width = length + n_questions * (MAX_VALUES + 3)
    ids = np.full((rows, width), PAD, dtype=np.int64)
    targets = np.full_like(ids, IGNORE)
    body = rng.integers(FIRST_FILLER, FIRST_FILLER + N_FILLER, size=(rows, length))
    body[rng.random((rows, length)) < 0.1] = DOT
    ids[:, :length] = body
    ids[:, 0] = BOS
    for r in range(rows):
        keys = rng.permutation(N_KEYS)[:n_facts] + FIRST_KEY
        pool = rng.permutation(N_VALUES) + FIRST_VALUE  # no value twice: the chain is unambiguous
        sizes = rng.integers(MIN_VALUES, MAX_VALUES + 1, size=n_facts)
        starts = 1 + slot * rng.permutation((length - 1) // slot)[:n_facts]
        facts, used = [], 0
        for key, size, start in zip(keys, sizes, starts, strict=True):
            fact = np.concatenate([[key], pool[used : used + size], [DOT]])
            used += size
            ids[r, start : start + len(fact)] = fact
            facts.append(fact)
        at = length
        for f in rng.permutation(n_facts)[:n_questions]:
            answer = np.concatenate([facts[f][1:-1], [EOS]])
            ids[r, at : at + 2] = ASK, facts[f][0]
            ids[r, at + 2 : at + 2 + len(answer)] = answer
            targets[r, at + 1 : at + 1 + len(answer)] = answer
            at += 2 + len(answer)
    return torch.from_numpy(ids), torch.from_numpy(targets)


def build_model(seed: int) -> LlamaForCausalLM:
    """The untrained model, with layer 0 / head 0 nudged towards attending to the previous token."""
    torch.manual_seed(seed)
    head_dim = 64
    config = LlamaConfig(
        vocab_size=(N_WORDS + 7) // 8 * 8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=8192,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=0.1,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    attention, half = model.model.layers[0].self_attn, head_dim // 2
    frequency = THETA ** (-torch.arange(half).float() / half)
    with torch.no_grad():
        for i in range(6):
            attention.k_proj.bias[i] = 6.0
            attention.q_proj.bias[i] = 6.0 * math.cos(frequency[i])
            attention.q_proj.bias[i + half] = -6.0 * math.sin(frequency[i])
    return model


def loss_and_accuracy(
    model: LlamaForCausalLM, ids: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Cross-entropy over the target positions only, and the share of them predicted right."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    where = targets != IGNORE
    logits = model.lm_head(hidden[where])
    wanted = targets[where]
    accuracy = (logits.argmax(-1) == wanted).float().mean().item()
    return functional.cross_entropy(logits, wanted), accuracy


def train(model: LlamaForCausalLM, minutes: float, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    start, step, stage, stage_steps, ema = time.time(), 0, 0, 0, 0.0
    while (elapsed := time.time() - start) < minutes * 60:
        at = stage if stage == 0 or rng.random() < 0.7 else int(rng.integers(stage))
        length = STAGES[at]
        if at == 0:
            ids, targets = dense_batch(rng, 8192 // length, length, 4 if ema < 0.6 else 8)
        else:
            n_facts = int(rng.integers(4, min(32, length // 8) + 1))
            n_questions = min(n_facts, 16)
            rows = max(1, 8192 // (length + n_questions * (MAX_VALUES + 3)))
            ids, targets = recall_batch(rng, rows, length, n_facts, n_questions)
        done = elapsed / (minutes * 60)
        rate = (
            3e-3 * min(1.0, (step + 1) / 100) * (1.0 if done < 0.6 else max(0.05, (1 - done) / 0.4))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, accuracy = loss_and_accuracy(model, ids, targets)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, stage_steps = step + 1, stage_steps + 1
        if at == stage:
            ema = 0.95 * ema + 0.05 * accuracy
        if step % 100 == 0:
            print(
                f"{elapsed:5.0f}s step {step} length {length} loss {loss.item():.3f} ema {ema:.3f}",
                flush=True,
            )
        if ema > 0.96 and stage_steps > 60 and stage < len(STAGES) - 1:
            stage, stage_steps, ema = stage + 1, 0, 0.5
    return {
        "steps": step,
        "seconds": round(time.time() - start),
        "last_stage_tokens": STAGES[stage],
    }


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, seed: int) -> dict[int, float]:
    """Token accuracy without compression, by context length."""
    rng, out = np.random.default_rng(seed + 1), {}
    for length in (128, 256, 512, 1024, 2048, 4096):
        runs = [
            loss_and_accuracy(model, *recall_batch(rng, 2, length, min(24, length // 8), 8))[1]
            for _ in range(6)
        ]
        out[length] = round(float(np.mean(runs)), 4)
    return out


def save(
    model: LlamaForCausalLM, words: dict[str, list[str]], out: Path, report: dict[str, Any]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = SPECIAL + words["keys"] + words["values"] + words["filler"]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=8192,
    )
    model.save_pretrained(out)
    fast.save_pretrained(out)
    # transformers 4 reads these two under other names
    for name, key, value in (
        ("config.json", "rope_theta", THETA),
        ("tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),
    ):
        saved = json.loads((out / name).read_text()) | {key: value}
        (out / name).write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    (out / "words.json").write_text(json.dumps(words, indent=0) + "\n")
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build_model(args.seed)
    report: dict[str, Any] = train(model, args.minutes, args.seed)
    model.eval()
    report |= {"seed": args.seed, "parameters": sum(p.numel() for p in model.parameters())}
    report["token_accuracy_by_context_tokens"] = evaluate(model, args.seed)
    save(model, word_lists(), args.out, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

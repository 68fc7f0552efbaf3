"""Convert SmolLM2-135M-Instruct from its GGUF file to a transformers directory.

transformers reads the weights. The tokenizer is built here from the GGUF's vocabulary and merges:
transformers 5.2 makes a CodeLlama tokenizer of this file, with a wrong eos, an automatic BOS, no
pad, five tokens beyond the vocabulary, and a decoder that changes some texts.
"""

import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from kvx.errors import RunFailedError

MODEL_MAX_LENGTH = 8192
MODEL_INPUT_NAMES = ["input_ids", "attention_mask"]
SPECIAL = 3  # GGUF token type "control"
BOS, EOS, PAD, UNK = "<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"
ROLES = ("bos", "eos", "pad")


def convert(gguf: Path, target: Path) -> None:
    """Write the weights, tokenizer and configurations to `target`.

    The weights are float32: 42% of the dequantised values are not exact in float16. Raises
    `RunFailedError` if the tokenizer and the embeddings differ in size.
    """
    import torch
    from transformers import AutoModelForCausalLM  # before stderr is replaced: its log keeps it

    with redirect_stderr(StringIO()):  # progress bars that have no other switch
        tokenizer = _tokenizer(gguf)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        _save(model, tokenizer, gguf.name, target)


def _save(model: Any, tokenizer: Any, name: str, target: Path) -> None:
    if len(tokenizer) != model.config.vocab_size:
        raise RunFailedError(
            f"{name}: {len(tokenizer)} tokens but {model.config.vocab_size} embeddings"
        )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ROLES}
    model.config.update(ids)
    model.generation_config.update(**ids, _from_model_config=False)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
    _readable_by_transformers_4_and_5(target)


def _readable_by_transformers_4_and_5(target: Path) -> None:
    """Rewrite the settings that transformers 4 would silently miss in files of transformers 5."""
    config = json.loads((target / "config.json").read_text())
    if rope := config.pop("rope_parameters", None):
        config["rope_theta"] = rope["rope_theta"]  # else transformers 4 takes 10,000
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer["model_input_names"] = MODEL_INPUT_NAMES  # else transformers 4 adds token_type_ids
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def _tokenizer(gguf: Path) -> Any:
    """SmolLM2's own tokenizer: byte-level BPE, digits one by one, no BOS added, no clean-up.

    llama.cpp calls the pre-tokenizer "smollm". The vocabulary lacks 21 bytes (control characters,
    and bytes that are rare or impossible in UTF-8); they are dropped from texts.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    if "tokenizer.chat_template" not in fields:
        raise RunFailedError(f"{gguf.name}: has no chat template")

    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        model_input_names=MODEL_INPUT_NAMES,
        chat_template=fields["tokenizer.chat_template"].contents(),
    )

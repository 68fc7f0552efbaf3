"""SmolLM2-135M-Instruct from its GGUF file to a transformers directory, done once.

The weights are read by transformers. The tokenizer is built here from the GGUF's vocabulary and
merges: the one transformers 5.2 makes of this file is a CodeLlama tokenizer with a wrong eos, an
automatic BOS, no pad, five tokens beyond the vocabulary, and a decoder that changes some texts.
"""

import json
from pathlib import Path
from typing import Any

from kvx.errors import RunFailedError

MODEL_MAX_LENGTH = 8192
SPECIAL = 3  # GGUF token type "control"
BOS, EOS, PAD, UNK = "<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"


def convert(gguf: Path, target: Path) -> None:
    """Write weights (float32: Q4_1 values do not fit float16), tokenizer and configs to `target`."""
    tokenizer = _tokenizer(gguf)
    model = _model(gguf)
    if len(tokenizer) != model.config.vocab_size:
        raise RunFailedError(
            f"{gguf.name}: {len(tokenizer)} tokens but {model.config.vocab_size} embeddings"
        )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ids)
    model.generation_config.update(**ids)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
    _edit_json(target / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    # transformers 4 does not read `rope_parameters`, and would silently use a theta of 10,000
    rope = model.config.rope_parameters
    _edit_json(target / "config.json", rope_theta=rope["rope_theta"], rope_parameters=None)


def _model(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(gguf: Path) -> Any:
    """SmolLM2's own tokenizer: byte-level BPE, digits one by one, no BOS added, no clean-up.

    As in the original, 21 bytes that the vocabulary lacks (control characters, and bytes that are
    rare or impossible in UTF-8) are dropped.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    if "tokenizer.chat_template" not in fields:
        raise RunFailedError(f"{gguf.name}: holds no chat template")

    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
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
        chat_template=fields["tokenizer.chat_template"].contents(),
    )


def _edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None or key not in changes}
    path.write_text(json.dumps(kept, indent=2) + "\n")

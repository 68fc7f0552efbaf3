#!/bin/sh
# transformers 5.24.0: AutoTokenizer takes Qwen2Tokenizer for a folder whose config.json says `qwen2`, whatever
# tokenizer_config.json names as its class, and reads another kind of tokenizer.json as if it were Qwen's: it finds
# no token in plain text, and says nothing. On 5.2.0 the file's own tokenizer is taken.
#
# It concerns models with Qwen2's architecture and a tokenizer of their own. With `llama` and the same files, 5.24.0
# takes the file's tokenizer.
#
# Seen:
#   transformers 5.24.0
#   llama: TokenizersBackend [1, 2, 3, 4, 5]
#   qwen2: Qwen2Tokenizer []
#
# Needs a Python of 3.11 or 3.12; makes an environment of its own, or takes FINDINGS_PYTHON, a python that
# has these packages. Exits with 1 if the behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    "${PYTHON:-python3}" -m venv "$here/venv"
    python="$here/venv/bin/python"
    "$python" -m pip install -q transformers==5.24.0
fi
FOLDER="$here/model" "$python" - <<'PYTHON'
import json
import os
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer

print("transformers", transformers.__version__)
folder = Path(os.environ["FOLDER"])
folder.mkdir()
words = ["<unk>", "the", "magic", "number", "is", "12"]
inside = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
inside.pre_tokenizer = Whitespace()
inside.save(str(folder / "tokenizer.json"))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
(folder / "tokenizer_config.json").write_text(json.dumps(settings))
found = {}
for kind in ("llama", "qwen2"):
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": len(words)}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found[kind] = tokenizer.encode("the magic number is 12", add_special_tokens=False)
    print(f"{kind}: {type(tokenizer).__name__} {found[kind]}")
sys.exit(0 if found == {"llama": [1, 2, 3, 4, 5], "qwen2": []} else 1)
PYTHON

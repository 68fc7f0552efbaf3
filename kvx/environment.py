"""Where the server is and its key: the environment, else `.env` in the working directory."""

import os
from pathlib import Path

from dotenv import dotenv_values

BASE_URL, MODEL_NAME, API_KEY = "BASE_URL", "MODEL_NAME", "OPENAI_API_KEY"


def read(name: str) -> str | None:
    """The variable's value; the environment wins over `.env`. None if neither has it."""
    value = os.environ.get(name) or dotenv_values(Path(".env")).get(name)
    return value.strip() or None if value else None

"""What each family of tests/families.py lacks of what presses may require, from configurations.

PYTHONPATH=. python scripts/family_features.py    # writes kvx/presses/families.yaml
"""

import tempfile
from pathlib import Path

import transformers
from omegaconf import OmegaConf

from kvx.config.folders import package_dir
from kvx.config.language_model import ModelConfig
from kvx.engines.kvpress.applicability import missing_of
from kvx.store.atomic import write_text
from tests.families import available, make

HEAD = """\
# By model family, what it lacks of what presses may require: written by
# `PYTHONPATH=. python scripts/family_features.py` with transformers {version}.
"""


def lacking(family: str) -> dict[str, str]:
    """The features that a family lacks, and why."""
    with tempfile.TemporaryDirectory() as folder:
        make(family).config.save_pretrained(folder)
        found = missing_of(ModelConfig(name=family, path=folder))
    assert found is not None
    return found


def main() -> None:
    found = {family: lacking(family) for family in available()}
    text = HEAD.format(version=transformers.__version__) + OmegaConf.to_yaml(found)
    write_text(package_dir() / "presses" / "families.yaml", text)
    print(f"{len(found)} families", Path("kvx/presses/families.yaml"))


if __name__ == "__main__":
    main()

"""`import kvx…` in a notebook changes nothing of the user's: no backend, logger, seed or patch."""

import subprocess
import sys

LOOK = """
import importlib, json, locale, logging, multiprocessing, os, pkgutil, random, signal, sys, warnings
# what kvx builds on may do as it likes; kvx comes after it
import datasets, fastapi, gguf, hydra, matplotlib, openai, pandas, pyarrow.parquet, scipy.stats
import hydra._internal.core_plugins.basic_sweeper, numpy, submitit, tokenizers, torch
import hydra_plugins.hydra_submitit_launcher.submitit_launcher
import kvx.engines.kvpress  # Python 3.13: kvpress cannot be imported without it
import kvpress, transformers, uvicorn, xgboost
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

matplotlib.use("svg")
ConfigStore.instance().store(name="schema", node={"the": "user's"})
logging.getLogger("transformers").setLevel(logging.INFO)
logging.getLogger("kvpress").setLevel(logging.INFO)
random.seed(5), numpy.random.seed(5), torch.manual_seed(5)


def loggers():
    root = logging.getLogger()
    named = {
        n: (l.level, len(l.handlers), l.disabled, l.propagate)
        for n, l in logging.root.manager.loggerDict.items()
        if isinstance(l, logging.Logger) and n.split(".")[0] not in ("kvx", "matplotlib")
    }
    return {**named, "": (root.level, len(root.handlers))}


def entries(group, prefix=""):
    for name, inner in group.items():
        if isinstance(inner, dict):
            yield from entries(inner, f"{prefix}{name}/")
        elif not name.startswith("kvx") and not prefix.startswith("kvx"):
            yield f"{prefix}{name}", str(inner.node)


def state():
    import transformers.utils.logging as verbosity

    store = ConfigStore.instance().repo
    return {
        "backend": matplotlib.rcParams._get_backend_or_none(),
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "rcParams": str(dict(matplotlib.rcParams)),
        "store": dict(entries(store)),
        "store class": sorted(vars(ConfigStore)),
        "resolvers": sorted(n for n in BaseContainer._resolvers if not n.startswith("kvx_")),
        "loggers": loggers(),
        "verbosity": verbosity.get_verbosity(),
        "warnings": [repr(f) for f in warnings.filters],
        "environment": dict(os.environ),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(),
                  torch.are_deterministic_algorithms_enabled(), str(torch.get_default_device())],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "random": [hash(random.getstate()), numpy.random.get_state()[1].tolist()[:5],
                   torch.get_rng_state().sum().item()],
        "numpy": numpy.geterr(),
        "locale": locale.setlocale(locale.LC_ALL),
        "path": sys.path, "directory": os.getcwd(),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "signals": {str(n): repr(signal.getsignal(n)) for n in signal.valid_signals()},
        "pandas": str(pandas.options.mode.to_dict() if hasattr(pandas.options.mode, "to_dict")
                      else pandas.options.mode.copy_on_write),
        "attention": sorted(n for n in transformers.AttentionInterface._global_mapping
                            if not n.startswith("kvx")),
        "pipes": "pipes" in sys.modules,
    }


before = json.loads(json.dumps(state()))
import kvx, hydra_plugins.kvx_launcher, hydra_plugins.kvx_sweeper

names = [m.name for m in pkgutil.walk_packages(kvx.__path__, "kvx.") if "__main__" not in m.name]
for name in names:
    importlib.import_module(name)
after = json.loads(json.dumps(state()))
# a logger that a library makes only now is its own
after["loggers"] = {k: v for k, v in after["loggers"].items() if k in before["loggers"]}


def difference(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [k for k in {**one, **other} if one.get(k) != other.get(k)]
        return {k: difference(one.get(k), other.get(k)) for k in keys}
    return [one, other]


changed = difference(before, after)
print(json.dumps({"n": len(names), "changed": changed}))
"""


def test_importing_kvx_changes_no_global_state(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import json

    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["changed"] == {}
    assert found["n"] > 200

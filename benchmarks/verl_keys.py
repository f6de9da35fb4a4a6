"""Write tests/verl_keys.json: the settings that verl 0.9.1 knows, and the type of each.

    VERL_PYTHON benchmarks/verl_keys.py             # python of the environment that .ci/verify_verl.sh makes

A misspelt setting in a YAML file is no error in verl: it is kept, and read by nobody. tests/test_scale_out.py
compares the two files in scale_out/ with this list, without verl; where verl is there, the list with verl.
"""

import json
from pathlib import Path

from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    "profiler",
    "global_profiler",
    "megatron",
    "distillation",
    "transfer_queue",
    "skip",
    "v1",
    "turbo_config",
)


def composed(name, overrides=()):
    """The config of this name, one of ours or of verl's own, as verl's trainer gets it."""
    if name.startswith("verl_"):
        found = initialize_config_dir(str(ROOT / "scale_out"), version_base=None)
    else:
        found = initialize_config_module("verl.trainer.config", version_base=None)
    with found:
        return compose(name, list(overrides))


def types_of(node):
    """{setting: its type, or the settings below it}; null stands for anything, as does an interpolation."""
    types = {}
    for name in sorted(node):
        if name in LEFT_OUT:
            continue
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name) or node[name] is None:
            types[name] = None
        elif isinstance(node[name], DictConfig):
            types[name] = types_of(node[name])
        else:
            types[name] = type(node[name]).__name__.replace("ListConfig", "list")
    return types


if __name__ == "__main__":
    path = ROOT / "tests/verl_keys.json"
    path.write_text(json.dumps(types_of(composed("ppo_trainer")), indent=1) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")

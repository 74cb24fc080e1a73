"""Compare `ppo_lib` with TRL, torchtune, torchrl and verl: `make parity`.

Each peer gets an environment of its own under the build folder, so none of them is a dependency of anything.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = {
    "trl": [["trl==1.12.0", "transformers==5.15.0"]],
    "torchtune": [["torchtune==0.6.1", "torchao==0.17.0"]],
    "torchrl": [["torchrl==0.14.1"]],
    # verl asks for a whole cluster; what its algorithms import is enough here.
    "verl": [
        ["--no-deps", "verl==0.9.1"],
        ["ray", "peft", "hydra-core", "codetiming", "dill", "pylatexenc", "tensordict<=0.10", "transformers==5.15.0"],
        ["datasets", "pandas", "packaging"],
    ],
}


def environment(name: str, folder: Path, torch: str) -> Path:
    """The peer's own Python, made once."""
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        venv.create(folder, with_pip=True)
        for words in [[torch], *PEERS[name], ["pytest", "numpy"]]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
        done.touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", default=list(PEERS), metavar="peer")
    parser.add_argument("--build", type=Path, default=ROOT / "_build")
    parser.add_argument("--torch", default="torch==2.13.0")
    options = parser.parse_args()
    failed = []
    for name in options.peers:
        python = environment(name, (options.build / "peers" / name).resolve(), options.torch)
        print(f"== {name}", flush=True)
        words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", HERE, "-p", "no:cacheprovider", f"peer_{name}.py"]
        if subprocess.run([python, *words], cwd=HERE, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode:
            failed.append(name)
    sys.exit(f"differs: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

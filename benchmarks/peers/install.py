"""Make the virtual environment of a peer: `python benchmarks/peers/install.py trl`."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
WITHOUT = {"llamafactory": ["torchvision", "torchaudio"]}
"""What a peer's dependencies bring and text does not need; their wheels fit one build of torch alone."""


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made now if it is not there yet."""
    folder = HERE / f".venv-{name}"
    python, ready = folder / "bin" / "python", folder / ".installed"
    if not ready.is_file():
        print(f"== installing {name} into {folder} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
        subprocess.run([*pip, torch], check=True)
        subprocess.run([*pip, "-r", str(HERE / f"{name}.txt"), torch], check=True)
        if name in WITHOUT:
            subprocess.run([*pip[:3], "uninstall", "-q", "-y", *WITHOUT[name]], check=True)
        ready.touch()
    return python


if __name__ == "__main__":
    print(peer_python(sys.argv[1]))

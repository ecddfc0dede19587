"""Make the environments that peers run in: `python benchmarks/setup_peers.py [NAME …]`.

Each is a folder under `benchmarks/.peers`, with what `benchmarks/peers/NAME.txt` lists.  Where one cannot be installed,
the reason is kept, and the table shows it in that peer's cells.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from peers.client import ENVIRONMENTS

REQUIREMENTS = Path(__file__).parent / "peers"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"  # without which pip takes the build for CUDA, 20 times as large


def names() -> list[str]:
    """What can be made."""
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def make(name: str) -> str:
    """Make one environment; the reason if that failed, or nothing."""
    folder, failure = ENVIRONMENTS / name, ENVIRONMENTS / f"{name}.failed"
    ENVIRONMENTS.mkdir(exist_ok=True)
    failure.unlink(missing_ok=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS / f"{name}.txt"]
    for command in ([sys.executable, "-m", "venv", folder], [*install, *_sources(name)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1]
            failure.write_text(f"{name} does not install: {reason}")
            return reason
    return ""


def _sources(name: str) -> list[str]:
    return ["--extra-index-url", CPU_WHEELS] if name == "torch" and sys.platform == "linux" else []


def main() -> int:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(description="Make the environments of the peers that the table compares.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(names())} (default all)")
    chosen = parser.parse_args().names or names()
    failed = 0
    for name in chosen:
        print(f"{name} …", flush=True)
        reason = make(name)
        failed += bool(reason)
        print(f"  {reason or 'ready'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())

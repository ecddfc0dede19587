"""The table's end of a worker."""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .protocol import Closed, Late, receive, send

BENCHMARKS = Path(__file__).parents[1]
ENVIRONMENTS = BENCHMARKS / ".peers"
START = 120  # seconds until a process that has begun must answer
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",  # from which XLA takes the size of its pool
    "JAX_PLATFORMS": "cpu",
}


class PeerError(Exception):
    """A peer has no answer; the message is what its cell shows.  `final`: asking again would change nothing."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Died(PeerError):
    """A peer's process has ended by itself."""


@dataclass(frozen=True)
class Peer:
    """Someone to be compared with.

    module: the one of this package that it runs.
    environment: the folder under `.peers` whose Python it runs in; None, and one that was not made for PyTorch: ours.
    options: what the module's `contenders` is told.
    """

    name: str
    module: str
    environment: str | None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The Python that it runs in.  Raises PeerError where its environment was not made."""
        if self.environment is None:
            return Path(sys.executable)
        made = ENVIRONMENTS / self.environment / "bin" / "python"
        if made.exists():
            return made
        if self.environment == "torch":
            return Path(sys.executable)
        failure = ENVIRONMENTS / f"{self.environment}.failed"
        raise PeerError(failure.read_text() if failure.exists() else "not set up: python benchmarks/setup_peers.py")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch.func", "torch_eager", "torch"),
        Peer("torch.compile", "torch_compile", "torch"),
        Peer("JAX", "jax_jit", "jax"),
        Peer("CasADi", "casadi_c", "casadi"),
        Peer("CasADi kernel", "casadi_c", "casadi", {"kernel": True}),
        Peer("limit", "limit", None),
    )
}


class Worker:
    """A peer's process.  Use it in a `with` block, which ends it."""

    def __init__(self, peer: Peer, pin: int | None = None, cache: Path | None = None) -> None:
        python = peer.python
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
        self.folder = tempfile.TemporaryDirectory()
        caches = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "PULLBACK_CACHE"), str(cache or self.folder.name))
        settings = {**os.environ, **ONE_THREAD, **caches}
        if pin is not None:
            settings["PIN"] = str(pin)
        self.process = subprocess.Popen(
            [python, "-m", "peers.worker", peer.module],
            cwd=BENCHMARKS,
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
        )
        self._receive(START)

    def ask(self, what: str, seconds: float | None = None, **details: Any) -> dict[str, Any]:
        """The answer to a message.  Raises PeerError if there is none, or none in so many seconds."""
        try:
            send(self.process.stdin.fileno(), {"do": what, **details})
        except BrokenPipeError:
            raise Died(self._last_words()) from None
        return self._receive(seconds)

    def _receive(self, seconds: float | None) -> dict[str, Any]:
        try:
            answer = receive(self.process.stdout.fileno(), seconds)
        except Late:
            self.close()
            raise PeerError(f"no answer within {seconds:.0f} s") from None
        except Closed:
            raise Died(self._last_words()) from None
        if "error" in answer:
            raise PeerError(answer["error"], answer.get("final", False))
        return answer

    def _last_words(self) -> str:
        """How a process ended, and what it wrote last."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{ended}: {lines[-1]}" if lines else ended

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
        self.errors.close()
        self.folder.cleanup()

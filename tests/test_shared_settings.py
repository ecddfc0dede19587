"""Settings of the whole process are restored when the last of several threads that trace is done."""

import threading

import torch

import pullback
from pullback import torch_private
from pullback.shared_settings import EAGER, FOLDING, UNCOMPILED, WITHOUT_FASTPATH, WITHOUT_MKLDNN

ALL = (WITHOUT_MKLDNN, WITHOUT_FASTPATH, FOLDING, UNCOMPILED, EAGER)


def settings() -> tuple[object, ...]:
    flags = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    return (*flags, torch_private.decompositions.should_fold, torch.compile)


def test_the_last_to_leave_restores() -> None:
    before = settings()
    for shared in ALL:
        shared.__enter__()
        shared.__enter__()
        shared.__exit__()
    inside = settings()
    assert not any(one == other for one, other in zip(inside, before, strict=True))
    for shared in ALL:
        shared.__exit__()
    assert settings() == before


def test_threads_that_trace_at_once_leave_the_settings_as_they_were() -> None:
    before, start, failures = settings(), threading.Barrier(4), []

    def work(number: int) -> None:
        start.wait()
        for k in range(6):
            try:
                found = pullback.grad(lambda x, n=number + k: (x * n).sin().sum())(torch.ones(k + 1))
                expected = (number + k) * torch.full((k + 1,), float(number + k)).cos()
                torch.testing.assert_close(found, expected)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert settings() == before

"""Starts the processes of a test. A fork server imports torch and the hosts once for all of them."""
from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing as mp


def run_processes(function: Callable[..., None], arguments: tuple, count: int) -> None:
    """Run ``function(rank, *arguments)`` in ``count`` processes and wait for them; an exception in one is raised here."""
    multiprocessing.set_forkserver_preload(['tests.reference'])
    mp.start_processes(function, arguments, nprocs=count, start_method='forkserver')

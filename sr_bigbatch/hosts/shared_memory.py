"""Is there room in the machine's shared memory for the batches that loader workers prepare?"""
from __future__ import annotations

import os
from pathlib import Path

_FOLDER = Path('/dev/shm')  # where torch's workers put tensors on Linux; other systems have no limit of their own for them
_FLOAT32 = 4  # bytes
AHEAD = 2
"""Batches that torch lets a worker prepare before they are asked for, unless ``prefetch_factor`` says otherwise."""


def batch_bytes(count: int, gt_size: int, scale: int, channels: int) -> int:
    """Bytes of the images of a batch as a worker hands them over.

    Args:
        count: samples.
        gt_size: width and height of the ground truth, in pixels.
        scale: of the generator; the input is smaller by it.
        channels: of an image.
    """
    return count * channels * _FLOAT32 * (gt_size**2 + (gt_size // scale)**2)


def lack_of_room(size: int, workers: int, workers_key: str, ahead: int = AHEAD) -> str | None:
    """One sentence if ``/dev/shm`` cannot hold the batches under way; None if it can, and where there is no such folder.

    A worker that finds no room there is killed by the system, without a word about the reason.

    Args:
        size: of a batch, in bytes.
        workers: processes that load for one training process.
        workers_key: the option that says so, for the message.
        ahead: batches that each worker prepares before they are asked for.
    """
    if not workers or not _FOLDER.is_dir():
        return None
    room = os.statvfs(_FOLDER)
    free, whole = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    count = processes * (workers * ahead + 1)  # and the one that the training has in hand
    if count * size <= free:
        return None
    fitting = max(0, (free // (processes * size) - 1) // ahead)
    return (f'up to {count} batches of {size / 1e6:.0f} MB are in {_FOLDER} at a time, and of its {whole / 1e6:.0f} MB '
            f'{free / 1e6:.0f} MB are free, so that workers would be killed: enlarge or empty it (docker run '
            f'--shm-size={-(-count * size // 2**30) + 1}g, or --ipc=host), or set {workers_key} to {fitting}')

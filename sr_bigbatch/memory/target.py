"""The device for which memory is predicted, and what a process takes from it besides its tensors."""
from __future__ import annotations

from dataclasses import dataclass

from sr_bigbatch.memory.allocator import has_expandable_segments, use_expandable_segments

CONTEXT_BYTES = 450 * 10**6
"""What CUDA takes for a process as soon as it asks for anything."""
KERNEL_BYTES = 150 * 10**6
"""What the kernels of torch, cuDNN and cuBLAS take, which are loaded when they are first needed."""
CUBLAS_BYTES = 33 * 2**20
"""Workspace of cuBLAS, which torch keeps: 8 MiB, on a Hopper GPU 32 MiB, and 1 MiB for cuBLASLt."""
CUDNN_BYTES = 128 * 2**20
"""Workspace of the convolution that needs most, while it runs."""
NCCL_BYTES = 300 * 10**6
"""Buffers of the channels between several processes."""
EXPANDABLE, SEGMENTS = 1.08, 1.15
"""What the allocator holds over what lives, with expandable segments and without; see docs/memory.md."""


@dataclass(frozen=True)
class Target:
    """A device for which memory is predicted.

    Attributes:
        kind: ``'cuda'`` or ``'cpu'``: whose rules of autocast hold.
        expandable: whether the allocator extends pieces of memory; see :mod:`sr_bigbatch.memory.allocator`.
        processes: of the run.
    """

    kind: str = 'cuda'
    expandable: bool = False
    processes: int = 1

    @staticmethod
    def of_training(kind: str, processes: int = 1) -> Target:
        """What a training will run on that is started here, with the allocator that it will have."""
        use_expandable_segments()
        return Target(kind, has_expandable_segments(), processes)

    @property
    def workspaces(self) -> dict[str, int]:
        """Bytes that libraries take through the allocator, by name; none on the CPU."""
        return {'cuBLAS': CUBLAS_BYTES, 'cuDNN': CUDNN_BYTES} if self.kind == 'cuda' else {}

    @property
    def besides(self) -> dict[str, int]:
        """Bytes that the allocator knows nothing of, by name; none on the CPU."""
        if self.kind != 'cuda':
            return {}
        one = {'CUDA context': CONTEXT_BYTES, 'kernels': KERNEL_BYTES}
        return {**one, 'NCCL': NCCL_BYTES} if self.processes > 1 else one

    @property
    def fragmentation(self) -> float:
        """What the allocator holds over what is allocated."""
        return SEGMENTS if self.kind == 'cuda' and not self.expandable else EXPANDABLE

    def total_bytes(self, live: float) -> float:
        """What the device must have for ``live`` bytes of tensors, as predicted."""
        return self.bytes_for(live + sum(self.workspaces.values()))

    def bytes_for(self, allocated: float) -> float:
        """What the device must have for a measured peak of what was allocated, which counts workspaces already."""
        return allocated * self.fragmentation + sum(self.besides.values())


CUDA = Target()
"""One GPU under torch's default allocator."""

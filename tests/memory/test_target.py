"""What a process takes from a device besides its tensors."""
from sr_bigbatch.memory.target import Target


def test_what_a_gpu_needs_besides_tensors_is_counted_by_name():
    one, several = Target('cuda'), Target('cuda', processes=2)
    assert set(one.besides) == {'CUDA context', 'kernels'} and set(several.besides) == {*one.besides, 'NCCL'}
    assert set(one.workspaces) == {'cuBLAS', 'cuDNN'} and not Target('cpu').workspaces and not Target('cpu').besides
    assert one.total_bytes(0) > sum(one.besides.values())
    assert one.total_bytes(10**9) == one.bytes_for(10**9 + sum(one.workspaces.values()))  # which a measured peak holds

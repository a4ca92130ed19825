"""What ``tools/bench_step.py`` and ``tools/bench_memory.py`` measure."""
import torch

from sr_bigbatch.tasks import bench
from sr_bigbatch.tasks.bench import BASELINE, contenders, draw_bytes, generators, images_per_second, rows


def test_basicsr_and_ours_take_turns(opt):
    speeds = images_per_second(contenders(opt, 32, 4, 2, 1), 1)
    assert len(speeds) == 5
    assert [row[2] for row in rows(speeds) if row[0] == BASELINE] == [1.0]
    assert all(row[1] > 0 for row in rows(speeds))


def test_the_generators_that_are_compared_compute_the_same(tmp_path):
    nets, image = generators(1), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        outputs = {name: net(image) for name, net in nets.items()}
    for output in outputs.values():
        torch.testing.assert_close(output, outputs['BasicSR'])
    assert draw_bytes({('float32', name): 1000 for name in nets}, tmp_path / 'bytes.png').stat().st_size > 5000


def test_benches_run_under_the_settings_of_a_training(monkeypatch, opt):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)  # a training in this process has switched it on
    monkeypatch.setattr(bench, '_step', lambda opt: lambda: seen.append(torch.backends.cudnn.benchmark))
    images_per_second({BASELINE: opt}, 1)
    assert seen == [True, True] and not torch.backends.cudnn.benchmark
    for net in generators(1).values():
        assert net.get_parameter('conv_body.weight').is_contiguous(memory_format=torch.channels_last)

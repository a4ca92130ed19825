"""A run whose memory ran out is stopped and resumed: micro-batches grow back in the iteration in which they would have."""
import json
import os
import signal

import pytest

from tests.hosts.test_reliability import _fork, _status, _write

TOTAL, QUIET = 9, 3


@pytest.fixture
def short(opt):
    """A run of a second that saves at every iteration."""
    del opt['val'], opt['datasets']['val']
    opt['train'].update(total_iter=TOTAL, micro_batch_size=2)
    opt['logger']['save_checkpoint_freq'] = 1
    opt['datasets']['train']['num_worker_per_gpu'] = 0
    return opt


def _watched(log, short_at, killed=None):
    """Have memory run out in an iteration, and write down how every batch was cut."""
    def prepare():
        import sr_bigbatch.hosts.basicsr.training.run as run
        original = run.Run.one

        def one(self, epoch, iteration, *arguments):
            original(self, epoch, iteration, *arguments)
            memory = self.model.step.trial.memory
            with log.open('a') as file:
                file.write(json.dumps([iteration, vars(memory.plan.now.micro)]) + '\n')
            if iteration == short_at:
                memory.plan.quiet = QUIET
                memory.plan.shrink('generator', 4)
            if iteration == killed:
                self.save(epoch, iteration)
                os.kill(os.getpid(), signal.SIGKILL)

        run.Run.one = one
    return prepare


def _progressive(opt, until):
    opt['datasets']['train'].update(type='ProgressivePairedImageDataset')
    opt['network_d'].update(type='GrowableVGGDiscriminator', norm='group')
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'growth': 'prepend',
                            'stages': [{'gt_size': 32, 'until': until}, {'gt_size': 64}]}]
    opt['train']['micro_batch_size'] = {'generator': 2, 'perceptual': 2, 'discriminator': 4}


@pytest.mark.parametrize(('border', 'short_at', 'killed'), [(None, 2, 4), (8, 2, 3), (1, 3, 5)])
def test_a_resumed_run_grows_back_when_it_would_have(short, tmp_path, border, short_at, killed):
    if border is not None:
        _progressive(short, border)
    file, whole, log = _write(short, tmp_path / 'run.yml'), tmp_path / 'whole', tmp_path / 'resumed'
    assert _status(_fork(['-opt', file], _watched(whole, short_at))) == 0
    assert _status(_fork(['-opt', file], _watched(log, short_at, killed))) == -signal.SIGKILL
    assert _status(_fork(['-opt', file, '--auto_resume'], _watched(log, None))) == 0
    assert log.read_text() == whole.read_text()
    sizes = [json.loads(line)[1]['generator'] for line in whole.read_text().splitlines()]
    assert len(sizes) == TOTAL and 1 in sizes[short_at:] and (border == 1 or sizes[short_at - 1] == 2)

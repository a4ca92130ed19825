import pytest
import torch
from torch import nn

from sr_bigbatch.progressive.stages import Stage, add_to_optimizer, parse_stages, stage_at

STAGES = [{'gt_size': 64, 'until': 10}, {'gt_size': 128, 'until': 20}, {'gt_size': 256}]


def test_a_stage_lasts_until_its_last_iteration():
    stages = parse_stages(STAGES)
    assert [stage_at(stages, i).gt_size for i in (1, 10, 11, 20, 21, 10**9)] == [64, 64, 128, 128, 256, 256]
    assert stages[-1] == Stage(256, None)


@pytest.mark.parametrize(('stages', 'message'), [
    ([], 'empty'),
    ([{'gt_size': 64}, {'gt_size': 128}], 'needs gt_size'),
    ([{'gt_size': 64, 'untill': 3}, {'gt_size': 128}], 'has the keys'),
    ([{'gt_size': 64, 'until': 10}, {'gt_size': 96}], 'must double'),
    ([{'gt_size': 128, 'until': 10}, {'gt_size': 64}], 'must double'),
    ([{'gt_size': 64, 'until': 10}, {'gt_size': 128, 'until': 10}, {'gt_size': 256}], 'cannot follow'),
])
def test_stages_that_make_no_sense_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        parse_stages(stages)


def test_new_parameters_join_the_optimizer_and_its_schedule_and_old_moments_stay():
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.Adam(old.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    old(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    moments = [state['exp_avg'].clone() for state in optimizer.state.values()]
    add_to_optimizer(optimizer, [scheduler], list(new.parameters()))
    scheduler.step()
    assert [group['lr'] for group in optimizer.param_groups] == [0.5, 0.5]
    assert all(torch.equal(state['exp_avg'], moment)
               for state, moment in zip(optimizer.state.values(), moments, strict=True))

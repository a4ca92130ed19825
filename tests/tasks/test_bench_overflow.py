"""What ``tools/bench_overflow.py`` measures."""
import math

import pytest

from sr_bigbatch.tasks.bench_overflow import draw_storm, share_of_checks, through_a_storm

pytestmark = pytest.mark.filterwarnings('ignore:.*lr_scheduler:UserWarning')  # GradScaler skips steps


def test_the_wrapper_trains_through_a_storm_in_which_the_grad_scaler_stands_still(opt, tmp_path):
    logs = through_a_storm(opt, 6, range(2, 5))
    scales = {name: [row['scale_g'] for row in rows] for name, rows in logs.items()}
    assert all(len(rows) == 6 and math.isfinite(rows[-1]['l_g_pix']) for rows in logs.values())
    assert scales['torch GradScaler'][-1] == scales['torch GradScaler'][0] / 2**3  # a skipped step each
    assert scales['OverflowSafeOptimWrapper'][-1] == scales['OverflowSafeOptimWrapper'][0]
    assert draw_storm(logs, range(2, 5), tmp_path / 'storm.png').stat().st_size > 5000


def test_every_check_that_is_counted_exists_and_they_are_a_part_of_a_step(opt):
    seconds, share = share_of_checks(opt, 2)
    assert seconds > 0
    assert 0 < share < 0.5

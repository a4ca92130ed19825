"""Some steps of an option file on a pretend GPU, as one JSON line.

    FOLDER/run tests/memory/steps_on_pretend_gpu.py OPTIONS.yml STEPS [SECTION:KEY=VALUE ...]

The batch is made of zeros, and VGG19 gets random weights: only memory is looked at.
"""
import json
import logging
import sys
import warnings
from pathlib import Path

import pretend
import torch

from sr_bigbatch.hosts.basicsr.outside_training import model_of, random_vgg
from sr_bigbatch.options import load, override


def main():
    path, steps, *changes = sys.argv[1:]
    warnings.simplefilter('ignore')
    logging.disable(logging.INFO)
    pretend.look_away()
    opt = load(path)
    override(opt, changes)
    opt['logger']['use_tb_logger'] = False
    torch.backends.cudnn.benchmark = True
    with random_vgg():
        model = model_of(opt, Path.cwd())
    data, scale = opt['datasets']['train'], opt['scale']
    sides = {'gt': data['gt_size'], 'lq': data['gt_size'] // scale}
    peaks, events = [], []
    for number in range(1, int(steps) + 1):
        pretend.reset()
        model.feed_data({name: torch.zeros(data['batch_size_per_gpu'], 3, side, side).pin_memory()
                         for name, side in sides.items()})
        model.optimize_parameters(number)
        memory = pretend.memory()
        peaks.append({'allocated': memory.allocated_peak, 'reserved': memory.reserved_peak,
                      'mallocs': pretend.counters().mallocs})
        events += [event.text for event in model.report.events]
    print(json.dumps({'peaks': peaks, 'events': events, 'flushes': memory.flushes, 'ooms': memory.ooms,
                      'used': memory.device_used}))


if __name__ == '__main__':
    main()

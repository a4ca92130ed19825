"""Plans as a table for people."""
from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from sr_bigbatch.memory.predict import Plan, choose

_CARDS = (4, 6, 8, 11, 12, 16, 24, 32, 40, 48, 80)  # GB
_GB = 2**30
_PHASES = {'generate': 'making images', 'judge': 'judging', 'grade': 'grading', 'learn': 'learning', 'commit': 'updating',
           'validate': 'validating'}

_COLUMNS = """\
generator keeps  what stays in memory of the generator's forward pass until its backward pass (network_g.activation_memory):
                 lean keeps most and computes nothing again, minimal keeps least and computes most again
its graphs       kept: images are made once and their graphs stay until the losses are known (train.kept_graphs=all);
                 made again: images are made twice, which takes less memory and more time (train.kept_graphs=0)
micro-batch      images that are worked on at a time (train.micro_batch_size); it changes memory and speed, not the result
memory           the most that the GPU is predicted to hold, in GB of 2^30 bytes: tensors, 4 percent that is lost
                 between them, and 0.6 GB for CUDA
fullest while    making images: the generator's forward pass; judging: the discriminator's pass; grading: the GAN losses;
                 learning: the backward passes; updating: the optimizers; validating: the largest validation image
work             computations of an iteration, over those of BasicSR's undivided iteration: 1.25 is a quarter more
images/s         """


def table(plans: Sequence[Plan], vram: float, flops_per_second: float | None = None) -> str:
    """The best cut of each policy, the chosen plan, and what the next bigger card would bring.

    Args:
        plans: all candidates of one stage.
        vram: memory of the GPU, in GB of 2^30 bytes, as cards are sold.
        flops_per_second: what the GPU sustains in convolutions; None leaves the images per second out.
    """
    chosen = choose(plans, vram * _GB)
    speed = '' if flops_per_second is None else f' {"images/s":>9}'
    lines = [f'{"generator keeps":15}  {"its graphs":10}  {"micro-batch":>11}  {"memory":>8}  {"fullest while":13}  '
             f'{"work":>5}{speed}']
    for memory, kept in dict.fromkeys((plan.memory, plan.kept) for plan in plans):
        mine = [plan for plan in plans if (plan.memory, plan.kept) == (memory, kept)]
        best = choose(mine, vram * _GB) or min(mine, key=lambda plan: plan.total_bytes)
        mark = '<- chosen' if best == chosen else '' if best.total_bytes <= vram * _GB else 'does not fit'
        phase = max(best.peak, key=best.peak.__getitem__)
        speed = '' if flops_per_second is None else f' {flops_per_second / best.work:9.3g}'
        lines.append(f'{memory:15}  {_graphs(kept):10}  {best.micro:11}  {best.total_bytes / _GB:5.2f} GB  '
                     f'{_PHASES.get(phase, phase):13}  {best.flops:5.2f}{speed}  {mark}'.rstrip())
    for card in (card for card in _CARDS if card > vram):
        plan = choose(plans, card * _GB)
        if plan and (chosen is None or plan.flops < chosen.flops - 0.005):
            lines.append(f'A GPU of {card} GB would do with {"less work" if chosen else "it"}: {plan.memory}, graphs '
                         f'{_graphs(plan.kept)}, micro-batch {plan.micro}, work {plan.flops:.2f}.')
            break
    return '\n'.join(lines)


def suggestion(stages: Mapping[int, Sequence[Plan]], vram: float) -> str | None:
    """What to add to the command line of a training so that all its stages fit, or None if no plan makes them.

    At a border the micro-batch shrinks by the area of the crops, and ``activation_memory`` stays: the plan that is chosen is
    the one with the least work over all stages.

    Args:
        stages: all candidates, by the crop size of each stage, the first one first.
        vram: memory of the GPU, in GB of 2^30 bytes.
    """
    (first, candidates), *later = stages.items()
    fitting = []
    for plan in candidates:
        run = [plan, *(_in_stage(plan, first, size, plans) for size, plans in later)]
        known = [each for each in run if each is not None and each.total_bytes <= vram * _GB]
        if len(known) == len(run):
            fitting.append((round(sum(each.flops for each in known), 3), -plan.micro, plan.options))
    return '--force_yml ' + shlex.join(min(fitting)[2]) if fitting else None


def _in_stage(plan: Plan, first: int, size: int, plans: Sequence[Plan]) -> Plan | None:
    """The plan that ``plan`` of the first stage becomes in the stage of another crop size."""
    wanted = plan.memory, plan.kept, max(1, plan.micro * first**2 // size**2)
    return next((other for other in plans if (other.memory, other.kept, other.micro) == wanted), None)


def _graphs(kept: bool) -> str:
    return 'kept' if kept else 'made again'


def describe(stages: Mapping[int, Sequence[Plan]], batch: int, vram: float, flops_per_second: float | None = None) -> str:
    """The tables of all stages, what can be pasted, and what the columns mean.

    Args:
        stages: all candidates, by the crop size of each stage, the first one first.
        batch: effective batch of a process, in samples.
        vram: memory of the GPU, in GB of 2^30 bytes.
        flops_per_second: what the GPU sustains in convolutions; None leaves the images per second out.
    """
    parts = [f'Crops of {size} px, effective batch {batch}, a GPU of {vram:g} GB:\n{table(plans, vram, flops_per_second)}'
             for size, plans in stages.items()]
    line = suggestion(stages, vram)
    parts.append(f'To train so, add:\n{line}' if line else
                 'No plan fits: it takes a larger GPU, smaller crops (gt_size) or smaller networks.')
    speed = ('not known; --tflops gives the speed of your GPU' if flops_per_second is None else
             f'at most so many, at {flops_per_second / 1e12:.3g} TFLOP/s; data and optimizers take time, too')
    return '\n\n'.join([*parts, _COLUMNS + speed])

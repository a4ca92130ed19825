"""Plans as a table for people."""
from __future__ import annotations

from collections.abc import Sequence

from sr_bigbatch.memory.predict import Plan, choose

_CARDS = (4, 6, 8, 11, 12, 16, 24, 32, 40, 48, 80)  # GB
_GB = 2**30


def table(plans: Sequence[Plan], vram: float, flops_per_second: float) -> str:
    """The best cut of each policy, the chosen plan, and what the next bigger card would bring.

    Args:
        plans: all candidates of one stage.
        vram: memory of the GPU, in GiB, as cards are sold.
        flops_per_second: what the device sustains in convolutions.
    """
    chosen = choose(plans, vram * _GB)
    lines = [f'{"activation_memory":18} {"graphs":9} {"micro-batch":>11} {"peak GB":>8} {"in":9} {"FLOPs":>6} '
             f'{"images/s":>9}']
    for memory, kept in dict.fromkeys((plan.memory, plan.kept) for plan in plans):
        mine = [plan for plan in plans if (plan.memory, plan.kept) == (memory, kept)]
        best = choose(mine, vram * _GB) or min(mine, key=lambda plan: plan.total_bytes)
        mark = '<- chosen' if best == chosen else '' if best.total_bytes <= vram * _GB else 'does not fit'
        lines.append(f'{memory:18} {"kept" if kept else "replayed":9} {best.micro:11} {best.total_bytes / _GB:8.2f} '
                     f'{max(best.peak, key=best.peak.__getitem__):9} {best.flops:6.3f} '
                     f'{flops_per_second / best.work:9.3g}  {mark}'.rstrip())
    if chosen:
        lines.append('--force_yml ' + ' '.join(chosen.options))
    for card in (card for card in _CARDS if card > vram):
        plan = choose(plans, card * _GB)
        if plan and (chosen is None or plan.flops < chosen.flops - 0.005):
            lines.append(f'With {card} GB: {plan.memory}, graphs {"kept" if plan.kept else "replayed"}, '
                         f'FLOPs {plan.flops:.3f}.')
            break
    return '\n'.join(lines)

"""mmengine's Runner with checkpoints that are whole, and that can be stopped without losing a step."""
from __future__ import annotations

import functools
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model.wrappers import is_model_wrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from sr_bigbatch.files.formats import refuse_not_finite
from sr_bigbatch.files.storage import BadFile, load_tensors, write_atomically
from sr_bigbatch.hosts.mmengine.types import Settings
from sr_bigbatch.hosts.signals import StopRequest
from sr_bigbatch.step.distributed import worst
from sr_bigbatch.step.finite import poisoned
from sr_bigbatch.system import leave_signals_to_parent, sync

_LAST = 'last_checkpoint'  # mmengine's file that names the newest


class RunEnded(RuntimeError):
    """The training ends before its last iteration; the message says why.

    Args:
        message: for the user.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def newest_whole(folder: Path, last: Path | None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that can be gone on from, and a line for each newer one: which, and why not.

    Args:
        folder: of the checkpoints.
        last: the one that mmengine says is the newest; it is looked at first.
    """
    numbered = [(int(found[1]), file) for file in folder.glob('*.pth')
                if (found := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', file.name))]
    files = [file for _, file in sorted(numbered, key=lambda each: (each[0], each[1].name), reverse=True)]
    passed_over: list[str] = []
    for file in dict.fromkeys([*([last] if last is not None else []), *files]):
        try:
            content = load_tensors(file)
            if not isinstance(content.get('meta'), Mapping) or not isinstance(content.get('state_dict'), dict):
                raise BadFile(f'{file} is no checkpoint of a Runner')
            refuse_not_finite(content['state_dict'], str(file))
        except ValueError as error:  # BadFile, or weights that are not finite
            passed_over.append(f'{file.name} is passed over: {error}')
        else:
            return file, passed_over
    return None, passed_over


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):  # type: ignore[misc]
    """mmengine's ``CheckpointHook``, but no old checkpoint is removed before the new one is whole.

    Args:
        **kwargs: as in mmengine.
    """

    max_keep_ckpts: int

    def _save_checkpoint_with_step(self, runner: SafeRunner, step: int, meta: Settings) -> None:
        keep, kept = self.max_keep_ckpts, getattr(self, 'keep_ckpt_ids', None)
        if keep <= 0 or kept is None:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        steps = [*(each for each in kept if each != step), step]
        runner.message_hub.update_info('keep_ckpt_ids', steps)
        self.max_keep_ckpts = -1  # mmengine would remove one now
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
        self.keep_ckpt_ids = deque(steps[-keep:], keep)
        for old in steps[:-keep]:
            self._remove(runner, old)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _remove(self, runner: SafeRunner, step: int) -> None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        try:
            if is_main_process() and self.file_backend.isfile(path):
                self.file_backend.remove(path)
        except OSError as error:
            runner.logger.warning(f'{path} could not be removed: {error}')

    def _save_checkpoint(self, runner: SafeRunner) -> None:
        super()._save_checkpoint(runner)
        if not self.by_epoch:
            runner.saved = runner.iter


class _Stop(Hook):  # type: ignore[misc]
    """Ends a run after the step in which a signal came, with a checkpoint of that step."""

    priority = 'LOWEST'  # after the checkpoint that is due in this iteration

    def after_train_iter(self, runner: SafeRunner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look for a signal in any process."""
        number = worst(runner.stop.signal, next(runner.model.parameters()).device)
        if number:
            runner.save_for_the_end()
            raise RunEnded(f'{signal.Signals(number).name}: iteration {runner.iter + 1} was finished and saved; '
                           '--resume goes on', 128 + number)


@RUNNERS.register_module()
class SafeRunner(Runner):  # type: ignore[misc]
    """mmengine's ``Runner``, for ``runner_type = 'SafeRunner'``; ``tools/train_mmengine.py`` takes it in any case.

    Checkpoints are written whole or not at all, and never with weights that are not finite. With ``resume`` the newest
    whole one is taken. SIGTERM, SIGINT and SIGUSR1 finish the step, save, and raise :class:`RunEnded`.

    Args:
        **kwargs: as in mmengine.

    Attributes:
        stop: knows of signals.
        saved: the index of the iteration after which the last checkpoint was written.
    """

    stop: StopRequest
    saved = -1
    _load_from: str | None
    _resume: bool

    def train(self) -> nn.Module:
        """Train.

        Raises:
            RunEnded: if a signal or weights that are not finite end it.
        """
        with StopRequest() as self.stop:
            self.register_hook(_Stop())
            trained: nn.Module = super().train()
        if self.stop.signal:
            raise RunEnded(f'{signal.Signals(self.stop.signal).name} came after the last iteration; all is saved',
                           128 + self.stop.signal)
        return trained

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register mmengine's hooks, with ours in the place of ``CheckpointHook``."""
        given = dict(hooks or {})
        settings = given.get('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
        if isinstance(settings, dict) and settings.get('type') == 'CheckpointHook':
            given['checkpoint'] = {**settings, 'type': 'SafeCheckpointHook'}
        super().register_default_hooks(given)

    @staticmethod
    def build_dataloader(dataloader: DataLoader[Any] | Settings, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Build a loader whose workers leave signals to this process."""
        loader: DataLoader[Any] = Runner.build_dataloader(dataloader, *args, **kwargs)
        loader.worker_init_fn = functools.partial(_start_worker, loader.worker_init_fn)
        return loader

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint whole, or not at all.

        Raises:
            RunEnded: if a weight is not finite; nothing is written then.
        """
        model = self.model.module if is_model_wrapper(self.model) else self.model
        broken = poisoned(model)
        if broken:
            raise RunEnded(f'{broken[0]} and {len(broken) - 1} more tensors are not finite, so nothing is saved any more; '
                           '--resume goes on from the newest checkpoint')
        if '://' in str(out_dir):  # not a folder of this machine
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        place, part = Path(out_dir) / filename, Path(out_dir) / f'.{filename}.part'
        try:
            super().save_checkpoint(out_dir, part.name, *args, **kwargs)
            if is_main_process():
                sync(part)
                os.replace(part, place)
                sync(part.parent)
        finally:
            if is_main_process():
                part.unlink(missing_ok=True)

    def save_for_the_end(self) -> None:
        """Save after the running iteration, unless that has been done."""
        if self.saved == self.iter:
            return
        folder, name = self._checkpoints(), f'iter_{self.iter + 1}.pth'
        self.save_checkpoint(str(folder), name, by_epoch=False)
        if is_main_process():
            write_atomically(lambda file: file.write(str(folder / name).encode()), Path(self.work_dir) / _LAST)

    def _checkpoints(self) -> Path:
        """Where the checkpoint hook writes."""
        found = [hook.out_dir for hook in self.hooks if isinstance(hook, CheckpointHook) and hook.out_dir]
        return Path(found[0] if found else self.work_dir)

    def load_or_resume(self) -> None:
        """Load or resume as mmengine does, but pass over checkpoints that are torn or not finite.

        Raises:
            BadFile: if the one that ``load_from`` names is torn or hostile.
        """
        if self._load_from is not None and '://' not in str(self._load_from):
            load_tensors(Path(self._load_from))
        elif self._load_from is None and self._resume and not self._has_loaded:
            last = Path(self.work_dir) / _LAST
            text = last.read_text(encoding='utf-8', errors='replace').strip() if last.is_file() else ''
            named = Path(text) if text else None
            folder = named.parent if named is not None and named.parent.is_dir() else self._checkpoints()
            found, passed_over = newest_whole(folder, named)
            for line in passed_over:
                self.logger.warning(line)
            if found is not None:
                self._load_from = str(found)
            self._resume = found is not None
        super().load_or_resume()


def _start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    leave_signals_to_parent(worker)
    if then is not None:
        then(worker)

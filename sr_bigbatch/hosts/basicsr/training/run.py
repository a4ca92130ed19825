"""One BasicSR training on its way: step, log, save, validate."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from basicsr.utils import MessageLogger, get_root_logger
from tqdm import tqdm

from sr_bigbatch.files.checkpoint_set import fault, newest_valid
from sr_bigbatch.hosts.basicsr.model.host import Batch
from sr_bigbatch.hosts.basicsr.model.saved_state import GaveUp
from sr_bigbatch.hosts.basicsr.settings import LoopSettings, Options
from sr_bigbatch.hosts.basicsr.training.loader import seed_everything
from sr_bigbatch.hosts.basicsr.training.pictures import validation_picture
from sr_bigbatch.hosts.signals import StopRequest
from sr_bigbatch.memory.device import peak_bytes
from sr_bigbatch.report.run_log import LOG_FILE
from sr_bigbatch.step.distributed import rank, world_size, worst

_MOST_FAILED_SAVES = 3


class Run:
    """What is done in an iteration, with its counters.

    Args:
        opt: complete options, for BasicSR's logger.
        settings: of the loop.
        model: of BasicSR or ours.
        val_loaders: one for each validation set.
        tb_logger: TensorBoard writer or None.
        iteration: the last one that is already done.
        stop: what takes signals.
    """

    def __init__(self, opt: Options, settings: LoopSettings, model: Any, val_loaders: list[Any], tb_logger: Any,
                 iteration: int, stop: StopRequest) -> None:
        self.stop = stop
        self.opt, self.settings = opt, settings
        self.model, self.val_loaders, self.tb_logger = model, val_loaders, tb_logger
        self.messages = MessageLogger(opt, iteration, tb_logger)
        self.messages.max_iters += 1  # BasicSR's ETA is one iteration short: below zero at the last one
        self.bar = tqdm(total=settings.total_iter, initial=iteration, unit='it', dynamic_ncols=True,
                        disable=rank() != 0 or not sys.stderr.isatty())
        self.since, self.waited, self.count, self.images = time.perf_counter(), 0.0, 0, 0
        self.log_file = settings.folder / LOG_FILE
        self.failed_saves = self.unreadable = 0
        self.told = set[str]()  # what has failed beside the training
        self.saved: int | None = None  # the iteration of the last save of this run

    def one(self, epoch: int, iteration: int, batch: Batch, waited: float) -> None:
        """Make one iteration and what is due after it."""
        settings = self.settings
        # A resumed run draws the same numbers, on the GPU, too.
        seed_everything(settings.seed + iteration * world_size() + rank(), self.model.device)
        self.model.update_learning_rate(iteration, warmup_iter=settings.warmup_iter)
        for names in filter(None, batch.pop('unreadable', [])):
            get_root_logger().warning(f'Iteration {iteration}: cannot be read, the next image stands in: {names}')
            self.unreadable += 1
        self.model.feed_data(batch)
        self.model.optimize_parameters(iteration)
        for event in getattr(getattr(self.model, 'report', None), 'events', ()):
            self._write_beside({'iter': iteration, 'event': event.kind, 'part': event.part, 'text': event.text})
        self.waited, self.count = self.waited + waited, self.count + 1
        self.images += len(self.model.lq) * world_size()
        self.bar.update()
        last = iteration == settings.total_iter
        if iteration % settings.print_every == 0 or last:
            self._log(epoch, iteration)
        if iteration % settings.save_every == 0:
            get_root_logger().info('Saving models and training states.')
            self.save(epoch, iteration)
        if settings.validate_every and iteration % settings.validate_every == 0 and not last:
            self.validate(iteration)

    def save(self, epoch: int, iteration: int, *, last: bool = False) -> None:
        """Save, unless it has been done; if that fails, go on, unless it fails three times in a row or is the ``last`` save.

        Raises:
            GaveUp: if the training would be lost.
        """
        failure, root = '', self.settings.folder
        if iteration == self.saved and not worst(int(rank() == 0 and fault(root, iteration) is not None), self.model.device):
            return
        try:
            self.model.save(epoch, iteration)
        except OSError as error:
            failure = str(error)
            newest, _ = newest_valid(root)
            left = f'the newest whole save is that of iteration {newest.stem}' if newest else 'no whole save is there'
            get_root_logger().error(f'The save of iteration {iteration} has failed, {left}: {failure}')
        if not worst(int(bool(failure)), self.model.device):
            self.failed_saves, self.saved = 0, iteration
            return
        self.failed_saves += 1
        if last or self.failed_saves >= _MOST_FAILED_SAVES:
            raise GaveUp(f'saving has failed ({failure}). Make room or mend the folder, then --auto_resume')

    def _log(self, epoch: int, iteration: int) -> None:
        losses, rates = self.model.get_current_log(), self.model.get_current_learning_rate()
        seconds = (time.perf_counter() - self.since) / self.count
        speed = {'images_per_s': self.images / self.count / seconds, 'peak_gb': peak_bytes(self.model.device) / 1e9}
        self.bar.set_postfix({'images/s': f'{speed["images_per_s"]:.1f}', 'lr': f'{rates[0]:.1e}',
                              'peak GB': f'{speed["peak_gb"]:.1f}',
                              **{name: f'{value:.3g}' for name, value in losses.items() if name.startswith('l_')}})
        self.beside('TensorBoard', lambda: self.messages({
            'epoch': epoch, 'iter': iteration, 'lrs': rates, 'time': seconds, 'data_time': self.waited / self.count,
            **losses, **speed}))
        each = {f'lr_{name}': optimizer.param_groups[0]['lr']
                for name, optimizer in zip('gd', self.model.optimizers, strict=False)}
        for name, rate in each.items() if self.tb_logger else ():
            self.beside('TensorBoard', partial(self.tb_logger.add_scalar, name, rate, iteration))
        shown = {'batch': len(self.model.lq) * world_size(), 'gt_size': self.model.gt.shape[-1],
                 **({'n_unreadable': self.unreadable} if self.unreadable else {})}
        each['lr'] = each.pop('lr_g')
        self._write_beside({'iter': iteration, 'epoch': epoch, **each, **losses, **speed, **shown})
        self.since, self.waited, self.count, self.images = time.perf_counter(), 0.0, 0, 0

    def validate(self, iteration: int) -> None:
        """Validate on every validation set and write down the metrics; what fails in it does not end the training."""
        for loader in self.val_loaders if self.settings.validate_every else []:
            before, name = time.perf_counter(), loader.dataset.opt['name']
            try:
                self.model.validation(UntilAsked(loader, self.stop), iteration, self.tb_logger, self.settings.save_images)
                metrics = getattr(self.model, 'metric_results', {})
                if metrics:
                    self._write_beside({'iter': iteration, 'val': name,
                                        **{key: float(value) for key, value in metrics.items()}})
                self.beside('TensorBoard', partial(self._show, name, loader, iteration))
            except Asked:
                get_root_logger().warning(f'Iteration {iteration}: the validation on {name} is left because of a signal.')
            except Exception as error:  # such as NIQE's, of the flat image of an untrained network; a full disk; a bad image
                get_root_logger().warning(f'Iteration {iteration}: the images of {name} could not be judged '
                                          f'({type(error).__name__}: {error}); the training goes on.')
            self.model.net_g.train()  # if the host was interrupted in its test
            self.since += time.perf_counter() - before

    def _show(self, name: str, loader: Any, iteration: int) -> None:
        picture = validation_picture(self.model, loader, self.opt['scale']) if self.tb_logger else None
        if picture is not None:
            self.tb_logger.add_image(f'images/{name}', picture, iteration, dataformats='HWC')

    def beside(self, what: str, work: Callable[[], object]) -> None:
        """Do what the training does not hang on; if it fails, as on a full disk, that is said once."""
        try:
            work()
        except Exception as error:
            if what not in self.told:
                self.told.add(what)
                get_root_logger().warning(f'{what} cannot be written ({type(error).__name__}: {error}); the training goes '
                                          'on.')

    def _write_beside(self, record: Mapping[str, object]) -> None:
        self.beside(LOG_FILE, lambda: self._write(record))

    def _write(self, record: Mapping[str, object]) -> None:
        if rank() == 0:
            with self.log_file.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')


class Asked(Exception):
    """A signal asks for the end."""


class UntilAsked:
    """A loader that ends with :class:`Asked` when a signal has come: a validation may take longer than a host waits.

    Args:
        loader: of validation images.
        stop: what takes the signals.
    """

    def __init__(self, loader: Any, stop: StopRequest) -> None:
        self.loader, self.stop = loader, stop
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """The loader's batches."""
        for batch in self.loader:
            if self.stop.signal:
                raise Asked
            yield batch

"""Memory that runs out in mid-step costs time and nothing else."""
import copy
import gc
import random
import weakref

import pytest
import torch

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.batch import Batch
from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.out_of_memory import OutOfMemory, is_device_full, is_out_of_memory
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.supervised_step import SupervisedStep
from sr_bigbatch.step.update import SafeUpdate, Verdict
from tests.reference import checked, make_case, pixel_loss

FORMS = [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'),
         RuntimeError('CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total capacity)'),
         RuntimeError('CUDA error: out of memory'),
         RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
         RuntimeError('FIND was unable to find an engine to execute this computation'),
         RuntimeError('cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear '),
         RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
         RuntimeError('CUDA driver error: out of memory'),
         RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED'),
         RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED'),
         RuntimeError('cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`'),
         torch.distributed.DistBackendError('NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.27.5\n'
                                            "Last error:\nCuda failure 2 'out of memory'"),
         torch.distributed.DistBackendError("ncclUnhandledCudaError: Last error:\nCuda failure 'out of memory'"),
         torch.distributed.DistBackendError('Last error:\nFailed to CUDA calloc async 608 bytes')]
AMBIGUOUS = ['CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`',
             'cuDNN error: CUDNN_STATUS_NOT_INITIALIZED', 'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR',
             'cuDNN error: CUDNN_STATUS_EXECUTION_FAILED']
OTHERS = [RuntimeError('pinned memory could not be freed'), ValueError('CUDA out of memory'), RuntimeError('shape mismatch'),
          RuntimeError('CUDA error: an illegal memory access was encountered'),
          RuntimeError('CUDA error: misaligned address. The memory of the GPU is fine'),
          RuntimeError('CUDA driver error: invalid argument'), RuntimeError("Cuda failure 1 'invalid argument'"),
          RuntimeError('cuDNN error: CUDNN_STATUS_BAD_PARAM'), RuntimeError('CUSOLVER_STATUS_INTERNAL_ERROR'),
          OutOfMemory('CUDA out of memory, and nothing can be made smaller')]


class Faults:
    """Raises at chosen ones of the moments at which the parts of a step do something."""

    def __init__(self, step, at=(), form=None):
        self.moments, self.at, self.form = 0, set(at), form
        for net in (step.net_g, getattr(step, 'net_d', None)):
            if net is not None:
                net.register_forward_pre_hook(lambda *_: self.moment())
                net.register_forward_hook(lambda *_: self.moment())
                for parameter in random.sample(list(net.parameters()), 3):
                    parameter.register_hook(lambda gradient: self.moment())
        losses, reserve = step.losses, step.update_g.reserve
        step.losses = lambda *images: (self.moment(), losses(*images))[1]
        step.update_g.reserve = lambda: (self.moment(), reserve())[1]

    def moment(self):
        self.moments += 1
        if self.moments - 1 in self.at:
            raise copy.copy(self.form)


def _step(case, plan):
    net_g, net_d, optimizers = case._copies()
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (net_g, net_d)]
    updates = [SafeUpdate(optimizer) for optimizer in optimizers]
    return checked(AdversarialStep(net_g, net_d, *updates, pixel_loss, case.gan_loss, plan=plan), case.lq, case.gt)


def _state(step):
    nets = [step.net_g, step.net_d] if hasattr(step, 'net_d') else [step.net_g]
    return [tensor.clone() for net in nets for tensor in net.state_dict().values()]


def _equal(step, other):
    return all(torch.equal(a, b) for a, b in zip(_state(step), _state(other), strict=True))


@pytest.mark.parametrize('trial', range(100))
def test_the_update_is_that_of_an_undisturbed_step(trial):
    random.seed(trial)
    discriminator = random.choice(['none', 'group', 'spectral', 'batch', 'unet'])
    case = make_case(discriminator, 'vanilla', True, 5, torch.float64, trial)
    sizes = MicroBatchSizes(random.choice([2, 3, 5]), random.choice([2, 4]), 5 if discriminator == 'batch' else 3)
    plan = StepPlan(sizes, kept_graphs=random.choice([0, 1, 5]))
    counting = _step(case, plan)
    faults = Faults(counting)
    counting(case.lq, case.gt)
    at = random.sample(range(faults.moments), 1 if discriminator == 'batch' else random.choice([1, 1, 2]))
    disturbed = _step(case, plan)
    before = torch.get_rng_state()
    Faults(disturbed, at, random.choice(FORMS))
    report = disturbed(case.lq, case.gt)
    torch.set_rng_state(before)
    undisturbed = _step(case, disturbed.plan)
    undisturbed(case.lq, case.gt)
    assert _equal(disturbed, undisturbed)
    assert report.verdicts == {'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}
    assert [event.kind for event in report.events] == ['out of memory'] * len(report.events) and report.events
    assert disturbed.plan != plan or discriminator == 'batch'  # which must see the whole batch
    assert disturbed.trial.memory.plan.wanted == plan


@pytest.mark.parametrize('trial', range(10))
def test_the_same_without_discriminator(trial):
    case = make_case(seed=trial)
    plan = StepPlan(MicroBatchSizes(4, 4, 4))

    def make(plan):
        net = copy.deepcopy(case.net_g)
        step = SupervisedStep(net, SafeUpdate(torch.optim.Adam(net.parameters())), pixel_loss, plan=plan)
        return checked(step, case.lq, case.gt)

    random.seed(trial)
    disturbed = make(plan)
    Faults(disturbed, [trial], FORMS[trial % len(FORMS)])
    disturbed(case.lq, case.gt)
    undisturbed = make(disturbed.plan)
    undisturbed(case.lq, case.gt)
    assert _equal(disturbed, undisturbed)
    assert disturbed.plan.micro.generator == 2


@pytest.mark.parametrize('supervised', [False, True])
@pytest.mark.parametrize('which', [1, 2])
def test_the_images_of_the_whole_batch_may_not_fit_either(monkeypatch, supervised, which):
    case, made = make_case(), []
    plan = StepPlan(MicroBatchSizes(4, 4, 4))
    step = _step(case, plan)
    if supervised:
        step = checked(SupervisedStep(step.net_g, step.update_g, pixel_loss, plan=plan), case.lq, case.gt)

    def full_at_first(*arguments):
        made.append(arguments)
        if len(made) == which:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')
        return Batch(*arguments)

    monkeypatch.setattr(f'sr_bigbatch.step.{"supervised" if supervised else "adversarial"}_step.Batch', full_at_first)
    reports = [step(case.lq, case.gt) for _ in range(2)]
    assert [event.kind for event in reports[which - 1].events] == ['out of memory'] and step.plan.micro.generator == 2
    assert reports[1].verdicts['g'] is Verdict.COMMITTED


@pytest.mark.parametrize('error', FORMS, ids=str)
def test_each_form_of_a_lack_of_memory_is_known_whatever_is_free(error):
    assert is_out_of_memory(error, is_full=lambda: False)


@pytest.mark.parametrize('message', AMBIGUOUS)
def test_messages_with_other_causes_count_on_a_full_device_only(message):
    assert is_out_of_memory(RuntimeError(message), is_full=lambda: True)
    assert not is_out_of_memory(RuntimeError(message), is_full=lambda: False)
    assert not is_out_of_memory(RuntimeError(message))  # without a GPU none is full


@pytest.mark.parametrize(('free', 'full'), [(0, True), (100 * 2**20, True), (2 * 2**30, False), (None, False)])
def test_a_device_is_full_where_a_library_finds_no_room_to_set_itself_up(monkeypatch, free, full):
    def mem_get_info():
        if free is None:
            raise RuntimeError('CUDA error: an illegal memory access was encountered')
        return free, 8 * 2**30

    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', mem_get_info)
    assert is_device_full() is full


@pytest.mark.parametrize('error', OTHERS, ids=str)
def test_an_error_that_only_mentions_memory_stays_an_error(error):
    assert not is_out_of_memory(error, is_full=lambda: True)


def test_other_errors_are_not_swallowed():
    case = make_case()
    step = _step(case, StepPlan(MicroBatchSizes(2, 2, 2)))
    before = _state(step)
    Faults(step, [5], RuntimeError('pinned memory could not be freed'))
    with pytest.raises(RuntimeError, match='pinned'):
        step(case.lq, case.gt)
    assert all(torch.equal(a, b) for a, b in zip(before, _state(step), strict=True))


@pytest.mark.parametrize(('discriminator', 'sizes', 'reason'), [('group', (1, 1, 1), 'it is 1'),
                                                               ('batch', (1, 1, 5), 'must see the whole batch')])
def test_where_nothing_can_be_made_smaller_it_says_so_and_nothing_has_changed(discriminator, sizes, reason):
    case = make_case(discriminator)
    step = _step(case, StepPlan(MicroBatchSizes(*sizes)))
    step.net_d.register_forward_hook(lambda *_: (_ for _ in ()).throw(copy.copy(FORMS[0])))
    before = _state(step)
    with pytest.raises(OutOfMemory, match=f'{reason}.*tools/plan.py'):
        step(case.lq, case.gt)
    running = [(a, b) for a, b in zip(before, _state(step), strict=True) if a.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in running)


def test_activations_are_dead_before_the_second_attempt():
    case = make_case()
    step, alive, seen = _step(case, StepPlan(MicroBatchSizes(5, 5, 5), kept_graphs=5)), [], []

    def watch(net, inputs, output):
        seen.append([reference() is not None for reference in alive])
        alive.append(weakref.ref(output))
        if len(alive) == 1:
            raise copy.copy(FORMS[0])

    step.net_g.register_forward_hook(watch)
    gc.disable()  # what dies has to die by reference counting, or in `release`
    try:
        step(case.lq, case.gt)
    finally:
        gc.enable()
    assert seen[1] == [False]


def test_the_plan_grows_back_after_a_quiet_time_and_waits_longer_if_that_fails():
    wanted = StepPlan(MicroBatchSizes(8, 4, 4), kept_graphs=3)
    plan = ElasticPlan(wanted, quiet=3)
    for _ in range(3):
        plan.shrink('generator', 8)
    plan.shrink('generator', 8)
    assert plan.now == StepPlan(MicroBatchSizes(1, 4, 4), kept_graphs=0)
    sizes = []
    for _ in range(12):
        plan.grow_back(8)
        sizes.append((plan.now.micro.generator, plan.now.kept_graphs))
    assert sizes == [(1, 0)] * 2 + [(2, 0)] * 3 + [(4, 0)] * 3 + [(8, 0)] * 3 + [(8, 3)]
    assert plan.now == wanted and plan.grow_back(8) is None
    plan.shrink('generator', 8)
    assert plan.quiet == 6 and plan.now.micro.generator == 4


class _Averaging(torch.optim.AdamW):
    """Keeps a state of its own that every call of ``step`` moves, as schedule-free optimizers do."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group['params']:
                state = self.state[parameter]
                state['average'] = state.get('average', parameter.detach().clone()).lerp(parameter.detach(), 0.1)


@pytest.mark.parametrize('kind', [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.SGD,
                                  _Averaging])
def test_memory_for_the_first_commit_is_reserved_without_touching_the_optimizer(kind):
    case = make_case()
    step, (net_g, net_d, _) = _step(case, StepPlan(MicroBatchSizes(2, 2, 2))), case._copies()
    step.update_g.optimizer, step.update_d.optimizer = (kind(net.parameters(), lr=1e-3) for net in (step.net_g, step.net_d))
    optimizers = [kind(net.parameters(), lr=1e-3) for net in (net_g, net_d)]
    step.update_g.reserve()
    assert not step.update_g.optimizer.state
    step(case.lq, case.gt)
    case.undivided((net_g, net_d, optimizers))
    for optimizer, expected in ((step.update_g.optimizer, optimizers[0]), (step.update_d.optimizer, optimizers[1])):
        states = (list(each.state_dict()['state'].values()) for each in (optimizer, expected))
        for ours, theirs in zip(*states, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-12)


def test_memory_that_runs_out_while_weights_change_ends_the_run():
    net = torch.nn.Linear(3, 1)
    update = SafeUpdate(torch.optim.Adam(net.parameters()))
    update.optimizer.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(copy.copy(FORMS[0])))
    net(torch.ones(1, 3)).sum().backward()
    with pytest.raises(OutOfMemory, match='--auto_resume'):
        update.commit()

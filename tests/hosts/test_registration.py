"""``import sr_bigbatch`` alone registers the components, whichever host is imported, and costs nothing before."""
import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

MEND_ALONE = f'''
import importlib.util
spec = importlib.util.spec_from_file_location('compat', {str(ROOT / "sr_bigbatch" / "hosts" / "compat.py")!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
compat.mend_torchvision()
'''
"""Stands in for an environment in which BasicSR can be imported as it is."""

FAST = {
    'plugin, BasicSR': 'import sr_bigbatch\nimport basicsr',
    'BasicSR, plugin': f'{MEND_ALONE}\nimport basicsr\nimport sr_bigbatch',
    'plugin, mmengine': 'import sr_bigbatch\nimport mmengine',
    'custom_imports of mmengine': "import mmengine.utils\nmmengine.utils.import_modules_from_strings(['sr_bigbatch'])",
    'an adapter to BasicSR': 'import sr_bigbatch.hosts.basicsr.build',
}
SLOW = {
    'plugin, a module of BasicSR': 'import sr_bigbatch\nfrom basicsr.models.esrgan_model import ESRGANModel',
    'plugin, a module of mmengine': 'import sr_bigbatch\nfrom mmengine.hooks import Hook',
    'mmengine, plugin': 'import mmengine\nimport sr_bigbatch',
    'mmengine, BasicSR, plugin': f'{MEND_ALONE}\nimport mmengine\nimport basicsr\nimport sr_bigbatch',
    'register': 'from sr_bigbatch import register\nregister()\nregister()',
    'install': 'import sr_bigbatch\nsr_bigbatch.install()\nsr_bigbatch.install()',
    'the step, BasicSR': 'from sr_bigbatch import AdversarialStep\nimport basicsr',
    'an adapter to mmengine': 'import sr_bigbatch.hosts.mmengine.optim_wrapper',
}
PROGRAM = '''
import json, sys, warnings
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as said:
    {order}
missing = []
if 'basicsr' in sys.modules:
    from basicsr.utils import registry
    missing += [name for kind, names in {{
        'ARCH': ('CheckpointedRRDBNet', 'GrowableVGGDiscriminator'), 'DATASET': ('ProgressivePairedImageDataset',),
        'MODEL': ('AccumulatingSRModel', 'AccumulatingESRGANModel', 'AccumulatingRealESRNetModel',
                  'AccumulatingRealESRGANModel'), 'METRIC': ('calculate_perceptual_distance',),
    }}.items() for name in names if name not in getattr(registry, kind + '_REGISTRY')]
import mmengine.registry
missing += [name for kind, names in {{
    'OPTIM_WRAPPERS': ('OverflowSafeOptimWrapper',), 'HOOKS': ('ProgressiveResolutionHook',),
    'MODELS': ('AccumulatingESRGAN', 'CheckpointedRRDBNet'), 'DATASETS': ('ProgressivePairedImageDataset',),
}}.items() for name in names if name not in getattr(mmengine.registry, kind).module_dict]
left = [repr(finder) for finder in sys.meta_path if 'sr_bigbatch.registration' in repr(finder)]
print(json.dumps({{'missing': missing, 'left': left,
                   'mended': [str(warning.message) for warning in said if warning.category.__name__ == 'CompatWarning']}}))
'''
WITH_TORCH_ALONE = '''
import sys
HIDDEN = {'basicsr', 'mmengine', 'mmagic', 'realesrgan', 'torchvision', 'numpy', 'cv2', 'lmdb', 'yaml', 'safetensors',
          'scipy', 'skimage', 'matplotlib', 'tqdm', 'PIL', 'jsonschema', 'addict'}
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *where):
        return None if name.split('.')[0] in HIDDEN else self.finder.find_spec(name, *where)
sys.meta_path[:] = map(Hiding, sys.meta_path)
'''


def run(program, *options):
    """Run a program in a fresh process; returns what it did."""
    return subprocess.run([sys.executable, *options, '-c', program], capture_output=True, text=True, check=True, cwd=ROOT)


@pytest.mark.parametrize('order', [*FAST, *(pytest.param(order, marks=pytest.mark.slow) for order in SLOW)])
def test_every_order_of_imports_registers_every_component_and_tells_of_each_mend_once(order):
    done = run(PROGRAM.format(order={**FAST, **SLOW}[order].replace('\n', '\n    ')))
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['missing'] == result['left'] == []
    assert len(result['mended']) == len(set(result['mended']))
    if MEND_ALONE not in FAST.get(order, SLOW.get(order)):
        assert any('functional_tensor' in what for what in result['mended'])


def test_the_import_alone_loads_and_mends_nothing():
    done = run('import sys, warnings\nwarnings.simplefilter("error")\nimport sr_bigbatch\nprint(sorted(sys.modules))')
    assert not [name for name in ('torch', 'basicsr', 'mmengine', 'cv2', 'numpy') if f"'{name}'" in done.stdout]


def test_a_host_that_is_imported_keeps_its_own_loader():
    done = run('import sr_bigbatch, mmengine, inspect\nprint(mmengine.__loader__ is mmengine.__spec__.loader, '
               'type(mmengine.__loader__).__name__, "__version__" in inspect.getsource(mmengine))')
    assert done.stdout.split() == ['True', 'SourceFileLoader', 'True']


def test_a_failed_registration_fails_again_with_the_same_reason():
    done = run('''
import sys
import sr_bigbatch
sys.modules['sr_bigbatch.hosts.mmengine.hook'] = None
for attempt in range(2):
    try:
        sr_bigbatch.register()
    except ImportError as error:
        print('sr_bigbatch.hosts.mmengine.hook' in str(error))
''')
    assert done.stdout.split() == ['True', 'True']


def test_the_public_names_work_with_torch_alone():
    done = run(WITH_TORCH_ALONE + '''
import warnings
warnings.filterwarnings('ignore', message='Failed to initialize NumPy')
import torch
import sr_bigbatch
from sr_bigbatch import *
for name in sr_bigbatch.__all__:
    assert name in dir(sr_bigbatch) and callable(getattr(sr_bigbatch, name)), name
try:
    sr_bigbatch.no_such_name
except AttributeError as error:
    print(error)
net = CheckpointedRRDBNet(3, 3, num_feat=4, num_block=1, num_grow_ch=4)
step = SupervisedStep(net, torch.optim.Adam(net.parameters()), lambda output, gt, lq: {'l1': (output - gt).abs().mean()},
                      micro_batch_size=2)
print(float(step(torch.rand(3, 3, 8, 8), torch.rand(3, 3, 32, 32)).losses['l1']) > 0)
''')
    assert done.stdout.splitlines() == ["module 'sr_bigbatch' has no attribute 'no_such_name'", 'True']


def test_the_public_step_costs_little_beside_torch():
    seconds = []
    for _ in range(3):  # the machine may be busy
        done = run('import torch\nfrom sr_bigbatch import AdversarialStep', '-X', 'importtime')
        lines = [line.split('|') for line in done.stderr.splitlines() if line.startswith('import time:')]
        names = [name for _, _, name in lines]
        after_torch = lines[names.index(' torch') + 1:]
        seconds.append(sum(int(own.split(':')[1]) for own, _, _ in after_torch) / 1e6)
    assert min(seconds) < 0.2, seconds


def test_what_is_not_broken_is_not_mended(recwarn):
    from sr_bigbatch.hosts.compat import CompatWarning, mend_torchvision
    mend_torchvision()
    assert not [warning for warning in recwarn if isinstance(warning.message, CompatWarning)]

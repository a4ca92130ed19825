"""``import sr_bigbatch`` alone registers the components."""
import json
import subprocess
import sys

PROGRAM = '''
import json, warnings
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as said:
    import sr_bigbatch
    sr_bigbatch.install()
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
print(json.dumps({
    'missing': [name for registry, names in (
        (ARCH_REGISTRY, ('CheckpointedRRDBNet', 'GrowableVGGDiscriminator')),
        (MODEL_REGISTRY, ('AccumulatingSRModel', 'AccumulatingESRGANModel')),
        (DATASET_REGISTRY, ('ProgressivePairedImageDataset',)),
        (OPTIM_WRAPPERS.module_dict, ('OverflowSafeOptimWrapper',)),
        (HOOKS.module_dict, ('ProgressiveResolutionHook',))) for name in names if name not in registry],
    'mended': [str(warning.message) for warning in said if warning.category.__name__ == 'CompatWarning'],
}))
'''


def test_a_bare_import_finds_every_component_and_tells_of_each_mend_once():
    done = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['missing'] == []
    assert len(result['mended']) == len(set(result['mended']))
    assert any('functional_tensor' in what for what in result['mended'])


def test_what_is_not_broken_is_not_mended(recwarn):
    from sr_bigbatch.hosts.compat import CompatWarning, mend_torchvision
    mend_torchvision()
    assert not [warning for warning in recwarn if isinstance(warning.message, CompatWarning)]

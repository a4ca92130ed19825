"""Rules of the layout."""
import ast
import importlib

import pytest

from tests.conftest import ROOT

PACKAGE = sorted((ROOT / 'sr_bigbatch').rglob('*.py'))
PLAIN = [path for path in PACKAGE if path.relative_to(ROOT).parts[1] in ('step', 'memory', 'files', 'progressive', 'nets')]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ''


@pytest.mark.parametrize('path', PLAIN, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_plain_folders_import_no_host(path):
    import sys
    allowed = {*sys.stdlib_module_names, 'torch', 'numpy', 'safetensors', 'sr_bigbatch'}
    for name in _imports(path):
        top = name.split('.')[0]
        assert not top or top in allowed or (path.parent / f'{top}.py').exists(), name
        assert not name.startswith('sr_bigbatch.hosts')


def test_only_the_adapters_import_a_host():
    for path in PACKAGE:
        if path.relative_to(ROOT).parts[1] not in ('hosts', 'tasks'):
            hosts = {'basicsr', 'mmengine', 'mmagic', 'cv2', 'lmdb'}
            assert not hosts & {name.split('.')[0] for name in _imports(path)}, path


@pytest.mark.parametrize('path', PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_small_documented_and_free_of_eval(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count('\n') <= 250
    assert not text or ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ('eval', 'exec', 'pickle.load', 'pickle.loads')
            assert called != 'torch.load' or any(keyword.arg == 'weights_only' and ast.unparse(keyword.value) == 'True'
                                                 for keyword in node.keywords)


def test_tools_parse_call_and_return_a_status():
    for path in (ROOT / 'tools').glob('*.py'):
        assert path.read_text().count('\n') <= 70, path


def test_every_module_can_be_imported_by_itself():
    for path in PACKAGE:
        # mmagic has an environment of its own: tests/mmagic
        if path.name not in ('__main__.py', 'mmagic.py', 'mmagic_parts.py'):
            importlib.import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'))

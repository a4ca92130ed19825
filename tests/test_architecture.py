"""Rules of the layout, and how large and how well described its pieces are."""
import ast
import graphlib
import importlib
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = sorted((ROOT / 'sr_bigbatch').rglob('*.py'))
MODULE_LINES, FUNCTION_LINES, TOOL_LINES, README_LINES = 350, 60, 70, 180
LOOSE_DICTS_IN_HOSTS = 28  # `dict[str, Any]`, today's number: lower it with each settings class

_BELOW_NETS = {'step', 'memory', 'files', 'progressive'}
MAY_IMPORT = {
    'step': set(), 'memory': {'step', 'system'}, 'files': {'step', 'system'}, 'progressive': {'step'}, 'nets': _BELOW_NETS,
    'options': set(), 'system': set(), 'registration': {'hosts'},
    'report': {*_BELOW_NETS, 'nets', 'options'},
    'hosts': {*_BELOW_NETS, 'nets', 'options', 'report', 'registration', 'system'},
    'tasks': {*_BELOW_NETS, 'nets', 'options', 'report', 'hosts', 'system'},
    'cli': {*_BELOW_NETS, 'nets', 'options', 'report', 'hosts', 'system', 'tasks'},
    '__main__': {'memory', 'options', 'hosts'}, '__init__': {'step', 'nets', 'registration'},
}
"""By folder or module of the package: the others of which it knows."""
HOSTS = {'basicsr', 'mmengine', 'mmagic', 'realesrgan'}
PLAIN = {'step': {'torch'}, 'memory': {'torch'}, 'progressive': {'torch'}, 'files': {'torch', 'safetensors'},
         'nets': {'torch', 'numpy'}}
"""What folders that know of no host import beside Python's own library."""

PRIVATE_OF_OTHERS = {
    # torch: no public form exists
    '_BatchNorm', '_SpectralNorm',  # the base classes of layers that a step treats apart
    '_apply', '_parameters', '_buffers', '_check_input_dim',  # of nn.Module
    '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks',  # looked at, never changed
    '_post_accumulate_grad_hooks',
    '_foreach_norm', '_foreach_div_',  # one kernel for all parameters, as torch's own optimizers use
    '_version',  # whether a parameter has changed
    '_cdata', '_schema',  # identity of a storage; names and types of an operator
    '_subclasses', '_python_dispatch', '_pytree',  # modules: fake tensors, dispatch modes, trees of tensors
    # hosts
    '_backends', '_LRScheduler', '_global_step',
    # Python and numpy
    '_exit', '_core', '_reconstruct',
}
"""Names that begin with an underscore and belong to classes and modules of others."""

TESTED_IN = {'behaviour': 'audit', 'controlled_call': 'audit', 'in_float64': 'audit', 'memory_of_calls': 'audit',
             'network_study': 'audit', 'sample_noise': 'audit', 'toy_images': 'audit', 'value_gates': 'audit',
             'loss_study': 'audit_of_losses'}
"""Modules of the step that are pieces of another one and are tested through it."""
STEP_TESTS_WITH_A_HOST = {'test_audit.py', 'test_shared_batch_norm.py'}  # networks of BasicSR must be judged rightly


def _name(path):
    return str(path.relative_to(ROOT / 'sr_bigbatch'))


def _folder(path):
    return path.relative_to(ROOT / 'sr_bigbatch').parts[0].removesuffix('.py')


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # others are of the same folder
            yield from (f'{node.module}.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
            yield from (part.value for part in node.args if isinstance(part, ast.Constant))


def _tree(path):
    return ast.parse(path.read_text())


def _known_folders(path):
    """The folders and modules of the package that a file imports, its own left out."""
    parts = (name.split('.') for name in _imports(_tree(path)) if name.startswith('sr_bigbatch.'))
    return {part[1] for part in parts} & set(MAY_IMPORT) - {_folder(path)}


@pytest.mark.parametrize('path', PACKAGE, ids=_name)
def test_dependence_goes_one_way(path):
    assert _known_folders(path) <= MAY_IMPORT[_folder(path)]


def test_folders_depend_on_each_other_without_circle():
    graph = {}
    for path in PACKAGE:
        if _folder(path) != 'registration':  # it starts the adapters by name, when a host is imported
            graph.setdefault(_folder(path), set()).update(_known_folders(path))
    assert tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize('path', PACKAGE, ids=_name)
def test_only_hosts_imports_a_host_and_what_lies_below_is_plain(path):
    tops = {name.split('.')[0] for name in _imports(_tree(path))} - {'sr_bigbatch'}
    folder = _folder(path)
    assert folder == 'hosts' or not tops & HOSTS
    if folder in PLAIN:
        assert tops <= {*sys.stdlib_module_names, *PLAIN[folder]}


@pytest.mark.parametrize('path', PACKAGE, ids=_name)
def test_modules_and_functions_are_small(path):
    assert path.read_text().count('\n') <= MODULE_LINES
    long = [node.name for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef)
            and node.end_lineno - node.lineno >= FUNCTION_LINES]
    assert not long


@pytest.mark.parametrize('path', PACKAGE, ids=_name)
def test_nothing_is_executed_asserted_or_patched(path):
    tree = _tree(path)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert not any(name.startswith(('unittest', 'pytest', 'mock')) for name in _imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ('eval', 'exec', 'pickle.load', 'pickle.loads')
            assert called != 'torch.load' or any(keyword.arg == 'weights_only' and ast.unparse(keyword.value) == 'True'
                                                 for keyword in node.keywords)


def _own_names(tree):
    """Functions, classes, fields and attributes that a module defines itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == 'self':
            yield node.attr


def _names_of_others(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ('self', 'cls', 'super()'):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from [*(node.module or '').split('.'), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ('getattr', 'setattr', 'hasattr', 'delattr'):
            yield from (part.value for part in node.args[1:2] if isinstance(part, ast.Constant))


@pytest.mark.parametrize('path', [*PACKAGE, *(ROOT / 'tools').glob('*.py'), *(ROOT / 'examples').glob('*.py')],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_others_are_not_used(path):
    tree = _tree(path)
    private = {name for name in _names_of_others(tree) if name.startswith('_') and not name.startswith('__')}
    assert private - set(_own_names(tree)) <= PRIVATE_OF_OTHERS


def _public(tree):
    """Public functions, classes and methods of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
            yield node
            members = node.body if isinstance(node, ast.ClassDef) else []
            yield from (part for part in members if isinstance(part, ast.FunctionDef) and not part.name.startswith('_'))


def _is_described_elsewhere(node):
    """A member of a protocol, which the docstring of its class describes, or the setter of a property."""
    if not isinstance(node, ast.FunctionDef):
        return False
    return ast.unparse(node.body[-1]) == '...' or any(ast.unparse(by).endswith('.setter') for by in node.decorator_list)


@pytest.mark.parametrize('path', PACKAGE, ids=_name)
def test_public_things_are_described_and_typed(path):
    tree = _tree(path)
    assert ast.get_docstring(tree)
    for node in _public(tree):
        assert ast.get_docstring(node) or _is_described_elsewhere(node), node.name
        if isinstance(node, ast.FunctionDef):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            untyped = [part.arg for part in given if part.annotation is None and part.arg not in ('self', 'cls')]
            assert not untyped and node.returns is not None, node.name


def test_settings_in_hosts_are_typed():
    count = sum(path.read_text().count('dict[str, Any]') for path in PACKAGE if _folder(path) == 'hosts')
    assert count <= LOOSE_DICTS_IN_HOSTS


@pytest.mark.parametrize('folder', ['step', 'memory'])
def test_every_module_of_the_core_has_a_test_file(folder):
    modules = {path.stem for path in PACKAGE if _folder(path) == folder} - {'__init__'}
    tested = {path.stem.removeprefix('test_') for path in (ROOT / 'tests' / folder).glob('test_*.py')}
    assert {TESTED_IN.get(module, module) for module in modules} <= tested


def test_tests_of_the_step_import_no_host():
    """BasicSR's own update, which they compare with, is in ``tests/reference.py`` alone."""
    for path in (ROOT / 'tests' / 'step').glob('*.py'):
        if path.name not in STEP_TESTS_WITH_A_HOST:
            names = list(_imports(_tree(path)))
            assert not {name.split('.')[0] for name in names} & HOSTS, path
            assert not any(name.startswith('sr_bigbatch.hosts') for name in names), path


def test_tools_parse_call_and_return_a_status():
    for path in (ROOT / 'tools').glob('*.py'):
        assert path.read_text().count('\n') <= TOOL_LINES, path


def test_every_module_can_be_imported_by_itself():
    for path in PACKAGE:
        if path.name not in ('__main__.py', 'mmagic_parts.py', 'mmagic.py'):  # mmagic has its own environment: tests/mmagic
            importlib.import_module('.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'))


def test_the_readme_is_short_and_begins_with_purpose_picture_and_commands():
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert len(lines) <= README_LINES
    head = '\n'.join(lines[:30])
    assert '**Train' in head and '![' in head and head.count('\nmake ') >= 2

"""Names that users have in their files and scripts: a change of one is a change for all of them."""
import ast
import re

from tests.conftest import ROOT

FILE = ROOT / 'tests' / 'data' / 'public_names.txt'
HOW = (f'The public names are others than those of {FILE.relative_to(ROOT)}. If that is meant: say so in CHANGELOG.md, '
       'under Unreleased, each name in backquotes, and write the file anew with `python -m tests.test_public_names`.')


def _registered():
    import mmengine.registry
    from basicsr.utils import registry

    import sr_bigbatch
    sr_bigbatch.register()
    for kind in ('ARCH', 'DATASET', 'MODEL', 'LOSS', 'METRIC'):
        yield from ((f'BasicSR {kind.lower()}', name) for name, thing in getattr(registry, f'{kind}_REGISTRY')
                    if thing.__module__.startswith('sr_bigbatch'))
    for kind, found in vars(mmengine.registry).items():
        if isinstance(found, mmengine.registry.Registry):
            yield from ((f'mmengine {kind}', name) for name, thing in found.module_dict.items()
                        if thing.__module__.startswith('sr_bigbatch.') and 'runner' not in thing.__module__)


def _options():
    from sr_bigbatch.hosts.basicsr.options.reference import reference
    section, ours = 'option', reference().partition("## BasicSR's keys")[0]
    for line in ours.splitlines():
        if line.startswith('### '):
            section = line.removeprefix('### ').partition(' ')[0]
        if found := re.match(r'\| `([\w.]+)` \|', line):
            yield section, found[1]


def _flags():
    for path in (path for path in (ROOT / 'sr_bigbatch' / 'cli').glob('*.py') if (ROOT / 'tools' / path.name).exists()):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('add_argument'):
                yield from ((f'tools/{path.name}', part.value) for part in node.args if isinstance(part, ast.Constant))


def collect():
    """A line for each public name: its kind and itself, in order."""
    import sr_bigbatch
    names = [*(('sr_bigbatch', name) for name in sr_bigbatch.__all__), *_registered(), *_options(), *_flags()]
    return sorted(f'{kind}: {name}' for kind, name in names)


def test_public_names_change_only_with_a_line_in_the_changelog():
    known = FILE.read_text().splitlines()
    changed = sorted(set(collect()) ^ set(known))
    assert not changed, f'{HOW}\n{changed}'


def test_the_changelog_names_what_can_be_registered_and_imported():
    text = (ROOT / 'CHANGELOG.md').read_text()
    names = [line.partition(': ')[2] for line in FILE.read_text().splitlines()
             if line.startswith(('BasicSR', 'mmengine', 'sr_bigbatch'))]
    assert [name for name in names if name not in text] == []


if __name__ == '__main__':
    FILE.write_text('\n'.join(collect()) + '\n')

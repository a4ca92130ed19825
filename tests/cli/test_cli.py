"""The command ``sr-bigbatch``: what is light about it, what it says where something is missing, and what a wheel holds."""
import importlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from sr_bigbatch.cli import COMMANDS, main
from sr_bigbatch.cli.options import option_files
from sr_bigbatch.files.formats import FORMATS
from sr_bigbatch.options import load
from sr_bigbatch.tasks.recipe import LR_RULES
from sr_bigbatch.tasks.study import AXES
from tests.conftest import ROOT, load_tool

ASKED_FOR = ('prepare', 'train', 'plan', 'check', 'verify', 'recipe', 'upscale', 'convert', 'study', 'bench', 'options')


def test_help_of_every_command_imports_nothing_that_takes_time(capfd):
    code = ('import sys\nfrom sr_bigbatch.cli import COMMANDS, main\n'
            'for name in COMMANDS:\n    try:\n        main([name, "--help"])\n    except SystemExit as end:\n'
            '        assert end.code == 0\nprint(main(["--help"]))\n'
            'assert not {"torch", "numpy", "basicsr", "mmengine", "cv2", "matplotlib"} & set(sys.modules)')
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, check=False,
                          env={'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    for name in COMMANDS:
        assert f'usage: sr-bigbatch {name} ' in done.stdout
    assert set(ASKED_FOR) <= set(COMMANDS)


@pytest.mark.parametrize('arguments', [[], ['nonsense'], ['trian', '-opt', 'x']], ids=str)
def test_another_command_ends_with_a_list_of_all(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert all(f'  {name}' in said.out + said.err for name in ASKED_FOR)


@pytest.mark.parametrize('name', sorted(set(COMMANDS) - {'options'}))
@pytest.mark.parametrize('missing', ['basicsr', 'mmengine'])
def test_without_a_host_one_sentence_names_the_command_that_installs_it(monkeypatch, capsys, name, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda host, *more: None if host == missing else found(host, *more))
    monkeypatch.setattr('sys.argv', ['sr-bigbatch'])
    assert main([name, 'anything']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and f'sr-bigbatch {name} needs {missing}: pip install' in error


def test_a_command_runs_and_tells_its_status(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['sr-bigbatch'])
    assert main(['check', '-opt', '/nowhere.yml']) == 2
    assert 'cannot be read' in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(['prepare'])
    assert end.value.code == 2 and 'usage: sr-bigbatch prepare' in capsys.readouterr().err


def test_ctrl_c_is_one_sentence(monkeypatch, capsys):
    module = importlib.import_module('sr_bigbatch.cli.upscale')

    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr('sys.argv', ['sr-bigbatch'])
    monkeypatch.setattr(module, 'main', stopped)
    assert main(['upscale', 'x']) == 130
    assert capsys.readouterr().err == 'sr-bigbatch upscale was stopped\n'


def test_choices_that_are_written_out_are_those_of_the_tasks(capsys):
    for module, choices in (('batch_size_study', (*LR_RULES, *AXES)), ('recipe', LR_RULES), ('convert', FORMATS)):
        with pytest.raises(SystemExit):
            importlib.import_module(f'sr_bigbatch.cli.{module}').main(['--help'])
        said = ''.join(capsys.readouterr().out.split())
        assert all(choice in said for choice in choices)


def test_tools_are_thin_scripts_over_the_commands():
    for path in (ROOT / 'tools').glob('*.py'):
        assert load_tool(path.stem).main is importlib.import_module(f'sr_bigbatch.cli.{path.stem}').main
        assert path.read_text().count('\n') < 15


def test_option_files_are_listed_and_copied_and_never_overwrite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['sr-bigbatch'])
    assert main(['options']) == 0
    assert str(option_files() / 'quickstart.yml') in capsys.readouterr().out
    assert main(['options', '--copy', str(tmp_path / 'mine')]) == 0
    assert load(tmp_path / 'mine' / 'quickstart.yml') == load(ROOT / 'options' / 'quickstart.yml')
    assert (tmp_path / 'mine' / 'mmengine' / 'quickstart.py').is_file()
    (tmp_path / 'mine' / 'quickstart.yml').write_text('changed')
    assert main(['options', '--copy', str(tmp_path / 'mine')]) == 2
    assert (tmp_path / 'mine' / 'quickstart.yml').read_text() == 'changed'
    assert 'quickstart.yml' in capsys.readouterr().err


def test_a_wheel_holds_commands_and_option_files(tmp_path):
    source = tmp_path / 'source'
    for folder in ('sr_bigbatch', 'options'):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir',
                    str(tmp_path), str(source)], check=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as wheel:
        names = set(wheel.namelist())
        scripts = wheel.read(next(name for name in names if name.endswith('entry_points.txt'))).decode()
    assert 'sr-bigbatch = sr_bigbatch.cli:main' in scripts
    assert {f'sr_bigbatch/cli/{module}.py' for module, _ in COMMANDS.values()} <= names
    assert {f'sr_bigbatch/shipped_options/{file.name}' for file in (ROOT / 'options').glob('*.yml')} <= names
    assert 'sr_bigbatch/shipped_options/mmengine/quickstart.py' in names

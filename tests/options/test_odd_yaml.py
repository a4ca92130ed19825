"""YAML that does harm, or that means something else than it seems to mean."""
import time

import pytest

from sr_bigbatch.options import OptionError, load, override

_NINE = range(9)


def _bomb(link):
    return 'k0: &a0 {x: 1}\n' + ''.join(f'k{level}: &a{level} {link(f"*a{level - 1}")}\n' for level in range(1, 12))


ODD = {
    'aliases of lists': (_bomb(lambda alias: f'[{", ".join(alias for _ in _NINE)}]'), 'aliases'),
    'aliases of sections': (_bomb(lambda alias: f'{{{", ".join(f"{key}: {alias}" for key in "abcdefghi")}}}'), 'aliases'),
    'merged aliases': (_bomb(lambda alias: f'{{<<: [{", ".join(alias for _ in _NINE)}]}}'), 'aliases'),
    'an alias in itself': ('a: &a [*a]\n', 'inside what it repeats'),
    'a section in itself': ('a: &a {b: {c: *a}}\n', 'inside what it repeats'),
    'a number of 5000 digits': ('a: ' + '9' * 5000, 'cannot be read as int'),
    'a number of 200 bits': ('a: 0x' + 'f' * 50, 'more than 64 bits'),
    'a negative number of 65 bits': (f'a: -{2**65}', 'more than 64 bits'),
    'lists 20000 deep': ('a: ' + '[' * 20000 + ']' * 20000, '50 deep'),
    'lists 60 deep': ('a: ' + '[' * 60 + ']' * 60, '50 deep'),
    'sections 300 deep': (''.join(' ' * level + 'a:\n' for level in range(300)), '50 deep'),
    'too many bytes': ('a: ' + 'x' * 70_000, 'more than 65536 bytes'),
    'NUL': ('a: \0\n', 'special characters'),
    'escaped NUL': ('a: "x\\0"\n', 'NUL'),
    'half a pair': (r'a: "\ud800"', 'half of a pair'),
    'escaped NUL in a key': ('"\\0": 1\n', 'NUL'),
    'binary': ('a: !!binary aGVsbG8=\n', 'binary'),
    'broken binary': ('a: !!binary x\n', 'binary'),
    'timestamp': ('a: !!timestamp foo\n', 'timestamp'),
    'set': ('a: !!set {x, y}\n', 'set'),
    'ordered mapping': ('a: !!omap [x: 1]\n', 'omap'),
    'Python tuple': ('a: !!python/tuple [1]\n', 'python/tuple'),
    'a tag of its own': ('a: !foo bar\n', '!foo'),
    'no whole number': ('a: !!int foo\n', "'foo' cannot be read as int"),
    'an empty whole number': ('a: !!int ""\n', 'cannot be read as int'),
    'no number': ('a: !!float foo\n', "'foo' cannot be read as float"),
    'an empty number': ('a: !!float ""\n', 'cannot be read as float'),
    'neither true nor false': ('a: !!bool foo\n', "'foo' cannot be read as bool"),
    'a list as text': ('a: !!str [1]\n', 'a list or a section cannot be read as str'),
    'a list as section': ('a: !!map [1]\n', 'expected "key: value" lines'),
    'a section as list': ('a: !!seq {a: 1}\n', 'expected a sequence'),
    'octal': ('a: 010\n', '010 is an octal number'),
    'base of 60': ('a: 1:30\n', '1:30 is a number to the base of 60'),
    'base of 60 with a point': ('a: 1:30.5\n', '1:30.5 is a number to the base of 60'),
    'the key no': ('no: 1\n', 'the key no is read as False'),
    'the key null': ('~: 1\n', 'the key ~ is read as None'),
    'a key with a point': ('1.5: 1\n', 'the key 1.5 is read as 1.5'),
    'a list as key': ('[a, b]: 1\n', 'a key is text'),
    'a section as key': ('? {a: 1}\n: 2\n', 'a key is text'),
    'a key twice': ('a: 1\n"a": 2\n', "the key 'a' stands twice"),
    'a numeric key twice': ('1: 1\n0x1: 2\n', 'stands twice'),
    'two documents': ('a: 1\n---\nb: 1\n', 'another document'),
    'a merge of a number': ('a: {<<: 1}\n', 'for merging'),
    'an equals sign': ('a: =\n', 'line 1'),
}


@pytest.mark.parametrize('text, message', ODD.values(), ids=ODD)
def test_odd_yaml_is_one_sentence_with_its_place(tmp_path, text, message):
    file = tmp_path / 'run.yml'
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(OptionError) as error:
        load(file)
    assert time.monotonic() - began < 10
    assert len(error.value.findings) == 1 and '\n' not in error.value.findings[0]
    assert message in error.value.findings[0] and str(file) in error.value.findings[0]


@pytest.mark.parametrize('content', [b'\xff\xfe\x00a', b'\x89PNG\r\n\x1a\n\x00', b'PK\x03\x04\x00', bytes(range(256)),
                                     b'\x00' * 100])
def test_a_binary_file_is_named(tmp_path, content):
    file = tmp_path / 'run.yml'
    file.write_bytes(content)
    with pytest.raises(OptionError, match=r'run\.yml'):
        load(file)


@pytest.mark.parametrize('text, expected', [
    ('a: 1e-4', 1e-4), ('a: 4e5', 4e5), ('a: -1E+3', -1000.0), ('a: 0', 0), ('a: 0.5', 0.5), ('a: 1_000', 1000),
    ('a: 0x10', 16),
    ('a: -7', -7), ('a: .inf', float('inf')), ('a: 2020-01-01', '2020-01-01'), ('a: 2020-99-99', '2020-99-99'),
    ('a: "010"', '010'),
    ('a: "1:30"', '1:30'), ('a: no', False), ('a: ~', None), ('a: ü', 'ü'), ('\ufeffa: 1', 1), (f'a: {2**62}', 2**62),
    ('b: &b [1]\na: [*b, *b]', [[1], [1]]), ('b: &b {x: 1}\na: {<<: *b, y: 2}', {'x': 1, 'y': 2}), ('a: {1: 2}', {1: 2})])
def test_plain_yaml_means_what_it_says(tmp_path, text, expected):
    file = tmp_path / 'run.yml'
    file.write_text(text, encoding='utf-8')
    assert load(file)['a'] == expected


@pytest.mark.parametrize('value', ['010', '1:30', '[' * 2000 + ']' * 2000, '{[a]: 1}', '!!int x', '"\\0"', '9' * 30])
def test_the_command_line_is_as_strict(value):
    with pytest.raises(OptionError, match='--force_yml'):
        override({}, [f'train:a={value}'])

"""Reading option files: strict YAML, overrides from the command line, and errors that name the nearest known key."""
from __future__ import annotations

import argparse
import ast
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

_PLAIN_NAME = re.compile(r'[\w.-]+')
_LARGEST = 2**63
_DEEPEST = 50
_MOST_VALUES = 100_000
_MOST_BYTES = 1 << 16


class OptionError(ValueError):
    """One or more things in an option file that must be changed before training can start.

    Args:
        findings: one sentence each.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = list(findings)
        super().__init__('\n'.join(f'- {finding}' for finding in findings))


class _StrictLoader(yaml.SafeLoader):
    """Builds plain data only, refuses what stands twice or means something unexpected, and reads ``1e-4`` as a number."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; what a tag promises and the text does not hold is an error with a line."""
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]
        except (ValueError, LookupError, TypeError, AttributeError):
            shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else 'a list or a section'
            raise _refused(f'{shown} cannot be read as {node.tag.rpartition(":")[2]}', node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A plain dict."""
        if not isinstance(node, yaml.MappingNode):
            raise _refused('expected "key: value" lines', node)
        seen = set()
        for key_node, _ in node.value:
            if getattr(key_node, 'tag', None) == _YAML + 'merge':  # << takes over what an alias repeats
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused('a key is text, not a list or a section', key_node)
            key = self.construct_object(key_node)
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise _refused(f'the key {key_node.value} is read as {key!r}: write it in quotation marks', key_node)
            if key in seen:
                raise _refused(f'the key {key_node.value!r} stands twice', key_node)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number of at most 64 bits, in decimal, hexadecimal or binary digits."""
        digits = node.value.lstrip('+-').replace('_', '')
        if ':' in digits:
            raise _refused(f'{node.value} is a number to the base of 60 in YAML: write it in quotation marks, or as a '
                           'number of today', node)
        if digits.isdecimal() and digits.startswith('0') and len(digits) > 1:
            raise _refused(f'{node.value} is an octal number in YAML: leave the zero in front out, or write it in '
                           'quotation marks', node)
        value = int(super().construct_yaml_int(node))  # type: ignore[no-untyped-call]
        if not -_LARGEST <= value < _LARGEST:
            raise _refused('a whole number of more than 64 bits', node)
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A number; not to the base of 60."""
        if ':' in node.value:
            raise _refused(f'{node.value} is a number to the base of 60 in YAML: write it in quotation marks', node)
        value: float = super().construct_yaml_float(node)  # type: ignore[no-untyped-call]
        return value

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """Text that can be the name of a file, or stand in one."""
        if any(letter == '\0' or '\ud800' <= letter <= '\udfff' for letter in node.value):
            raise _refused('text with a character that no file can have (NUL, or half of a pair)', node)
        return str(node.value)


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_YAML = 'tag:yaml.org,2002:'
for _kind in ('int', 'float', 'str'):
    _StrictLoader.add_constructor(_YAML + _kind, getattr(_StrictLoader, f'construct_yaml_{_kind}'))
for _kind in ('timestamp', 'binary', 'set', 'omap', 'pairs'):  # what no option is; a date is text
    _StrictLoader.add_constructor(_YAML + _kind, yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]
_StrictLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _YAML + 'timestamp']
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_StrictLoader.add_implicit_resolver(_YAML + 'float', re.compile(r'^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$'),  # type: ignore[no-untyped-call]
                                    list('-+0123456789'))


def _parse(text: str, source: str) -> Any:
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()  # type: ignore[no-untyped-call]
            if node is None:
                return None
            _refuse_bomb(node)
            return loader.construct_document(node)  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except RecursionError:
        raise OptionError([f'{source}: sections stand more than {_DEEPEST} deep in one another']) from None
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        where = f'{source}, line {mark.line + 1}, column {mark.column + 1}' if mark else source
        problem = getattr(error, 'problem', None) or ' '.join(str(error).split())
        raise OptionError([f'{where}: {problem}']) from error


def _refuse_bomb(root: yaml.Node) -> None:
    """Refuse what would be too deep or, with its aliases written out, too large; each node is looked at once."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise _refused(f'sections stand more than {_DEEPEST} deep in one another', node)
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise _refused('an alias (*name) stands inside what it repeats (&name)', node)
            return sizes[id(node)]
        sizes[id(node)] = 0  # under way
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = total = 1 + sum(size_of(child, depth + 1) for child in children)
        if total > _MOST_VALUES:
            raise _refused(f'with what aliases (*name) repeat these would be more than {_MOST_VALUES} values', node)
        return total

    size_of(root, 0)


def load(path: str | Path) -> dict[str, Any]:
    """Read an option file.

    Raises:
        OptionError: if it is missing, no valid YAML, no mapping at its top level, or repeats a part inside itself.
    """
    try:
        with Path(path).open('rb') as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode('utf-8-sig')
    except (OSError, ValueError) as error:
        raise OptionError([f'the option file {path} cannot be read: {error}']) from error
    if len(content) > _MOST_BYTES:
        raise OptionError([f'{path} has more than {_MOST_BYTES} bytes, and an option file has a few thousand'])
    options = _parse(text, str(path))
    if not isinstance(options, dict):
        raise OptionError([f'{path} holds no options: expected "key: value" lines at its top level'])
    plain: dict[str, Any] = unshared(options)
    return plain


def unshared(settings: Any) -> Any:
    """A copy of options in which no section is the same object as another, as those that YAML's aliases repeat are.

    Builders of the hosts take ``type`` out of the section that they are given; it must not be missing in the others.
    """
    if isinstance(settings, dict):
        return {key: unshared(value) for key, value in settings.items()}
    return [unshared(value) for value in settings] if isinstance(settings, list) else settings


def override(options: dict[str, Any], entries: Iterable[str]) -> None:
    """Apply ``--force_yml`` entries such as ``train:ema_decay=0.999`` in place; values are YAML.

    Raises:
        OptionError: for an entry of another form, or a path through something that is not a mapping.
    """
    for entry in entries:
        path, separator, value = entry.partition('=')
        keys = [key.strip() for key in path.split(':')]
        if not separator or not all(keys):
            raise OptionError([f'--force_yml {entry!r}: expected section:key=value'])
        target = options
        for key in keys[:-1]:
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
            if not isinstance(target, dict):
                raise OptionError([f'--force_yml {entry!r}: {key} is a value, not a section'])
        target[keys[-1]] = _parse(value, f'--force_yml {entry!r}')


def refuse_code(entries: Iterable[str]) -> None:
    """Refuse ``--force_yml`` entries that are not plain, before a loop sees them that runs them, as BasicSR's does.

    BasicSR puts keys into a text for ``exec``, and gives values that begin with a bracket to ``eval``: YAML alone is not
    plain enough, because ``[f()]`` is a list of one text there.

    Raises:
        OptionError: for keys other than names, values that are no YAML, and brackets with more than literals in them.
    """
    for entry in entries:
        path, separator, value = entry.partition('=')
        if not separator or '=' in value or not all(_PLAIN_NAME.fullmatch(key) for key in path.strip().split(':')):
            raise OptionError([f'--force_yml {entry!r}: expected section:key=value with plain names and one equals sign'])
        if value.strip().startswith(('[', '(', '{')):
            try:
                ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                raise OptionError([f'--force_yml {entry!r}: this script would run what stands in brackets as Python; they '
                                   'may hold numbers, quoted text, None, True and False']) from None
        _parse(value, f'--force_yml {entry!r}')


def positive_number(text: str) -> float:
    """A number above 0 of a command line, as the ``type`` of an argument of argparse.

    Raises:
        argparse.ArgumentTypeError: for anything else, such as ``0``, ``-1``, ``nan``, ``inf`` and text.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f'must be a number above 0, got {text!r}')
    return value


def positive_count(text: str) -> int:
    """A whole number above 0 of a command line, as the ``type`` of an argument of argparse.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f'must be a whole number above 0, got {text!r}')
    return int(text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``'; did you mean ...?'`` with the nearest of the known names, or a list of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f'; did you mean {near[0]}?' if near else f'; known here: {", ".join(names)}'


_OTHERS_KEYS = {
    'mega_batch_factor': 'it is DL-Art-School\'s: here datasets.train.batch_size_per_gpu is the whole batch, and '
                         'train.micro_batch_size the images of a part: the batch over mega_batch_factor',
    'checkpointing_enabled': 'it is DL-Art-School\'s: here network_g.activation_memory says what is computed again (lean, '
                             'compact, minimal or auto), with network_g.type: CheckpointedRRDBNet',
    'blocks_per_checkpoint': 'it is DL-Art-School\'s: here it is network_g.activation_memory: {blocks: 3}',
    'steps': 'a recipe of DL-Art-School is written as ours by tools/recipe.py FILE TARGET',
    **dict.fromkeys(('fp16', 'use_amp', 'amp', 'amp_bf16'),
                    'here it is train.optim_wrapper: {type: OverflowSafeOptimWrapper, dtype: float16 or bfloat16}'),
    **dict.fromkeys(('accum_iter', 'accumulate', 'accumulative_counts', 'accumulate_grad_batches', 'accumulation_steps',
                     'gradient_accumulation_steps', 'virtual_batch_size'),
                    'here datasets.train.batch_size_per_gpu is the whole batch, and train.micro_batch_size the images of a '
                    'part'),
}
"""What stands here for keys that other trainers have for large batches."""


def unknown_keys(section: dict[str, Any], known: Iterable[str], where: str, elsewhere: dict[str, str]) -> list[str]:
    """A finding for each key of ``section`` that is not ``known``.

    Args:
        section: a mapping of the option file.
        known: the keys that may stand there.
        where: name of the section, for the message; empty at the top level.
        elsewhere: key -> section, for keys that belong into another one.
    """
    known, findings = set(known), []
    for key in section:
        if key not in known:
            path = f'{where}.{key}' if where else str(key)
            hint = (f'; it belongs into the section {elsewhere[key]}' if key in elsewhere else
                    f'; {_OTHERS_KEYS[key]}' if key in _OTHERS_KEYS else did_you_mean(key, known))
            findings.append(f'{path} is not a known option{hint}')
    return findings

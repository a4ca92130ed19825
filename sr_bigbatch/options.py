"""Reading option files: strict YAML, overrides from the command line, and errors that name the nearest known key."""
from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

_PLAIN_NAME = re.compile(r'[\w.-]+')


class OptionError(ValueError):
    """One or more things in an option file that must be changed before training can start.

    Args:
        findings: one sentence each.
    """

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = list(findings)
        super().__init__('\n'.join(f'- {finding}' for finding in findings))


class _StrictLoader(yaml.SafeLoader):
    """Builds plain data only, refuses a key that stands twice, and reads ``1e-4`` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A plain dict."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key {key_node.value!r} stands twice',
                                                        key_node.start_mark)
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_StrictLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$'),  # type: ignore[no-untyped-call]
                                    list('-+0123456789'))


def _parse(text: str, source: str) -> Any:
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        where = f'{source}, line {mark.line + 1}, column {mark.column + 1}' if mark else source
        raise OptionError([f'{where}: {getattr(error, "problem", None) or error}']) from error
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def load(path: str | Path) -> dict[str, Any]:
    """Read an option file.

    Raises:
        OptionError: if it is missing, no valid YAML, no mapping at its top level, or repeats a part inside itself.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError([f'the option file {path} cannot be read: {error}']) from error
    options = _parse(text, str(path))
    if not isinstance(options, dict):
        raise OptionError([f'{path} holds no options: expected "key: value" lines at its top level'])
    try:
        plain: dict[str, Any] = unshared(options)
    except RecursionError:
        raise OptionError([f'{path}: an alias (*name) stands inside what it repeats (&name)']) from None
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``'; did you mean ...?'`` with the nearest of the known names, or a list of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f'; did you mean {near[0]}?' if near else f'; known here: {", ".join(names)}'


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
            hint = f'; it belongs into the section {elsewhere[key]}' if key in elsewhere else did_you_mean(key, known)
            findings.append(f'{path} is not a known option{hint}')
    return findings

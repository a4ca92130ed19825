"""Builds what an option file names, from what is registered with mmengine and from nothing else.

``Registry.get`` and ``Registry.build`` also import what a name outside every registry stands for (``os.system``) and the
package of a ``scope``. A Python configuration is code in any case; an option file must not run any.
"""
from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mmengine import registry as registries
from mmengine.registry import Registry

from sr_bigbatch.options import OptionError

_OTHER_TYPES = {'norm', 'value', 'log_trace', 'tb_trace'}  # of clip_grad and of ProfilerHook: mmengine compares them only


def registered(registry: Registry) -> dict[str, Any]:
    """What may be named: of the registry and its parents by name, of its children as ``scope.Name``; nothing is imported."""
    found: dict[str, Any] = {}
    children = list(registry.children.values())
    while children:
        child = children.pop()
        found.update({f'{child.scope}.{name}': thing for name, thing in child.module_dict.items()})
        children += child.children.values()
    lineage = registry
    while lineage is not None:
        found = {**lineage.module_dict, **found}
        lineage = lineage.parent
    return found


def not_registered(kind: Any, known: Collection[str], where: str) -> str:
    """The sentence for a ``type`` that is not among the ``known`` ones; it names the nearest."""
    nearest = difflib.get_close_matches(str(kind).rpartition('.')[2], known, n=1, cutoff=0)
    return f'{where}.type: {kind} is not known; the nearest registered name is {nearest[0]}'


def name_findings(settings: Mapping[str, Any], known: Collection[str], where: str) -> list[str]:
    """A finding for each ``type`` that names nothing registered and for each ``_scope_``, however deep they stand.

    Args:
        settings: a mapping with ``type``.
        known: what its own ``type`` may name; the types of settings within it may be of any registry of mmengine.
        where: its place in the options, for the message.
    """
    kind = settings.get('type')
    found = [] if isinstance(kind, str) and kind in known else [not_registered(kind, known, where)]
    for place, part in _mappings(settings, where):
        if '_scope_' in part:
            found.append(f'{place}._scope_ would import a package: leave it out, and name what is registered')
        if part is not settings and 'type' in part:
            names = _registered_anywhere()
            if not isinstance(part['type'], str) or part['type'] not in names:
                found.append(not_registered(part['type'], names, place))
    return found


def _mappings(value: Any, where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The mappings in ``value``, itself the first, each with its place."""
    if isinstance(value, Mapping):
        yield where, value
    items = ([(f'{where}.{key}', item) for key, item in value.items()] if isinstance(value, Mapping) else
             [(f'{where}[{index}]', item) for index, item in enumerate(value)] if isinstance(value, list) else [])
    for place, item in items:
        yield from _mappings(item, place)


def _registered_anywhere() -> set[str]:
    return _OTHER_TYPES.union(*(registered(registry) for registry in vars(registries).values()
                                if isinstance(registry, Registry)))


def build_registered(registry: Registry, settings: Mapping[str, Any], where: str, **more: Any) -> Any:
    """Build what ``settings`` name, as ``registry.build`` does, if it is registered.

    Args:
        registry: of mmengine.
        settings: ``type`` and arguments; they are left as they are.
        where: their place in the options, for the message.
        **more: further arguments.

    Raises:
        OptionError: for a ``type`` that is not registered, or a ``_scope_``.
    """
    known = registered(registry)
    findings = name_findings(settings, known, where)
    if findings:
        raise OptionError(findings)
    arguments = copy.deepcopy(dict(settings))
    return known[arguments.pop('type')](**arguments, **more)

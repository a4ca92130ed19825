"""The option keys that this package adds to BasicSR's, as a JSON schema: what checks them, and what editors can use."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from sr_bigbatch.hosts.basicsr.options.host_schema import HOST_SCHEMA, Schema
from sr_bigbatch.hosts.basicsr.options.real_esrgan import REAL_ESRGAN_KEYS
from sr_bigbatch.options import did_you_mean

_COUNT = {'type': 'integer', 'minimum': 1}
_SHARE = {'type': 'integer', 'minimum': 0}
_MOST_SHOWN = 80  # letters of a wrong value


def _section(kind: str | list[str] = 'object', /, **properties: Any) -> Schema:
    return {'type': kind, 'properties': properties}


def _key(must_be: str, meaning: str, **schema: Any) -> Schema:
    return {'title': must_be, 'description': meaning, **schema}


_STAGE: Schema = {'type': 'object', 'required': ['gt_size'], 'properties': {
    'gt_size': _COUNT, 'until': _COUNT, 'until_images': _COUNT, 'batch_size': _COUNT}}
_HOOK: Schema = {'type': 'object', 'required': ['type'], 'properties': {
    'type': {'type': 'string'}, 'stages': {'type': 'array', 'items': _STAGE, 'minItems': 1},
    'growth': {'enum': ['append', 'prepend']}, 'fade_iters': _SHARE, 'warmup_iters': _SHARE, 'lead': _SHARE,
    'new_lr_factor': {'type': 'number', 'exclusiveMinimum': 0}, 'change_effective_batch': {'type': 'boolean'}}}

SCHEMA: Schema = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'title': 'Options of sr_bigbatch, beside those of BasicSR',
    'allOf': [HOST_SCHEMA],
    **_section(
        train=_section(
            micro_batch_size=_key(
                'a positive whole number, auto or one number per part', 'samples worked on at a time', anyOf=[
                    _COUNT, {'const': 'auto'}, {'type': 'object', 'additionalProperties': False,
                                                'required': ['generator', 'perceptual', 'discriminator'],
                                                'properties': dict.fromkeys(('generator', 'perceptual', 'discriminator'),
                                                                            _COUNT)}]),
            memory_budget_gb=_key('a positive number', 'what auto may use, in GB', type=['number', 'null'],
                                  exclusiveMinimum=0),
            kept_graphs=_key('all or a number of micro-batches', 'micro-batches of the generator whose graph is kept',
                             anyOf=[_SHARE, {'const': 'all'}]),
            accumulation=_key('exact or plain', 'relativistic means over the batch or over micro-batches',
                              enum=['exact', 'plain']),
            verify_every=_key('a whole number of iterations, 0 or more',
                              'how often a real batch is compared with the undivided one; 0: a part of the first alone',
                              **_SHARE),
            tf32=_key('true, false or ~', 'whether float32 may be rounded to TF32 on a GPU; ~ leaves it to torch',
                      type=['boolean', 'null']),
            relativistic_gan=_key('true or false', 'false is the plain GAN of SRGAN', type='boolean'),
            batch_schedule=_key('a list of {batch_size, until}, or {start, by: noise_scale}',
                                'an effective batch that grows during the run', type=['array', 'object', 'null']),
            optim_wrapper=_key('a section', 'precision, loss scale and clipping', type='object', properties={
                'type': {'type': 'string'},
                'dtype': _key('float32, bfloat16 or float16', 'of autocast', enum=['float32', 'bfloat16', 'float16']),
                'loss_scale': _key('dynamic, a positive number, or settings', 'of float16', anyOf=[
                    {'const': 'dynamic'}, {'type': 'number', 'exclusiveMinimum': 0}, {'type': 'object'}]),
                'clip_grad': _key('a section as {max_norm: 1}', 'gradient clipping', type=['object', 'null'])})),
        network_g=_section(activation_memory=_key(
            'lean, compact, minimal, auto, or a dict of features, blocks and tail', 'what the generator keeps', anyOf=[
                {'enum': ['lean', 'compact', 'minimal', 'auto']}, {'type': 'object'}])),
        datasets=_section(train=_section(on_bad_image=_key(
            'fatal or skip', 'what is done about an image that cannot be read', enum=['fatal', 'skip']))),
        logger=_section(
            keep_last=_key('a positive number of saves', 'older saves are removed', type=['integer', 'null'], minimum=1),
            keep_best=_key('true or false', 'saves with the best metrics stay, too', type='boolean')),
        val=_section(['object', 'null'], val_at_start=_key('true or false', 'validate before the first iteration',
                                                           type='boolean')),
        custom_hooks=_key('a list of {type: ...}', 'mmengine hooks', type=['array', 'null'], items=_HOOK),
        **REAL_ESRGAN_KEYS)}


def _is_number(_: object, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine('number', _is_number))


def schema_findings(opt: Mapping[str, object]) -> Iterable[str]:
    """A finding for each key with an invalid value, of ours and of BasicSR's; infinity and nan are no numbers."""
    errors = _Validator(SCHEMA).iter_errors(opt)
    for error in sorted(errors, key=lambda error: list(map(str, error.absolute_path))):
        where = ''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in error.absolute_path).lstrip('.')
        yield f'{where}{_sentence(error)}'


def _sentence(error: ValidationError) -> str:
    schema: Any = error.schema
    value: Any = error.instance
    choices: Any = error.validator_value
    if error.validator == 'enum' and all(isinstance(choice, str) for choice in choices):
        return f' is {_shown(value)}{did_you_mean(value, choices)}'
    inner = [one.message for one in error.context or () if one.validator in ('required', 'additionalProperties')]
    more = f' ({inner[0]})' if inner else ''
    if 'title' in schema:
        return f' must be {schema["title"]}, got {_shown(value)}{more}'
    return f': {_cut(error.message)}'


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f'{text[:_MOST_SHOWN]}...'


def with_whole_numbers(value: Any, schema: Schema = SCHEMA) -> Any:
    """Options in which a whole number is an ``int``, also where a file has it as ``4e5``; Python does not count with 4.0.

    Args:
        value: options that have no findings, or a part of them; sections and lists are changed in place.
        schema: of ``value``.
    """
    if isinstance(value, float) and schema.get('type') in ('integer', ['integer', 'null']):
        return int(value)
    for part in (*schema.get('allOf', ()), *schema.get('anyOf', ())):
        value = with_whole_numbers(value, part)
    if isinstance(value, dict):
        known, other = schema.get('properties', {}), schema.get('additionalProperties') or {}
        for key, entry in value.items():
            value[key] = with_whole_numbers(entry, known.get(key, other))
    elif isinstance(value, list) and 'items' in schema:
        value[:] = [with_whole_numbers(entry, schema['items']) for entry in value]
    return value

"""The log of a training: a JSON record a line, for programs."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sr_bigbatch.files.storage import write_atomically
from sr_bigbatch.step.noise_scale import batch_size_advice

LOG_FILE = 'train_log.jsonl'
_NOISE_SCALES = {'generator': 'noise_scale_g', 'discriminator': 'noise_scale_d'}


def read_log(log_file: Path) -> list[dict[str, Any]]:
    """The records of a log; without a last line that is still being written, or was cut off by whatever ended the run."""
    records = []
    for line in log_file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get('iter'), int):
            records.append(record)
    return records


def trim_log(log_file: Path, iteration: int) -> None:
    """Leave in the log what came up to an iteration: a resumed run writes the rest again."""
    if log_file.is_file():
        kept = [json.dumps(record) + '\n' for record in read_log(log_file) if record['iter'] <= iteration]
        write_atomically(lambda file: file.write(''.join(kept).encode()), log_file)


def noise_verdict(log_file: Path) -> str:
    """Whether the batch of a logged run was too small, enough or wasteful: one conclusion from both networks."""
    if not log_file.is_file():
        return f'There is no {log_file}.'
    found = {network: record for record in read_log(log_file) for network, key in _NOISE_SCALES.items() if key in record}
    if not found:
        return 'The log tells no gradient noise: it is known after 50 updates of a batch that is cut into parts.'
    last = max(found.values(), key=lambda record: int(record['iter']))
    return batch_size_advice({network: record[_NOISE_SCALES[network]] for network, record in found.items()},
                             int(last['batch']))

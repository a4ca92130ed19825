"""Names for what mmengine hands over as plain dicts."""
from __future__ import annotations

from typing import Any

Settings = dict[str, Any]
"""A section of a configuration, for one of mmengine's registries."""
State = dict[str, Any]
"""What a checkpoint holds of one thing, or a whole checkpoint."""

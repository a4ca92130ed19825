"""Shows references of docstrings, as ``:class:`x.Y```, as code on the API page; mkdocstrings knows no such roles."""
import re

import griffe

_ROLE = re.compile(r':\w+:`~?([^`]+)`')


class DocstringRoles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r'`\1`', obj.docstring.value)

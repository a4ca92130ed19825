"""Ways to spoil options and files, as strategies of hypothesis."""
import copy

from hypothesis import strategies as st

DELETED = object()
VALUES = [None, '', 0, -1, 1, 3, 2.5, 0.5, -0.5, True, False, 'no', 'disk', '1e-4', 1e308, 2**62, -2**62, float('inf'),
          float('nan'), [], [1], [0.9, 0.99, 0.9], [[]], [None], {}, {'a': 1}, {'type': ''}, {'type': None},
          {'type': 'disk'}, {1: 2}, 'x' * 300, 'a/../b', '~', DELETED]
SNIPPETS = ['\0', '\x1b[0m', '\t', ': ', '- ', '&a ', '*a ', '!!binary ', '!!python/name:os.system ', '[', '{', '}',
            ']', '"', "'", '#', '010', '1:30', '.inf', '.nan', 'no', '~', '%', '|', '>', '? ', '<<: ', '\n---\n',
            '\ud7ff', '\U0001f600', '9' * 400, '[' * 300]


def places(tree, where=()):
    """The path of every value in nested dicts and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*where, key)
        yield from places(value, (*where, key))


def changed(tree, where, value):
    """A copy in which the value at a place is another one, or is missing."""
    tree = target = copy.deepcopy(tree)
    for key in where[:-1]:
        target = target[key]
    if value is DELETED:
        del target[where[-1]]
    else:
        target[where[-1]] = copy.deepcopy(value)
    return tree


def spoiled_trees(tree):
    """Trees with one value changed, or two."""
    one = st.tuples(st.sampled_from(list(places(tree))), st.sampled_from(VALUES))

    def apply(changes):
        spoiled = tree
        for where, value in changes:
            try:
                spoiled = changed(spoiled, where, value)
            except (KeyError, TypeError, IndexError):
                continue  # the first change has removed the place of the second
        return spoiled

    return st.lists(one, min_size=1, max_size=2).map(apply)


def spoiled_texts(text):
    """Texts with a piece cut out, doubled, or put in."""
    at, length = st.integers(0, len(text)), st.integers(1, 60)
    return st.one_of(
        st.builds(lambda start, size: text[:start] + text[start + size:], at, length),
        st.builds(lambda start, size: text[:start + size] + text[start:], at, length),
        st.builds(lambda start, piece: text[:start] + piece + text[start:], at, st.sampled_from(SNIPPETS)))


def spoiled_bytes(content):
    """Bytes that are cut off, changed, shifted or doubled at one place."""
    at, piece = st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=8)
    return st.one_of(
        st.builds(lambda start: content[:start], at),
        st.builds(lambda start, new: content[:start] + new + content[start + len(new):], at, piece),
        st.builds(lambda start, new: content[:start] + new + content[start:], at, piece),
        st.builds(lambda start: content[:start] + content, at))

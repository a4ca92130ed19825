from pathlib import Path

import pytest

from sr_bigbatch.tasks.bench_peers import GAMES, PEERS, distances

ROWS = [line for line in (Path(__file__).parents[2] / 'docs' / 'peers.md').read_text().splitlines() if line.count('|') == 7]


@pytest.mark.parametrize('game', GAMES, ids=str)
def test_the_docs_tell_the_distances_that_are_measured(game):
    column = [cell.strip() for cell in ROWS[0].split('|')].index(str(game))
    told = {row.split('|')[1].replace('`', '').strip(): row.split('|')[column].strip() for row in ROWS[2:]}
    measured = distances(game)
    assert set(told) == {peer.name for peer in PEERS}
    for name, distance in measured.items():
        if distance is None:
            assert told[name] == '-'
            continue
        for ours, text in zip(distance, told[name].split('/'), strict=True):
            if float(text) < 1e-9:
                assert ours < 1e-9, (name, ours)
            else:
                assert ours == pytest.approx(float(text), rel=0.2), (name, ours)


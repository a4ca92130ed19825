"""Programs write beside what is there."""
import os
from pathlib import Path

import pytest

from sr_bigbatch.files.outputs import OutputRefused, distinct_stems, folded, refuse_outputs

LINKS = {'itself': lambda source, target: target, 'symlink': lambda source, target: target.symlink_to(source),
         'hard link': lambda source, target: target.hardlink_to(source),
         'link of a link': lambda source, target: (target.with_name('x').symlink_to(source), target.symlink_to('x'))}


@pytest.mark.parametrize('link', LINKS)
@pytest.mark.parametrize('overwrite', [True, False])
def test_an_input_is_no_output_by_whatever_name(tmp_path, link, overwrite):
    source, target = tmp_path / 'in.png', tmp_path / 'out.png'
    source.touch()
    if link == 'itself':
        target = tmp_path / 'folder' / '..' / 'in.png'
        (tmp_path / 'folder').mkdir()
    else:
        LINKS[link](source, target)
    with pytest.raises(OutputRefused, match='which this program reads'):
        refuse_outputs([tmp_path / 'other', source], [tmp_path / 'free', target], overwrite=overwrite)


def test_a_folder_that_is_a_link_leads_to_the_inputs_too(tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a.png').touch()
    (tmp_path / 'out').symlink_to('in')
    with pytest.raises(OutputRefused, match='reads'):
        refuse_outputs([tmp_path / 'in' / 'a.png'], [tmp_path / 'out' / 'a.png'], overwrite=True)


@pytest.mark.parametrize('there', [Path.touch, Path.mkdir, lambda path: path.symlink_to('nowhere')])
def test_what_is_there_is_written_over_only_if_told(tmp_path, there):
    there(tmp_path / 'out.png')
    with pytest.raises(OutputRefused, match='--overwrite'):
        refuse_outputs([], [tmp_path / 'out.png'], overwrite=False)
    refuse_outputs([], [tmp_path / 'out.png'], overwrite=True)


def test_a_long_list_is_told_shortly(tmp_path):
    outputs = [tmp_path / f'{number}.png' for number in range(9)]
    for path in outputs:
        path.touch()
    with pytest.raises(OutputRefused, match=r'2\.png and 6 more would'):
        refuse_outputs([], outputs, overwrite=False)


@pytest.mark.parametrize(('names', 'expected'), [
    (['a.png', 'b.jpg'], ['a', 'b']), (['p.png', 'p.jpg'], ['p_png', 'p_jpg']),
    (['a/p.png', 'b/p.png', 'c/P.PNG'], ['p_png', 'p_png_2', 'P_PNG_3']),
    (['p.png', 'p.jpg', 'p_png.bmp'], ['p_png_2', 'p_jpg', 'p_png']), (['a.b.png', 'a.b.jpg'], ['a.b_png', 'a.b_jpg']),
    (['P.png', 'p.png'], ['P_png', 'p_png_2']), (['é.png', 'e\u0301.png'], ['é_png', 'e\u0301_png_2']),
    (['straße.png', 'STRASSE.jpg'], ['straße_png', 'STRASSE_jpg']),
    (['p.png', 'p.png_2.png', 'p.jpg', 'x/p.png'], ['p_png', 'p.png_2', 'p_jpg', 'p_png_2'])])
def test_every_result_has_a_name_of_its_own(names, expected):
    found = distinct_stems([Path(name) for name in names], '_x4.png')
    assert found == [f'{name}_x4.png' for name in expected]
    assert len({folded(name) for name in found}) == len(names) and all(os.path.basename(name) == name for name in found)

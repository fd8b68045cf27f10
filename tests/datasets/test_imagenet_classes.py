"""The classes of ImageNet-1K."""

import subprocess
import sys

from timm.data import ImageNetInfo

from wmdd.datasets.imagenet_classes import indices, readable, wnids


def test_ids_and_names_are_those_of_pretrained_networks():
    names = ImageNetInfo()
    assert wnids() == names.label_names() == sorted(set(wnids()))
    assert [readable(wnid) for wnid in wnids()] == names.label_descriptions()
    assert readable(wnids()[207]) == "golden retriever"


def test_indices_follow_the_classes():
    assert indices([wnids()[7], wnids()[3]]) == [7, 3]
    assert indices(wnids()) == list(range(1000))

    for other in "cat", "n00000000", "n0144076", "n01440764x", "", "# ImageNet-1K":
        assert indices([wnids()[0], other]) is None
        assert readable(other) == other


def test_they_need_neither_timm_nor_torch():
    script = "import sys; from wmdd.datasets.imagenet_classes import wnids; wnids(); print({'timm', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"

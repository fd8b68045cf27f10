"""Published numbers: where each is from, and beside which of ours it stands."""

import pytest
import yaml

from wmdd.base.errors import WmddError
from wmdd.report import published
from wmdd.workflow.experiment_file import parse, presets

from .page.material import ROOT

FILE = ROOT / "config/published.yaml"


def test_the_numbers_of_the_paper():
    table = published.read(FILE)
    table = table[table["table"] != "ablation"].set_index(published.KEY)["published"]
    assert table.loc[("imagenette", "wmdd", 10, "resnet18", "soft", "paper")] == 64.8
    assert table.loc[("imagenette-in1k", "sre2l", 1, "resnet18", "soft", "paper")] == 20.6
    assert table.loc[("tiny-imagenet", "wmdd", 50, "resnet50", "soft", "paper")] == 60.5
    assert table.loc[("imagenet-1k", "random", 10, "resnet18", "soft", "CDA's")] == 35.8
    assert table.loc[("imagenet-1k", "sre2l", 10, "resnet18", "soft", "CDA's")] == 33.5, "below random images"


def test_every_number_has_a_source_a_preset_and_a_protocol():
    """A protocol is one of ours, or no name that an experiment could have."""
    table = published.read(FILE)
    assert table["source"].str.fullmatch(f".{{20,}}: ({'|'.join(published.KINDS.values())})").all()
    assert table[published.KEY].notna().all().all()
    assert set(table["method"]) <= set(presets().methods)
    rectified = table.query("protocol == 'rectified'")
    assert set(rectified["method"]) == {"sre2l", "d4m-sd"}
    assert rectified["source"].str.fullmatch(f".*RD3.*: {published.KINDS['secondary']}").all()
    for protocol in set(table["protocol"]) - set(presets().protocols):
        with pytest.raises(WmddError, match="should match pattern"):
            parse({"protocols": {protocol: {}}})


def test_a_mistake_in_the_file_is_one_line(tmp_path):
    path, content = tmp_path / "p.yaml", yaml.safe_load(FILE.read_text())
    first, *_ = content["results"]
    for change, says in (
        ({"source": "nobody"}, "there is no source nobody; known: ddoq"),
        ({"kind": None}, "results.0.kind: Input should be"),
        ({"kind": "blog"}, "'paper', 'quoted', 'repository' or 'secondary'"),
        ({"dataset": "mnist"}, "there is no dataset mnist; known: cifar10"),
        ({"methods": {"wmdd": [1.0]}}, "wmdd has 1 numbers for 4 numbers of images per class"),
        ({"methods": {"wmdd": [101, 1, 1, 1]}}, "less than or equal to 100"),
        ({"dataest": "x"}, "Extra inputs are not permitted"),
    ):
        content["results"][0] = first | change
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(WmddError, match=r"p\.yaml: ") as error:
            published.read(path)
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    for content in "a: [", "\x00":
        path.write_text(content)
        with pytest.raises(WmddError, match=r"p\.yaml is not valid YAML"):
            published.read(path)
    path.unlink()
    with pytest.raises(WmddError, match="cannot read the published numbers"):
        published.read(path)

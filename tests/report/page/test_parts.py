"""Lineage, published numbers, strips of images, and the map."""

import base64
import io

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from wmdd.base.errors import WmddError
from wmdd.report import accuracy_tables as scores
from wmdd.report import lineage, published, thumbnails
from wmdd.report.render import render
from wmdd.report.results import rows, summary
from wmdd.stages import embedding

from .material import ROOT, files, results

FILE = ROOT / "config/published.yaml"


# Lineage


def test_a_chain_by_digests():
    found = lineage.graph(files())
    assert found.nodes == {"data": 1, "teacher": 1, "features": 1, "recover": 1, "images": 1, "student": 1}
    assert set(found.edges) == {
        ("data", "teacher"), ("data", "features"), ("teacher", "features"), ("features", "recover"), ("recover", "images"),
        ("images", "student"), ("data", "student"),
    }  # fmt: skip


def test_what_was_made_from_something_that_is_no_longer_there():
    (line,) = lineage.graph(files()).broken
    assert line == "block was made from other teacher than are there now; run the workflow again"


def test_what_is_not_among_the_files_is_not_missed():
    assert lineage.graph([("x", {"stage": "student", "inputs": {"labels": "l", "3": "b"}})]).broken == []


EXPERTS = [(f"expert{n}", {"stage": "expert", "digest": f"e{n}", "inputs": {"data": "d"}}) for n in range(12)]
MATCHED = (
    "block",
    {"stage": "match", "digest": "i", "inputs": {"data": "d"} | {f"expert{n}": f"e{n}" for n in range(12)}},
)


def test_numbered_experts_are_one_stage():
    found = lineage.graph([files()[0], *EXPERTS, MATCHED, files()[4]])
    assert set(found.edges) == {("data", "expert"), ("data", "match"), ("expert", "match"), ("match", "images")}
    assert (found.edges["expert", "match"], found.broken) == (12, [])


def test_many_experts_that_were_trained_anew_are_one_line():
    anew = [(path, meta | {"digest": meta["digest"] + "anew"}) for path, meta in EXPERTS]
    (line,) = lineage.graph([files()[0], *anew, MATCHED]).broken
    assert line == "block was made from other expert than are there now; run the workflow again"


def test_the_stages_of_a_real_chain_have_an_order():
    """A set joined from one block has the digest of that block; that is no circle."""
    found = lineage.graph(files())
    assert all(a != b for a, b in found.edges)


# Published numbers


def test_the_numbers_of_the_paper():
    table = published.read(FILE)
    table = table[table["table"] != "ablation"].set_index(published.KEY)["published"]
    assert table.loc[("imagenette", "wmdd", 10, "resnet18", "soft", "paper")] == 64.8
    assert table.loc[("imagenette-in1k", "sre2l", 1, "resnet18", "soft", "paper")] == 20.6
    assert table.loc[("tiny-imagenet", "wmdd", 50, "resnet50", "soft", "paper")] == 60.5
    assert table.loc[("imagenet-1k", "random", 10, "resnet18", "soft", "CDA's")] == 35.8
    assert table.loc[("imagenet-1k", "sre2l", 10, "resnet18", "soft", "CDA's")] == 33.5, "below random images"


def test_under_the_rectified_protocol_there_is_only_what_its_paper_has():
    table = published.read(FILE).query("protocol == 'rectified'")
    assert set(table["method"]) == {"sre2l", "d4m-sd"}
    assert table["source"].str.contains("RD3").all()


def test_a_protocol_is_one_of_ours_or_no_name_that_an_experiment_could_have():
    from wmdd.workflow.experiment_file import parse, presets

    for protocol in set(published.read(FILE)["protocol"]) - set(presets().protocols):
        with pytest.raises(WmddError, match="should match pattern"):
            parse({"protocols": {protocol: {}}})


def test_every_published_method_of_ours_is_a_preset():
    from wmdd.workflow.experiment_file import presets

    assert set(published.read(FILE)["method"]) <= set(presets().methods)


def test_every_number_has_a_source():
    table = published.read(FILE)
    assert table["source"].str.fullmatch(f".{{20,}}: ({'|'.join(published.KINDS.values())})").all()
    assert set(table[table["protocol"] == "rectified"]["source"].str.split(": ").str[-1]) == {
        published.KINDS["secondary"]
    }
    assert table[published.KEY].notna().all().all()


def test_they_stand_beside_ours():
    table = summary(rows(results()))
    found = published.beside(table, published.read(FILE)).set_index(["method", "ipc", "student", "labels"])
    assert len(found) == len(table)
    assert found.loc[("wmdd", 10, "resnet18", "soft"), "published"] == 64.8
    assert np.isnan(found.loc[("wmdd", 10, "resnet18", "hard"), "published"])
    wide = scores.across("x", found.reset_index(), ["dataset", "ipc"])
    shown = wide.text.set_index(["method", "student", "labels"]).loc[("wmdd (published)", "resnet18", "soft")]
    assert shown.tolist()[1:] == ["40.2", "64.8"]
    assert "wmdd (published) &" in render(wide, "latex")
    assert r"$\pm$" in render(wide, "latex")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["results"][0].update(source="nobody"), "there is no source nobody; known: ddoq"),
        (lambda c: c["results"][0].pop("kind"), "results.0.kind: Field required"),
        (lambda c: c["results"][0].update(kind="blog"), "'paper', 'quoted', 'repository' or 'secondary'"),
        (lambda c: c["results"][0].update(dataset="mnist"), "there is no dataset mnist; known: cifar10"),
        (
            lambda c: c["results"][0]["methods"].update(wmdd=[1.0]),
            "wmdd has 1 numbers for 4 numbers of images per class",
        ),
        (lambda c: c["results"][0]["methods"].update(wmdd=[101, 1, 1, 1]), "less than or equal to 100"),
        (lambda c: c["results"][0].update(dataest="x"), "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path, change, says):
    content = yaml.safe_load(FILE.read_text())
    change(content)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(WmddError, match=r"p\.yaml: ") as error:
        published.read(tmp_path / "p.yaml")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "a: [", "\x00"])
def test_no_such_file_or_no_yaml(tmp_path, content):
    path = tmp_path / "p.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(WmddError, match=r"p\.yaml"):
        published.read(path)


# Strips


def shown(source: str) -> Image.Image:
    head, _, data = source.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_images_are_shown_pixel_for_pixel():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    source, side = thumbnails.strip(images)
    row = np.asarray(shown(source).convert("RGBA"))
    assert side == 8
    assert row.shape == (8, 3 * 8 + 2 * thumbnails.GAP, 4)
    for place in range(3):
        left = place * (8 + thumbnails.GAP)
        assert np.array_equal(row[:, left : left + 8, :3], images[place].transpose(1, 2, 0))
    assert (row[:, 8 : 8 + thumbnails.GAP, 3] == 0).all(), "the gap shows the page"


def test_large_images_are_shown_smaller():
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 224, 224), dtype=np.uint8)
    source, side = thumbnails.strip(images)
    assert side == thumbnails.SIDE
    assert shown(source).size == (10 * thumbnails.SIDE + 9 * thumbnails.GAP, thumbnails.SIDE)
    assert len(source) < 150_000


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (10, 10), (1000, 10)])
def test_classes_from_first_to_last(classes, count):
    found = thumbnails.chosen(classes)
    assert len(found) == count
    assert (found[0], found[-1]) == (0, classes - 1)
    assert embedding.chosen(classes) == found


# The map


def test_near_features_are_near_on_the_map_and_always_at_the_same_place():
    draw = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(3, 16, generator=draw)
    features = torch.cat([centre + torch.randn(20, 16, generator=draw) for centre in centres])
    places = embedding.plane(features)
    assert places.shape == (60, 2)
    assert np.array_equal(places, embedding.plane(features))
    groups = places.reshape(3, 20, 2)
    within = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    between = min(np.linalg.norm(a.mean(0) - b.mean(0)) for i, a in enumerate(groups) for b in groups[:i])
    assert between > 2 * within


def test_few_points_have_a_map_too():
    assert embedding.plane(torch.randn(4, 8)).shape == (4, 2)


def test_the_real_images_of_a_map_are_always_the_same():
    rows = np.arange(500)
    assert np.array_equal(embedding.sample(rows, "3"), embedding.sample(rows, "3"))
    assert len(embedding.sample(rows, "3")) == embedding.REAL
    assert not np.array_equal(embedding.sample(rows, "3"), embedding.sample(rows, "4"))
    assert np.array_equal(embedding.sample(rows[:5], "3"), rows[:5])

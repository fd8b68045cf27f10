"""Design property 1: a change reruns exactly the stages that use it, and what follows from them."""

import re
from pathlib import Path

import pytest
import torch

from wmdd.base.rng import generator
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings

from .conftest import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

REPORT = {"report", "page", "all"}
LATER = {"join", "relabel", "student", "grid", *REPORT}  # what follows from recovered images
REGULARISATION = {"wmdd": {"recover": {"regularisation": 3.0}}}
DEFAULTS = {"wmdd": {"recover": {"regularisation": 10.0, "feature_weight": 1}}}
SEED = "results/digits/nano/wmdd/ipc2/seed0"


def test_a_finished_run_has_nothing_to_do_and_no_set_twice(run: Workspace) -> None:
    assert run.pending() == {}
    assert run.contents("results/**/recover/*.h5") == {}, "the blocks of images.h5"
    assert len(run.contents("results/**/recover/*.cost.json")) == 3


def test_regularisation_reruns_recover_and_later_for_one_method(run: Workspace) -> None:
    others = ("data/*.h5", "results/**/teacher/**/*", "results/**/sre2l/**/images.h5", "results/**/barycenter/*.h5")
    before, images = run.contents(*others), (run.root / SEED / "images.h5").read_bytes()
    assert run.changed("methods", REGULARISATION) == {
        "recover": 2, "join": 1, "relabel": 1, "student": 1, "grid": 1, "report": 1, "page": 1, "all": 1,
    }  # fmt: skip
    run.snakemake()
    assert run.pending() == {}
    assert (run.root / SEED / "images.h5").read_bytes() != images
    assert run.contents(*others) == before


def test_a_job_that_failed_when_it_was_run_again_is_not_forgotten(run: Workspace) -> None:
    run.change("datasets.digits.teacher.min_accuracy", 1.0)
    assert run.snakemake(check=False).returncode
    assert not (run.root / "results/digits/nano/teacher/seed0/model.safetensors").exists()
    assert run.pending()["teacher"] == 1, "results of the old settings are still there"
    run.change("datasets.digits.teacher.min_accuracy", 0.0)
    assert run.pending().keys() > {"teacher", "features", "recover", "student"}


CHANGES = [
    ("protocols.short.student.lr", 0.002, {"student", *REPORT}),
    ("protocols.short.relabel.crop_scale", [0.2, 1.0], {"relabel", "student", *REPORT}),
    ("methods", {"wmdd": {"barycenter": {"weights": "free"}}}, {"barycenter", "recover", *LATER}),
    ("teachers.nano.lr", 0.1, {"teacher", "features", "barycenter", "recover", "select", *LATER}),
    ("methods", DEFAULTS, set()),
    ("tracking", {"mode": "offline", "project": "other"}, {"scoreboard", "all"}),  # there was none without tracking
    ("experiment", "renamed", {"page", "all"}),
    ("jobs", {"minutes": 60, "device": "cpu-core"}, set()),
]


def test_a_setting_reruns_the_stages_that_use_it(run: Workspace) -> None:
    assert list(map(set, run.pending_after(CHANGES))) == [rules for _, _, rules in CHANGES]


def test_new_cells_rerun_no_teacher_no_features_and_nothing_of_before(run: Workspace) -> None:
    entries = run.config["matrix"]
    methods = [*entries[0]["methods"], "wmdd-ce"]
    for change, blocks in ({"ipc": [2, 3]}, 3), ({"seeds": [0, 1]}, 3), ({"methods": methods}, 2):
        pending = run.changed("matrix", [entries[0] | change, *entries[1:]])
        assert pending["recover"] == blocks, "deleted blocks of before are not missed"
        assert not {"data", "teacher", "features"} & set(pending)
        assert run.pending(f"{SEED}/images.h5") == {}, "what was there is rebuilt"


def test_the_order_of_settings_and_what_jobs_are_given_rerun_nothing(run: Workspace) -> None:
    run.config = dict(reversed(run.config.items()))
    assert run.pending("--set-threads", "teacher=1", "--set-resources", "recover:mem_mb=999") == {}
    assert run.changed("teachers.nano.gpus", 8) == {}
    assert run.changed("delete_blocks", False) == {}
    forced = run.snakemake("--dry-run", "--forcerun", "teacher", "--printshellcmds")
    assert " --processes 8 " in forced.stdout + forced.stderr


def test_a_job_says_what_it_does_its_log_and_what_it_asks_for(run: Workspace) -> None:
    for device, gpus in ("auto", 1), ("cpu", 0):
        run.change("engine", {"precision": "fp32", "device": device})
        forced = run.snakemake("--dry-run", "--forcerun", "recover")
        asked = rf"threads=1, mem_mb=\d{{4}}, runtime=10, gpu={gpus}\n"
        log = r"logs/\S+/recover/classes0-4\.log\n"
        message = rf"Recovering 2 images for each of classes0-4 by wmdd\n    log: {log}    resources: {asked}"
        assert re.search(message, forced.stdout + forced.stderr)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_code_reruns_the_stages_that_run_it(run: Workspace) -> None:
    """Which stages run what is told by the digests of their code (tests/jobs); here, that a rule looks at its own."""
    edit(run.root / "wmdd/report/markdown.py", '"# Results"', '"# The results"')
    assert set(run.pending()) == REPORT
    edit(run.root / "wmdd/cli/student.py", 'cost["bytes_per_image"] = ', 'cost["bytes"] = ')
    assert set(run.pending()) == {"relabel", "student", *REPORT}
    edit(run.root / "wmdd/transport/seeding.py", "2 + int(math.log(k))", "3 + int(math.log(k))")
    assert set(run.pending()) == {"barycenter", "select", "recover", *LATER}


def test_words_and_names_of_modules_rerun_nothing(run: Workspace) -> None:
    edit(run.root / "wmdd/stages/recover.py", "Recover: images", "Recover, once more: images")
    edit(run.root / "wmdd/stages/recover_views.py", "def view(", "# a remark\n\n\ndef view(")
    edit(run.root / "wmdd/networks/training.py", '"""Return top-1', '"""Return the top-1')
    edit(run.root / "wmdd/settings/recover.py", '"Adam steps (', '"steps of Adam (')
    edit(run.root / "rules/recover.smk", "Recovering", "Getting back")
    (run.root / "wmdd/networks/augment.py").rename(run.root / "wmdd/networks/distortions.py")
    for path in (run.root / "wmdd").rglob("*.py"):
        text = path.read_text().replace("wmdd.networks.augment", "wmdd.networks.distortions")
        path.write_text(re.sub(r"(from wmdd.networks import .*)\baugment\b", r"\1distortions as augment", text))
    assert run.pending() == {}


def test_another_entry_of_a_dataset_reruns_its_data(run: Workspace) -> None:
    edit(run.root / "wmdd/settings/datasets.yaml", "  layout: digits\n", "  layout: digits\n  subset: [some]\n")
    assert run.pending("data/digits.h5") == {"data": 1}


def test_another_file_under_the_same_name_is_another_teacher(fresh: Workspace) -> None:
    """The weights of a teacher from outside are an input like any other."""
    settings = NetworkSettings(architecture="resnet18", width=4, stem="cifar")
    target = "results/digits/outside/teacher/seed0/model.safetensors"

    def put(seed: int) -> None:
        torch.save(build(settings, 10, 16, generator("outside", seed)).state_dict(), fresh.root / "mine.pt")

    put(0)
    fresh.change("matrix", [fresh.config["matrix"][0] | {"teachers": ["outside"]}])
    fresh.change("teachers", {"outside": {"architecture": "resnet18", "width": 4, "weights": "mine.pt"}})
    fresh.snakemake(target)
    assert fresh.pending(target) == {}
    fresh.change("datasets.digits.teacher.epochs", 3)  # of a training that there is not
    assert fresh.pending(target) == {}
    put(1)
    assert fresh.pending(target) == {"teacher": 1}
    (fresh.root / "mine.pt").unlink()
    assert "teacher outside on digits: weights: there is no file mine.pt" in fresh.mistake(target)

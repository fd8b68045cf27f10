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

LATER = {"images", "relabel", "student", "grid", "report", "page", "all"}  # what follows from recovered images


def test_finished_run_has_nothing_to_do(run: Workspace) -> None:
    assert run.pending() == {}


def test_regularisation_reruns_recover_and_later_for_one_method(run: Workspace) -> None:
    config = run.config
    config["methods"] = {"wmdd": {"recover": {"regularisation": 3.0}}}
    run.config = config
    others = ("data/*.h5", "results/**/teacher/**/*", "results/**/sre2l/**/images.h5", "results/**/barycenter/*.h5")
    before = run.contents(*others)
    assert run.pending() == {
        "recover": 2, "images": 1, "relabel": 1, "student": 2, "grid": 1, "report": 1, "page": 1, "all": 1,
    }  # fmt: skip
    images = run.path("results/digits/nano/wmdd/ipc2/seed0/images.h5").read_bytes()
    run.snakemake()
    assert run.pending() == {}
    assert run.path("results/digits/nano/wmdd/ipc2/seed0/images.h5").read_bytes() != images
    assert run.contents(*others) == before


def test_learning_rate_of_students_reruns_students_only(run: Workspace) -> None:
    config = run.config
    config["protocols"]["short"]["student"]["lr"] = 0.002
    run.config = config
    assert set(run.pending()) == {"student", "report", "page", "all"}


def test_barycenter_weights_rerun_barycenters_and_later(run: Workspace) -> None:
    config = run.config
    config["methods"] = {"wmdd": {"barycenter": {"weights": "free"}}}
    run.config = config
    assert set(run.pending()) == {"barycenter", "recover", *LATER}


@pytest.mark.parametrize(
    ("key", "value"), [("ipc", [2, 3]), ("methods", ["wmdd", "sre2l", "random", "kmeans-medoid", "wmdd-ce"])]
)
def test_new_cells_rerun_no_teacher_and_no_features(run: Workspace, key: str, value: list) -> None:
    config = run.config
    config["matrix"][0][key] = value
    run.config = config
    pending = run.pending()
    assert pending["recover"] >= 2
    assert not {"data", "teacher", "features"} & set(pending)
    run_again = run.pending("results/digits/nano/wmdd/ipc2/seed0/images.h5")
    assert run_again == {}, "what was there is rebuilt"


def test_teacher_settings_rerun_everything_but_the_data(run: Workspace) -> None:
    config = run.config
    config["teachers"]["nano"]["lr"] = 0.1
    run.config = config
    pending = run.pending()
    assert {"teacher", "features", "barycenter", "recover", "relabel", "student"} <= set(pending)
    assert "data" not in pending


def test_defaults_written_out_and_other_order_rerun_nothing(run: Workspace) -> None:
    config = run.config
    config["methods"] = {"wmdd": {"recover": {"regularisation": 10.0, "feature_weight": 1}}}
    config["datasets"]["digits"]["recover"] = {"jitter": 2, **config["datasets"]["digits"]["recover"]}
    run.config = dict(reversed(config.items()))
    assert run.pending() == {}


def test_threads_and_tracking_rerun_nothing_and_a_name_the_page_it_stands_on(run: Workspace) -> None:
    config = run.config
    config["tracking"] = {"mode": "offline", "project": "other"}
    run.config = config
    assert run.pending("--set-threads", "teacher=1", "--set-resources", "recover:mem_mb=999") == {}
    config["experiment"] = "renamed"
    run.config = config
    assert run.pending() == {"page": 1, "all": 1}


def test_gpus_of_a_teacher_rerun_nothing(run: Workspace) -> None:
    config = run.config
    config["teachers"]["nano"]["gpus"] = 8
    run.config = config
    assert run.pending() == {}
    forced = run.snakemake("--dry-run", "--forcerun", "teacher", "--printshellcmds")
    assert " --processes 8 " in forced.stdout + forced.stderr


def test_the_size_of_jobs_reruns_nothing_while_the_blocks_stay(run: Workspace) -> None:
    """Time limits, memory and GPUs are asked for, and no result depends on them."""
    config = run.config
    run.config = config | {"jobs": {"minutes": 60, "device": "cpu-core"}}
    assert run.pending() == {}
    for device, gpus in {"auto": 1, "cpu": 0}.items():
        run.config = config | {"engine": config["engine"] | {"device": device}}
        forced = run.snakemake("--dry-run", "--forcerun", "recover")
        asked = re.search(r"rule recover:.*?resources: (.*?)\n", forced.stdout + forced.stderr, re.DOTALL)[1]
        assert re.search(rf"\bruntime=10\b.*\bgpu={gpus}\b.*\bmem_mb=\d{{4}}\b", asked)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_comment_and_docstring_rerun_nothing(run: Workspace) -> None:
    edit(run.root / "wmdd/stages/recover.py", "Recover: images", "Recover, once more: images")
    edit(run.root / "wmdd/stages/recover_views.py", "def view(", "# a remark\n\n\ndef view(")
    edit(run.root / "wmdd/networks/training.py", '"""Return the optimiser', '"""Return the very optimiser')
    assert run.pending() == {}


def test_renaming_a_module_and_describing_a_setting_rerun_nothing(run: Workspace) -> None:
    (run.root / "wmdd/networks/augment.py").rename(run.root / "wmdd/networks/distortions.py")
    for path in (run.root / "wmdd").rglob("*.py"):
        text = path.read_text().replace("wmdd.networks.augment", "wmdd.networks.distortions")
        path.write_text(re.sub(r"(from wmdd.networks import .*)\baugment\b", r"\1distortions as augment", text))
    edit(run.root / "wmdd/settings/recover.py", '"Adam steps (', '"steps of Adam (')
    assert run.pending() == {}


def test_code_of_settings_reruns_the_stage_that_asks_it(run: Workspace) -> None:
    edit(
        run.root / "wmdd/settings/recover.py",
        'return self.statistics == "global" or',
        'return False or self.statistics == "global" or',
    )
    assert set(run.pending()) == {"recover", *LATER}


def test_another_entry_of_a_dataset_reruns_its_data(run: Workspace) -> None:
    edit(run.root / "wmdd/settings/datasets.yaml", "  layout: digits\n", "  layout: digits\n  subset: [some]\n")
    assert run.pending("data/digits.h5") == {"data": 1}


def test_code_of_recover_reruns_recover_and_later(run: Workspace) -> None:
    edit(run.root / "wmdd/stages/recover.py", "iterations // 100", "settings.iterations // 50")
    assert set(run.pending()) == {"recover", *LATER}


def test_code_of_the_solver_reruns_barycenters_medoids_and_later(run: Workspace) -> None:
    edit(run.root / "wmdd/transport/seeding.py", "2 + int(math.log(k))", "3 + int(math.log(k))")
    assert set(run.pending()) == {"barycenter", "select", "recover", *LATER}


def test_code_of_a_command_reruns_that_stage(run: Workspace) -> None:
    edit(run.root / "wmdd/cli/student.py", 'cost["bytes_per_image"] = ', 'cost["bytes"] = ')
    assert set(run.pending()) == {"relabel", "student", "report", "page", "all"}


def test_code_of_the_report_reruns_the_report(run: Workspace) -> None:
    edit(run.root / "wmdd/report/report.py", '"# Results"', '"# The results"')
    assert set(run.pending()) == {"report", "page", "all"}


def test_another_file_under_the_same_name_is_another_teacher(fresh: Workspace) -> None:
    """The weights of a teacher from outside are an input like any other."""
    settings = NetworkSettings(architecture="resnet18", width=4, stem="cifar")
    target = "results/digits/outside/teacher/seed0/model.safetensors"

    def put(seed: int) -> None:
        torch.save(build(settings, 10, 16, generator("outside", seed)).state_dict(), fresh.root / "mine.pt")

    put(0)
    config = fresh.config
    config["matrix"][0]["teachers"] = ["outside"]
    config["teachers"] = {"outside": {"architecture": "resnet18", "width": 4, "weights": "mine.pt"}}
    fresh.config = config
    fresh.snakemake(target)
    assert fresh.pending(target) == {}
    config["datasets"]["digits"]["teacher"]["epochs"] = 3  # of a training that there is not
    fresh.config = config
    assert fresh.pending(target) == {}
    put(1)
    assert fresh.pending(target) == {"teacher": 1}
    (fresh.root / "mine.pt").unlink()
    failed = fresh.snakemake("--dry-run", target, check=False)
    assert "teacher outside on digits: weights: there is no file mine.pt" in failed.stdout + failed.stderr

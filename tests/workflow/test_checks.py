"""Checks before anything runs: each mistake is one line that names the place and the remedy."""

import pytest

from .experiments import experiment, merged, mistake, nested

MINE = ["mine"]


def mine(base, **sections):
    """A method based on another."""
    return {"methods": {"mine": {"base": base, **sections}}}


def generator(**entry):
    return mine("ddoq", generator="g") | {"generators": {"g": entry}}


CIRCLE = {"a": {"base": "b"}, "b": {"base": "c"}, "c": {"base": "a"}}
START = {"mine": {"base": "wmdd", "recover": {"init": "method:other"}}}
WHITE = {"data": {"resolution": 65}}


@pytest.mark.parametrize(
    ("content", "cell", "says"),
    [
        # names
        ({}, {"datasets": ["cifar1O"]}, "unknown name 'cifar1O' in datasets; did you mean 'cifar10'?"),
        ({}, {"methods": ["wmddfree"]}, "unknown name 'wmddfree' in methods; did you mean 'wmdd-free'?"),
        ({}, {"protocols": ["papr"]}, "unknown name 'papr' in protocols; did you mean 'paper'?"),
        ({}, {"students": ["resnet-18"]}, "unknown name 'resnet-18' in students; did you mean 'resnet18'?"),
        ({}, {"teachers": ["resnet18w8"]}, "unknown name 'resnet18w8' in teachers; did you mean 'resnet18-w8'?"),
        ({"datasets": {"own": {"data": {"root": "x"}}}}, {"datasets": ["own"], "protocols": ["rded"]},
         "protocol rded on own: it has other settings for small images, and the side of these is not known"),
        (mine("sre21"), {"methods": MINE}, "unknown name 'sre21' in methods; did you mean 'sre2l'?"),
        (mine("ddoq", generator="vea"), {"methods": MINE}, "unknown name 'vea' in generators; did you mean 'vae'"),
        (mine("mtt", expert="convent3"), {"methods": MINE}, "unknown name 'convent3' in experts; did you mean 'convnet3'"),
        (mine("wmdd", recover={"init": "method:no"}), {"methods": MINE}, "unknown name 'no' in methods"),
        ({"methods": CIRCLE}, {"methods": ["a"]}, "methods: a -> b -> c -> a goes round in a circle"),
        ({"methods": {"a": {"base": "a"}}}, {"methods": ["a"]}, "methods: a -> a goes round in a circle"),
        ({"methods": {"wmdd": {"base": "a"}, "a": {"base": "wmdd"}}}, {"methods": ["a"]}, "methods: a -> wmdd -> a goes round"),
        ({"protocols": {"a": {"base": "b"}, "b": {"base": "a"}}}, {"protocols": ["a"]}, "protocols: a -> b -> a goes round"),
        (mine("mtt", expert="a") | {"experts": {"a": {"base": "b"}, "b": {"base": "a"}}}, {"methods": MINE},
         "experts: a -> b -> a goes round in a circle"),
        ({"methods": {"teacher": {"base": "wmdd"}}}, {}, "methods.teacher: the name is taken"),
        ({"datasets": {"report": {}}}, {}, "datasets.report: the name is taken"),
        ({"teachers": {"latent": {}}}, {}, "teachers.latent: the name is taken"),
        ({"teachers": {"expert": {}}}, {}, "teachers.expert: the name is taken"),
        *(({}, {"name": name}, f"matrix: the name {name} is that of a rule; choose another")
          for name in ("teacher", "student_10", "page", "figures", "all")),
        ({"methods": {"mine": {}}}, {"methods": MINE}, "method mine has no family; give it a base, one of "),
        ({"methods": {"mine": {"family": "latent"}}}, {"methods": MINE},
         "method mine has no generator; set it to one of dit, latent-diffusion"),
        ({"methods": {"mine": {"family": "match", "match": {"objective": "mtt"}}}}, {"methods": MINE},
         "method mine has no experts; set expert to one of convnet3, convnet3-whitened, convnet4"),
        # the matrix
        ({"runs_per_job": 4}, {"runs": 2}, "matrix: runs 2 is not a multiple of runs_per_job 4; change one of them"),
        # the family recover
        ({"barycenter": {"solver": "stream"}}, {}, "barycenter for digits, wmdd: the solver stream has free weights only"),
        (mine("wmdd", recover={"init": "method:mine"}), {"methods": MINE},
         "method mine on digits: recover.init goes round: mine -> mine"),
        ({"methods": START | {"other": {"base": "wmdd", "recover": {"init": "method:mine"}}}}, {"methods": MINE},
         "recover.init goes round: mine -> other -> mine"),
        ({"methods": {
            "mine": {"base": "dm", "match": {"init": "method:other"}},
            "other": {"base": "wmdd", "recover": {"init": "method:mine"}}}},
         {"methods": MINE}, "match.init goes round: mine -> other -> mine"),
        (mine("wmdd", recover={"init": "method:random-coded"}), {"methods": MINE},
         "method mine on digits: its start random-coded holds more images than an epoch shows"),
        # the family latent
        (generator(kind="ldm"), {"methods": MINE}, "method mine on digits: generator g: kind ldm needs model"),
        (generator(kind="ldm", model="./x"), {"methods": MINE},
         "method mine on digits: generator g: model: there is no folder ./x"),
        (generator(kind="latent-diffusion"), {"methods": MINE}, "generator g: kind latent-diffusion needs encoder"),
        (mine("ddoq") | nested("generators.latent-diffusion.encoder", "dit"), {"methods": MINE},
         "generator latent-diffusion: its encoder dit is of kind ldm; name one of kind vae"),
        (mine("ddoq", quantize={"solver": "stream", "weights": "uniform"}), {"methods": MINE},
         "method mine on digits: quantize: the solver stream has free weights only"),
        # the family match
        (mine("mtt", match={"start_epochs": 40, "expert_epochs": 12}), {"methods": MINE},
         "method mine on digits: match begins at up to 39 epochs of an expert and goes on for 12, but the experts convnet3 "
         "have 50; raise their epochs to 51"),
        ({"methods": START | {"other": {"base": "mtt", "match": {"expert_epochs": 99}}}}, {"methods": MINE},
         "method other on digits: match begins at up to 19 epochs"),
        (mine("mtt") | nested("experts.convnet3.norm", "batch"), {"methods": MINE},
         "method mine on digits: experts convnet3: BatchNorm ties the images of a batch to each other; set norm: instance"),
        (mine("mtt") | nested("expert.architecture", "resnet18"), {"methods": MINE},
         "method mine on digits: experts convnet3: the network must be a ConvNet, not resnet18"),
        (mine("dm", match={"norm": "batch"}), {"methods": MINE}, "method mine on digits: match: BatchNorm ties"),
        (mine("datadam", match={"architecture": "vit-tiny"}), {"methods": MINE},
         "method mine on digits: match: the network must be a ConvNet, not vit-tiny; set architecture: convnet3"),
        (mine("mtt", expert="convnet3-whitened") | WHITE, {"methods": MINE},
         "experts convnet3-whitened: whitening takes images of at most 64 px, not of 65 px; set whiten: false"),
        # students
        ({"student": {"whiten": True}} | WHITE, {}, "protocol paper on digits: whitening takes images of at most 64 px"),
        ({"student": {"epochs": 301}}, {}, "protocol paper on digits: student.epochs 301 exceeds relabel.epochs 300"),
        ({"student": {"temperature": 4}}, {"protocols": ["paper-pruned"]},
         "protocol paper-pruned on digits: the labels are pruned for relabel.temperature 20 but student.temperature is 4"),
        ({"student": {"temperature_decay": 0.7}}, {"protocols": ["paper-pruned"]},
         "protocol paper-pruned on digits: pruned labels hold for one temperature, but student.temperature_decay is 0.7; set "),
        # teachers of the labels
        (nested("relabel.teachers", ["resnet81"]), {}, "unknown name 'resnet81' in teachers; did you mean 'resnet18'?"),
        (nested("relabel.teachers", ["resnet18-w8", "resnet18"]), {},
         "protocol paper: relabel.teachers names resnet18, which is the distillation's own teacher; leave it out"),
        (nested("relabel.teachers", ["resnet18-w8", "resnet18-w8"]), {}, "names resnet18-w8, which is named before; leave"),
        (merged(nested("relabel.teachers", ["b"]), nested("teachers.b.weights", "no.pt")), {},
         "teacher b on digits: weights: there is no file no.pt"),
        (nested("teachers.resnet18", {"architecture": "convnet3", "norm": "instance"}), {"protocols": ["fadrm"]},
         "protocol fadrm: relabel.statistics is batch, but resnet18 have no BatchNorm; set it to running"),
        # teachers
        ({"teacher": {"weights": "no.pt"}}, {}, "teacher resnet18 on digits: weights: there is no file no.pt"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(content, cell, says):
    assert says in mistake(content, **{"methods": ["wmdd"]} | cell)


LONG, COLD = {"student": {"epochs": 301}}, {"student": {"temperature": 4}}


@pytest.mark.parametrize(
    ("content", "cell"),
    [
        ({"barycenter": {"solver": "stream", "weights": "free"}}, {}),
        ({"barycenter": {"solver": "stream"}}, {"methods": ["random", "sre2l"]}),  # which have no barycenter
        (mine("mtt", match={"start_epochs": 40, "expert_epochs": 11}), {"methods": MINE}),
        (merged(LONG, nested("relabel.epochs", 301)), {}),
        (merged(LONG, nested("student.labels", "hard")), {}),
        (LONG, {"protocols": ["paper-online"]}),
        (merged(COLD, nested("relabel.temperature", 4)), {"protocols": ["paper-pruned"]}),
        (merged(COLD, nested("relabel.store", "stored")), {"protocols": ["paper-pruned"]}),
        (merged(COLD, nested("student.labels", "hard")), {"protocols": ["paper-pruned"]}),
        (merged(nested("relabel.teachers", ["resnet18"]), nested("student.labels", "hard")), {}),
        (
            merged(nested("relabel.teachers", ["resnet18-w8"]), nested("teachers.resnet18.architecture", "vit-tiny")),
            {"protocols": ["fadrm"]},
        ),
    ],
)
def test_what_just_fits_is_taken(content, cell):
    assert experiment(content, **cell)

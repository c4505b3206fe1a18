"""A method that a user wrote against the former names of the trainer goes on working, with a warning for each name."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from semiseg.dataset import Dataset
from tests.trainer.factories import build_method, make_recipe_for, make_tiny_recipe, train_on_cpu, write_phantoms
from tests.warnings_caught import deprecations
from trainer.deprecated_names import RenamedMembers
from trainer.methods.method import StepPlan
from trainer.methods.registry import method_class
from trainer.methods.supervised import Supervised
from trainer.patches import BatchComposition
from trainer.scan_labelling import LabellingWorkload

OLD = '''
"""Methods of a clinic, written against the former names."""

import copy

import numpy as np

from trainer.averaging import average_into
from trainer.losses import mean_of, mean_where, supervised_loss
from trainer.methods.label_first import LabelFirst
from trainer.methods.mean_teacher import MeanTeacher
from trainer.methods.method import Method, StepPlan, Task, freeze, share_of_part
from trainer.methods.pretrain import PretrainThenTrain
from trainer.methods.registry import MethodName
from trainer.parallel import processes
from trainer.recipe import Section
from trainer.scan_labelling import LabellingWork
from trainer.schedules import Course, cosine, course_factor, poly
from trainer.students import AnyStudent, read_student

called = []


class Own(Method):
    name = "own"

    class Config(Section):
        course: Course = "ramp"

    def __init__(self, recipe, task: Task):
        super().__init__(recipe, task)
        assert processes() == 1

    def build(self):
        student = self.build_network(read_student(self.recipe.student))
        return {"student": student, "mean": freeze(copy.deepcopy(student))}

    def step_plan(self, step):
        rate = 0.01 * poly(step, self.steps) * cosine(step, self.steps)
        return StepPlan("own", {"student": rate}, self.composition(None), step, judged=step > 0)

    def loss(self, networks, batch, turn):
        called.append(("judged", turn.judged))
        n = batch.labelled
        logits = networks["student"](batch.images)
        supervised = share_of_part(n, turn.composition.labelled, batch, turn) * supervised_loss(
            logits[:n], batch.labels[:n], self.targets
        )
        p, q = (self.targets.probabilities(y) for y in (logits, networks["mean"](batch.images)))
        apart = mean_of((p - q).pow(2)) + mean_where((p - q).pow(2).sum(1), q.amax(1) > 0.5)
        weight = course_factor(self.config.course, turn.student_update, self.steps)
        return {"total": supervised + weight * apart, "apart": apart.detach()}

    def after_update(self, networks, turn):
        average_into(networks["mean"], networks["student"], 0.9, buffers=False)

    def jump(self, networks, step):
        called.append(("jump", step))
        return super().jump(networks, step)

    def kept(self) -> AnyStudent:
        called.append(("kept",))
        return super().kept()

    def voters(self, networks):
        return {**super().voters(networks), "mean": networks["mean"]}

    def labelling(self):
        called.append(("labelling",))
        return super().labelling()


class Threshold(LabelFirst):
    name = "threshold"
    switch = "after"

    class Config(Section):
        after: MethodName = "supervised"

    def scan_labeller(self, step, scans):
        return lambda names: ((name, (scans.cases[name].image[0] > 1).astype(np.uint8)) for name in names)

    def labelling(self):
        return LabellingWork(registrations=1)

    @classmethod
    def refuse_circles(cls, recipe):
        called.append(("refuse_circles", cls.switch))
        super().refuse_circles(recipe)


class Louder(MeanTeacher):
    name = "louder"

    def voters(self, networks):
        return {**super().voters(networks), "mean": networks["teacher"]}


assert issubclass(LabelFirst, PretrainThenTrain)
'''


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the clinic, imported."""
    (tmp_path / "clinic_old.py").write_text(OLD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("clinic_old", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("clinic_old")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


NAMES = (
    ("trainer.averaging.average_into", "trainer.moving_average.update_moving_average"),
    ("trainer.losses.mean_of", "weighted_mean"),
    ("trainer.losses.mean_where", "masked_mean"),
    ("trainer.methods.label_first.LabelFirst", "trainer.methods.label_then_train.LabelThenTrain"),
    ("trainer.methods.method.Task", "SegmentationTask"),
    ("trainer.methods.pretrain.PretrainThenTrain", "trainer.methods.pretrain_then_train.PretrainThenTrain"),
    ("trainer.networks.outputs.SeveralOutputs", "MultiOutputNetwork"),
    ("trainer.parallel.processes", "process_count"),
    ("trainer.scan_labelling.LabellingWork", "LabellingWorkload"),
    ("trainer.scan_labelling.LabelsOfScan", "ScanLabeller"),
    ("trainer.schedules.Course", "WeightSchedule"),
    ("trainer.schedules.cosine", "cosine_decay"),
    ("trainer.schedules.course_factor", "weight_schedule_factor"),
    ("trainer.schedules.poly", "polynomial_decay"),
    ("trainer.students.AnyStudent", "trainer.network_configs.AnyNetworkConfig"),
    ("trainer.students.Student", "trainer.network_configs.NetworkConfig"),
    ("trainer.students.divisor_of", "trainer.network_configs.patch_divisor"),
    ("trainer.students.parameters_of", "trainer.network_configs.count_parameters"),
    ("trainer.students.read_student", "trainer.network_configs.parse_network_config"),
)


@pytest.mark.parametrize(("old", "new"), NAMES)
def test_a_former_name_is_the_present_thing_and_the_warning_names_it(old: str, new: str) -> None:
    module, name = old.rsplit(".", 1)
    present_module, _, present = new.rpartition(".")
    expected = getattr(importlib.import_module(present_module or module), present)
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated; its name is {new} now") as caught:
        scope: dict[str, Any] = {"__name__": "clinic"}
        exec(f"from {module} import {name}", scope)
    assert scope[name] is expected
    assert {one.filename for one in deprecations(caught)} == {"<string>"}, "it points at the line that imports"


def test_a_module_has_no_other_names() -> None:
    for module in ("trainer.losses", "trainer.averaging", "trainer.students", "trainer.methods.pretrain"):
        with pytest.raises((AttributeError, ImportError), match="nonsense"):
            exec(f"from {module} import nonsense", {})


@pytest.mark.parametrize("name", ["clinic_old:Own", "clinic_old:Threshold", "clinic_old:Louder"])
def test_a_method_under_the_former_names_trains(clinic: Any, dataset: Dataset, tmp_path: Path, name: str) -> None:
    changes = {"method": name, "methods": {}, "updates": 3}
    steps: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        manifest = train_on_cpu(
            dataset,
            make_recipe_for("supervised", changes),
            tmp_path / "run",
            report=lambda step, total, values: steps.append(step),
        )
    assert steps[-1] == 3
    assert manifest.provenance.student["kind"] == "unet"
    if name.endswith("Own"):
        assert {("judged", False), ("judged", True), ("jump", 1), ("jump", 3), ("kept",)} <= set(clinic.called)
    if name.endswith("Threshold"):
        assert ("refuse_circles", "after") in clinic.called


def test_the_loop_calls_what_a_method_defines_under_former_names(clinic: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        own = build_method(make_tiny_recipe("supervised", {"method": "clinic_old:Own", "methods": {}, "batch": 4}))
        louder = build_method(make_tiny_recipe("supervised", {"method": "clinic_old:Louder", "methods": {}}))
        first = build_method(make_tiny_recipe("supervised", {"method": "clinic_old:Threshold", "methods": {}}))
        assert list(own.committee(own.build())) == ["student", "mean"]
        assert own.labelling_workload() is None
        assert clinic.called[-1] == ("labelling",)
        assert list(louder.committee(louder.build())) == ["student", "mean"]
        assert first.labelling_workload() == LabellingWorkload(registrations=1)
        assert [stage.name for stage in first.stages()] == ["threshold", "supervised"]
    assert method_class("clinic_old:Threshold").next_method_key == "after"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("jump", "next_step"),
        ("kept", "exported_config"),
        ("labelling", "labelling_workload"),
        ("voters", "committee"),
    ],
)
def test_defining_or_calling_a_former_member_warns_at_that_line(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"Odd defines '{old}', .* its name is '{new}' now") as caught:
        odd = type(Supervised)("Odd", (Supervised,), {old: lambda self, *given: given})
    assert caught[0].filename == __file__
    assert vars(odd)[new] is vars(odd)[old]
    method = build_method(make_tiny_recipe("supervised"))
    with pytest.warns(DeprecationWarning, match=f"Supervised.{old} is deprecated; its name is '{new}' now") as caught:
        former = getattr(method, old)
    assert caught[0].filename == __file__
    assert former == getattr(method, new)


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        ("cfr", "on_volumes", "as_volume_network"),
        ("cfr", "refuse_circles", "check_no_cycle"),
        ("cfr_ft", "on_volumes", "as_volume_network"),
        ("mcnet", "sections", "decoder_configs"),
        ("mn", "sliced", "as_volume_network"),
    ],
)
def test_a_subclass_of_a_built_in_method_may_override_a_former_member(method: str, old: str, new: str) -> None:
    base = method_class(method)
    with pytest.warns(DeprecationWarning, match=f"Odd defines '{old}', .* its name is '{new}' now"):
        odd = type(base)("Odd", (base,), {old: lambda self: "own"})
    assert vars(odd)[new] is vars(odd)[old]


def test_overriding_works_across_both_names() -> None:
    class Base(RenamedMembers):
        former_members: ClassVar[dict[str, str]] = {"old": "new"}

        def new(self) -> list[str]:
            return ["base"]

    with pytest.warns(DeprecationWarning):

        class Mixin:
            def old(self) -> list[str]:
                return ["mixin", *super().old()]  # type: ignore[misc]

        class First(Mixin, Base):
            pass

        class Second(First):
            def new(self) -> list[str]:
                return ["second", *super().new()]

        class Third(Second):
            def old(self) -> list[str]:
                return ["third", *super().old()]

        wanted = ["third", "second", "mixin", "base"]
        assert Third().new() == Third().old() == wanted
        assert Second().new() == Second().old() == wanted[1:]


def test_a_step_plan_takes_and_tells_the_former_judged() -> None:
    with pytest.warns(DeprecationWarning, match=r"judged=\.\.\.\) is deprecated; its name is validate now"):
        plan = StepPlan("train", {}, BatchComposition(1, 0), 0, judged=False)  # type: ignore[call-arg]
    assert plan.validate is False
    with pytest.warns(DeprecationWarning, match="StepPlan.judged is deprecated; its name is validate now"):
        assert plan.judged is False
    assert StepPlan("train", {}, BatchComposition(1, 0), 0) == StepPlan(
        "train", {}, BatchComposition(1, 0), 0, validate=True
    )


def test_built_in_methods_use_no_former_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        method = build_method(make_tiny_recipe("mean_teacher"))
        networks = method.build()
        assert list(method.committee(networks)) == ["student"]
        assert method.next_step(networks, 1) == 1
        assert torch.is_tensor(next(networks["student"].parameters()))

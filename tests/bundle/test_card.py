"""The model card says what the manifest says, and nothing of it is left out."""

from __future__ import annotations

import pytest

from semiseg.bundle.card import model_card
from semiseg.bundle.manifest import Channel, DistillationTeacher, Manifest, PretrainedWeights, ValidationMetrics
from semiseg.bundle.variant import Parity, Variant
from semiseg.volumes.series_rules import SeriesRule
from tests.bundles import make_threshold_bundle


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_threshold_bundle(tmp_path_factory.mktemp("card") / "bundle").manifest


def test_a_plain_model(manifest: Manifest) -> None:
    card = model_card(manifest)
    assert card.startswith("# threshold\n\n**RESEARCH USE ONLY.**")
    for words in (
        "`threshold`",
        "Not validated",
        "Pretrained weights: none",
        "| low | 1 |",
        "91723000",
        "channel(s) image",
    ):
        assert words in card
    assert "Graphs" not in card, "there is no proof to tell of"


def test_everything_that_a_manifest_can_say(manifest: Manifest) -> None:
    teacher = DistillationTeacher(
        name="large", method="mn", student={"kind": "vnet"}, parameters=9_000_000, labelled=4, validation=None
    )
    origin = manifest.provenance.model_copy(
        update={
            "pretrained": (PretrainedWeights(name="nvidia/mit-b1", revision="abc", licence="NVIDIA research only"),),
            "taught_by": teacher,
            "transductive": True,
            "labelled": 4,
            "validation": 2,
            "unlabelled": 97,
        }
    )
    proof = Parity(engine="openvino", window=(16, 16, 16), windows=8, largest_difference=0.25, dice={"low": 0.9961})
    card = model_card(
        manifest.model_copy(
            update={
                "provenance": origin,
                "validation": ValidationMetrics(scans=2, dice={"low": 0.91, "high": 0.5}),
                "variants": (Variant(precision="int8", file="model.int8.onnx", parity=(proof,)),),
                "channels": (Channel(name="image", series=SeriesRule(modality="CT")),),
            }
        )
    )
    for words in (
        "nvidia/mit-b1 at abc, licence NVIDIA research only. This licence also",
        "Distilled from large (`mn`, vnet, 9,000,000 parameters, 4 labelled scans; not validated)",
        "transductive",
        "Labels of 4 scan(s) were opened for training and of 2 to choose",
        "97 more were used without labels",
        "On 2 validation scan(s): Dice low 0.910, high 0.500.",
        "| int8 | openvino | 16x16x16 | 8 | 0.25 | 0.99610 |",
        "It accepts DICOM series of the modality CT and refuses other modalities.",
    ):
        assert words in card, card

"""MONAI Label's own client against this server: every call that its class has and a dataset of volumes can answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.phantoms.writers import write_dataset
from semiseg.volumes.nifti import read_labels, write_nifti
from tests.bundles import expected_mask, make_threshold_bundle
from tests.datasets import AFFINE, random_image, random_labels
from tests.polling import wait_until
from tests.server.labelling.datasets import training_config, write_labelled_dataset
from tests.server.labelling.harness import label_server
from tests.server.labelling.monai_label_client import load_client
from tests.server.test_guard import LAB


@pytest.mark.parametrize("guarded", [False, True])
def test_the_real_client_works_as_it_is(tmp_path: Path, guarded: bool) -> None:
    module = load_client()
    keys = tmp_path / "keys"
    keys.write_text(f"lab {LAB}\n", encoding="utf-8")
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    downloads = tmp_path / "client"
    downloads.mkdir()
    data = write_labelled_dataset(tmp_path / "data")
    with label_server(data, bundle=bundle, keys=keys if guarded else None) as server:
        client = module.MONAILabelClient(server.url, tmpdir=str(downloads), client_id="anna")
        assert client.auth_enabled() is guarded
        if guarded:
            with pytest.raises(module.MONAILabelClientException):
                client.info()
            client.update_auth(client.auth_token("lab", LAB))
            assert client.auth_valid_token()
        info = client.info()
        assert info["labels"] == ["low", "high"] and list(info["models"]) == ["threshold"]

        sample = client.next_sample("first", {})
        assert sample["id"] == "s4" and Path(sample["path"]).is_file()
        file, params = client.infer("threshold", "s4", {"result_extension": ".nrrd", "result_dtype": "uint8"})
        assert Path(file).name == "s4.nrrd" and params["label_names"] == {"low": 1, "high": 2}
        assert np.array_equal(read_labels(Path(file)).array, expected_mask(random_image(4)))
        draft = client.download_label("s4", "original")
        assert np.array_equal(read_labels(Path(draft)).array, expected_mask(random_image(4)))

        write_nifti(tmp_path / "corrected label.nii.gz", random_labels(40), AFFINE)
        said = {"label_info": [{"name": "low", "idx": 1}, {"name": "high", "idx": 2}], "model": "threshold"}
        saved = client.save_label("s4", str(tmp_path / "corrected label.nii.gz"), params=said)
        assert saved["image"] == saved["label"] == "s4" and saved["version"] == 2
        objects = client.datastore()["objects"]
        assert list(objects["s4"]["labels"]) == ["original", "final"]
        final = objects["s4"]["labels"]["final"]["info"]
        assert final["who"] == ("lab" if guarded else "anna") and final["model"] == "threshold"
        assert np.array_equal(read_labels(Path(client.download_label("s4", "final"))).array, random_labels(40))
        assert client.next_sample("first", {})["id"] == "s5"
        assert client.info()["datastore"]["completed"] == 3

        with pytest.raises(module.MONAILabelClientException, match="403"):
            client.upload_image(str(tmp_path / "corrected label.nii.gz"), "new")
        with pytest.raises(module.MONAILabelClientException, match="no image with this id"):
            client.save_label("nobody", str(tmp_path / "corrected label.nii.gz"))
        assert client.train_status(check_if_running=True) is False

        write_nifti(tmp_path / "own.nii.gz", random_image(77), AFFINE)
        session = client.create_session(str(tmp_path / "own.nii.gz"))["session_id"]
        assert client.get_session(session)["name"] == session
        file, _ = client.infer("threshold", "own", {"result_extension": ".nii.gz"}, session_id=session)
        assert np.array_equal(read_labels(Path(file)).array, expected_mask(random_image(77)))
        assert client.remove_session(session)["name"] == session
        file, _ = client.infer("threshold", "own", {}, file=str(tmp_path / "own.nii.gz"))
        assert np.array_equal(read_labels(Path(file)).array, expected_mask(random_image(77)))


@pytest.mark.timeout(600)
def test_the_real_client_starts_watches_and_stops_a_training(tmp_path: Path) -> None:
    module = load_client()
    write_dataset(tmp_path / "data", cases=5, labelled=2, test=2, shape=(22, 20, 13), spacing=(5.0, 5.0, 8.0))
    config = training_config(tmp_path, updates=100_000)
    with label_server(tmp_path / "data", config=config, labelled=2) as server:
        client = module.MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="anna")
        with pytest.raises(module.MONAILabelClientException, match="404"):
            client.train_status()
        (trainer,) = client.info()["trainers"]
        assert client.train_start(trainer, {})["status"] == "RUNNING"
        assert client.train_status(check_if_running=True) is True
        wait_until(lambda: client.info()["train_stats"][trainer]["epoch"] > 10, 300)
        task = client.train_status()
        assert task["status"] == "RUNNING" and task["details"] and task["start_ts"]
        stopped = client.train_stop()
        assert stopped["status"] == "STOPPED" and stopped["details"][-1] and stopped["end_ts"]
        assert client.train_status(check_if_running=True) is False
        with pytest.raises(module.MONAILabelClientException, match="404"):
            client.train_stop()

"""What an operator sees, on the page and by `status`: what came, what was decided, where it is, and what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.gateway.status_page import render_page
from tests.gateway.dicomweb_peer import dicomweb_peer, is_element
from tests.gateway.harness import (
    RunningGateway,
    associate,
    dimse_destination,
    make_config,
    make_offline_config,
    running_gateway,
    write_study,
)
from tests.gateway.peers import fake_storage_scp
from tests.polling import wait_until
from tests.server.harness import RunningServer

RULE = {"name": "brain", "description": ["*brain*"], "to": ["archive"]}


def page_of(gateway: RunningGateway) -> str:
    return httpx.get(gateway.web, trust_env=False).text


def problems(gateway: RunningGateway) -> list[dict[str, str]]:
    found: list[dict[str, str]] = gateway.status()["problems"]
    return found


def test_all_is_well_until_something_needs_an_operator(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-12."""
    with fake_storage_scp() as archive:
        parts = {"destinations": dimse_destination(archive.port), "rules": [RULE]}
        config = make_config(tmp_path, server.url, **parts)
        config["dimse"] = {"port": 0, "senders": [{"ae_title": "SCANNER"}]}
        with running_gateway(config, tmp_path / "gateway") as gateway:
            write_study(tmp_path / "fits", "fits", description="Brain of Jane^Doe")
            assert send(gateway, tmp_path / "fits").returncode == 0
            wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
            wait_until(lambda: not gateway.status()["open_studies"])
            assert problems(gateway) == [] and "All is well." in page_of(gateway)
            assert gateway.command("status").splitlines()[0] == "All is well."
            (one,) = gateway.status()["study_list"]
            assert (one["instances"], one["series"], one["from"], one["stage"]) == (6, 1, ["SCANNER"], "done")
            assert one["decided"] == "Of 1 series rule brain takes 1."
            assert [(told["state"], told["to"], told["count"]) for told in one["results"]] == [
                ("segmented", "", 1),
                ("delivered", "archive", 1),
            ]
            assert re.search(r"1 delivered to archive, 20\d\d-", page_of(gateway))

            write_study(tmp_path / "fits not", "fits not", description="knee of Jane^Doe")
            assert send(gateway, tmp_path / "fits not").returncode == 0
            wait_until(lambda: problems(gateway), describe=lambda: gateway.output)
            (problem,) = problems(gateway)
            study = gateway.audit("decided")[-1]["study"]
            assert problem["what"] == f"Study {study}: No rule matches any of its series."
            assert problem["what"] in page_of(gateway) and "One thing needs an operator" in page_of(gateway)
            assert problem["do"] == f"semiseg gateway show {study}"
            assert "knee of Jane" in gateway.command("show", study), "why, in full"
            for told in (page_of(gateway), gateway.command("status"), json.dumps(gateway.status())):
                assert "Jane" not in told and "rule brain: Not sent: " in told

            assert not associate(gateway, "STRANGER").is_established
            wait_until(lambda: len(problems(gateway)) == 2, describe=lambda: gateway.output)
            assert "calling STRANGER called SEMISEG" in problems(gateway)[1]["what"]
            wait_until(lambda: "calling STRANGER" in gateway.command("status"))


def test_what_an_archive_will_never_take_is_seen_at_once(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    with fake_storage_scp(status=lambda *_: 0xA900) as archive:
        config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port))
        write_study(tmp_path / "study", "refused")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            wait_until(lambda: problems(gateway), describe=lambda: gateway.output)
            (problem,) = problems(gateway)
            assert re.search(r"Study \w{32}: Refused since 20\d\d-.*0xA900", problem["what"]), problem
            assert "Refused since" in page_of(gateway) and "refused since" in gateway.command("status")
            (held_up,) = gateway.status()["held_up"]
            first = held_up["refused_since"]
            wait_until(lambda: gateway.status()["held_up"][0]["tries"] > held_up["tries"])
            assert gateway.status()["held_up"][0]["refused_since"] == first


def test_servers_destinations_and_archives_in_trouble_are_listed(send: Callable[..., Any], tmp_path: Path) -> None:
    config = make_offline_config(
        tmp_path, polls=[{"url": "http://127.0.0.1:9/dicom-web", "every_seconds": 0.3, "name": "PACS"}]
    )
    write_study(tmp_path / "study", "nowhere")
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: len(problems(gateway)) > 1, describe=lambda: gateway.output)
        told = {one["what"].split(":")[0] for one in problems(gateway)}
        assert told == {"Server http", "Polled archive http"}
        assert all(one["do"] == "semiseg gateway check" for one in problems(gateway))
        for one in problems(gateway):
            assert one["what"].split(";")[0] in page_of(gateway)
            wait_until(lambda what=one["what"]: what in gateway.command("status"))


def test_status_of_a_gateway_that_does_not_run_says_so(send: Callable[..., Any], tmp_path: Path) -> None:
    write_study(tmp_path / "study", "stopped")
    with running_gateway(make_offline_config(tmp_path), tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: "is not running" not in gateway.command("status"))
        (study,) = (gateway.state / "studies").iterdir()
    (study / "lacks-x").write_text("An instance was refused.")
    told = gateway.command("status")
    assert "The gateway is not running, or hangs." in told and "An instance was refused." in told


class Flapping(dict[str, Any]):
    """Rows of QIDO-RS whose number of instances is another one at each look."""

    looks = 0

    def get(self, *_: Any) -> Any:
        self.looks += 1  # twice at each look: a second page is asked for
        return {"00201208": is_element(5 + self.looks // 2 % 2)}


def test_study_whose_count_never_settles_is_shown_and_fetched_on_demand(tmp_path: Path) -> None:
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "flapping")
        uid = peer.add(tmp_path / "study")
        peer.rows = Flapping()
        config = make_offline_config(
            tmp_path,
            dimse=None,
            polls=[{"url": peer.url, "every_seconds": 0.1, "name": "PACS"}],
            completeness={"quiet_seconds": 0.3},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: problems(gateway), describe=lambda: gateway.output)
            assert "its number of instances at PACS keeps changing" in problems(gateway)[0]["what"]
            assert gateway.audit("fetched") == []
            gateway.command("again", uid, "--fetch")
            wait_until(lambda: gateway.audit("fetched"), describe=lambda: gateway.output)
            assert uid not in gateway.output


def test_purged_study_is_fetched_again_unless_it_is_purged_for_good(tmp_path: Path) -> None:
    """GW-10."""
    with dicomweb_peer() as peer:
        write_study(tmp_path / "study", "purged")
        uid = peer.add(tmp_path / "study", AccessionNumber="ACC-7")
        config = make_offline_config(
            tmp_path,
            dimse=None,
            polls=[{"url": peer.url, "every_seconds": 0.2, "name": "PACS"}],
            completeness={"quiet_seconds": 0.3},
            rules=[RULE],
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.audit("decided"), describe=lambda: gateway.output)
            gateway.command("purge", "ACC-7")
            wait_until(lambda: len(gateway.audit("decided")) == 2, describe=lambda: gateway.output)
            gateway.command("purge", "--for-good", uid)
            wait_until(lambda: len(gateway.audit("purged")) == 2, describe=lambda: gateway.output)
            looks = len(peer.requested_paths)
            wait_until(lambda: len(peer.requested_paths) > looks + 8)
            assert len(gateway.audit("fetched")) == 2
            assert "again UID" not in gateway.command("status")
            gateway.command("again", uid, "--fetch")
            wait_until(lambda: len(gateway.audit("fetched")) == 3, describe=lambda: gateway.output)
            refused = gateway.try_command("again", "1.2.3", "--fetch", "--from", "NOBODY")
            assert refused.returncode == 2 and "Choose the archive with --from: PACS" in refused.stderr


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


HOSTILE = '<script>"&x'


@pytest.mark.parametrize("reload", [True, False])
def test_page_needs_no_script_and_says_what_its_parts_are(reload: bool) -> None:
    job = {
        "id": HOSTILE,
        "kind": "deliver",
        "study": HOSTILE,
        "to": [HOSTILE],
        "changed": 0.0,
        "tries": 1,
        "error": HOSTILE,
        "refused_since": 1.0,
    }
    result = {"to": HOSTILE, "state": "refused", "count": 1, "when": 1.0, "why": HOSTILE}
    study = {
        "study": HOSTILE,
        "instances": 1,
        "series": 1,
        "from": [HOSTILE],
        "came": 1.0,
        "stage": "done",
        "decided": HOSTILE,
        "reasons": [HOSTILE],
        "results": [result],
        "trouble": HOSTILE,
        "do": HOSTILE,
    }
    rejected = {"address": HOSTILE, "calling": HOSTILE, "called": HOSTILE, "time": 0.0, "why": HOSTILE}
    passed_over = {"workitem": HOSTILE, "why": HOSTILE}
    workitem = {
        "workitem": HOSTILE,
        "worklist": HOSTILE,
        "stage": "ending",
        "since": 1.0,
        "progress": 5,
        "why": HOSTILE,
    }
    document = {
        "problems": [{"what": HOSTILE, "do": HOSTILE}],
        "open_studies": 1,
        "studies": 1,
        "free_bytes": 2**30,
        "servers": [{"url": HOSTILE, "trouble": HOSTILE}],
        "destinations": [{"name": HOSTILE, "trouble": ""}],
        "polls": [{"url": HOSTILE, "trouble": HOSTILE}],
        "worklists": [{"name": HOSTILE, "trouble": HOSTILE, "passed_over": [passed_over]}],
        "workitems": [workitem],
        "study_list": [study],
        "jobs": {"study": {"waiting": 1}},
        "held_up": [job],
        "dead_letters": [job],
        "rejected": [rejected],
    }
    text = render_page(document, reload=reload)
    seen = Seen()
    seen.feed(text)
    tags = [tag for tag, _ in seen.tags]
    assert "script" not in tags and tags.count("h1") == 1 and tags.count("main") == 1
    assert tags.count("table") == tags.count("caption") == 8
    assert all("scope" in attributes for tag, attributes in seen.tags if tag == "th")
    assert ("html", {"lang": "en"}) in seen.tags
    assert any(attributes.get("http-equiv") == "refresh" for _, attributes in seen.tags) == reload
    assert text.count("&lt;script&gt;&quot;&amp;x") > 20

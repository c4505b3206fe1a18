"""Cold start and idle memory of the images: `python docs/results/images/start.py BUNDLE [ROUNDS]`.

Containers as deploy/README.md starts them (read-only, no capabilities), by `docker create` and `docker start`. Seconds
are from the start to the first good answer; memory is the proportional set size of all processes of the container, ten
seconds later.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HARD = ["--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
KEY = f"somebody {64 * 'k'}"
GATEWAY = """\
state: /var/lib/semiseg
dimse: {anybody: true}
web: {host: 0.0.0.0, port: 8080, keys: keys}
servers: {urls: ["http://127.0.0.1:9"]}
rules: [{name: all, to: [archive]}]
destinations: {archive: {web: {url: "http://127.0.0.1:9"}}}
"""


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def seconds_until(url: str, since: float) -> float:
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return time.monotonic() - since
        except OSError:
            time.sleep(0.02)


def megabytes(container: str) -> float:
    first = json.loads(docker("inspect", container))[0]["State"]["Pid"]
    parents = {
        int(p.name): int((p / "stat").read_text().rsplit(")", 1)[1].split()[1]) for p in Path("/proc").glob("[0-9]*")
    }
    family = {first}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    rows = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in family]
    return sum(int(line.split()[1]) for row in rows for line in row if line.startswith("Pss:")) / 1000


def round_of(image: str, options: list[str], port: int, ready: str) -> dict[str, float]:
    container = docker("create", *HARD, "--tmpfs", "/var/lib/semiseg:mode=1777", *options, image)
    try:
        since = time.monotonic()
        docker("start", container)
        found = {"alive": seconds_until(f"http://127.0.0.1:{port}/livez", since)}
        found["ready"] = seconds_until(f"http://127.0.0.1:{port}{ready}", since)
        time.sleep(10)
        found["megabytes"] = megabytes(container)
    finally:
        docker("stop", container)
    return found


def main(bundle: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder)
        config.chmod(0o755)
        (config / "gateway.yaml").write_text(GATEWAY)
        (config / "keys").write_text(f"{KEY}\n")
        serve = ["-v", f"{bundle}:/bundle:ro", "-p", "127.0.0.1:3000:3000", "-e", f"SEMISEG_API_KEYS={KEY}"]
        gateway = ["-v", f"{config}:/config:ro", "-p", "127.0.0.1:8080:8080"]
        for image, options, port, ready in (
            ("semiseg-serve", serve, 3000, "/readyz"),
            ("semiseg-gateway", gateway, 8080, "/livez"),
        ):
            found = [round_of(image, options, port, ready) for _ in range(rounds)]
            for name in found[0]:
                values = sorted(one[name] for one in found)
                middle = statistics.median(values)
                print(f"{image:16} {name:10} median {middle:7.2f}  {values[0]:.2f} to {values[-1]:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5)

"""Known vulnerabilities in what is installed here, by pip-audit. Part of `make check`.

Needs PyPI's JSON API. Where that cannot be reached, or knows nothing of vulnerabilities, it says so
and passes: a check without a network must not fail. pip-audit itself would report packages that it
could not ask about as "skipped", and end well. A clean result holds for a day, or until what is
installed changes. Accepted findings are listed in audit-accepted.txt, each with its reason.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import requests

ACCEPTED = Path(__file__).with_name("audit-accepted.txt")
PROBE = f"https://pypi.org/pypi/pip-audit/{metadata.version('pip-audit')}/json"
PROBE_TIMEOUT_S = 5
AUDIT_TIMEOUT_S = 180
DAY_S = 24 * 60 * 60


def main() -> int:
    accepted = read_accepted(ACCEPTED.read_text(encoding="utf-8"))
    stamp, state = Path(sys.prefix) / ".audited", installed(accepted)
    recent = stamp.exists() and time.time() - stamp.stat().st_mtime < DAY_S
    if recent and stamp.read_text(encoding="utf-8") == state:
        print("audit: clean within the last day")
        return 0
    if why := unreachable():
        print(f"audit: NOT DONE, {why}")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format=json"]
    command += ["--progress-spinner=off", f"--timeout={PROBE_TIMEOUT_S}"]
    for name in accepted:
        command += ["--ignore-vuln", name]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"audit: NOT DONE, it took longer than {AUDIT_TIMEOUT_S} s")
        return 0
    if not ended.stdout.strip():
        print(f"audit: NOT DONE, {(ended.stderr.strip().splitlines() or ['no answer'])[-1]}")
        return 0
    code, line = verdict(json.loads(ended.stdout)["dependencies"])
    print(line)
    if code == 0 and "NOT DONE" not in line:
        stamp.write_text(state, encoding="utf-8")
    return code


def verdict(dependencies: list[dict[str, object]]) -> tuple[int, str]:
    """Exit code and what to say of pip-audit's list."""
    asked = [one for one in dependencies if "skip_reason" not in one]
    if not asked:
        return 0, "audit: NOT DONE, PyPI knew none of the packages"
    found = [
        f"  {one['name']} {one['version']}: {flaw['id']}, fixed in {flaw['fix_versions'] or 'none'}"
        for one in asked
        for flaw in one["vulns"]  # type: ignore[attr-defined]
    ]
    if found:
        head = f"audit: vulnerable packages; raise them, or accept with a reason in {ACCEPTED.name}"
        return 1, "\n".join([head, *found])
    skipped = len(dependencies) - len(asked)
    return 0, f"audit: {len(asked)} packages without known vulnerabilities, {skipped} not known"


def read_accepted(text: str) -> list[str]:
    """Lines of `ID reason`. Ends the process for one without a reason."""
    names = []
    for line in text.splitlines():
        name, _, why = line.partition(" ")
        if not name or name.startswith("#"):
            continue
        if not why.strip():
            sys.exit(f"{ACCEPTED.name}: {name} is accepted without a reason")
        names.append(name)
    return names


def unreachable() -> str:
    """Why PyPI cannot be asked, or nothing."""
    try:
        reply = requests.get(PROBE, timeout=PROBE_TIMEOUT_S)
        if reply.status_code != 200:
            return f"{PROBE} answered {reply.status_code}"
        return "" if "vulnerabilities" in reply.json() else "PyPI's reply names no vulnerabilities"
    except (requests.RequestException, ValueError) as error:
        return f"{PROBE}: {type(error).__name__}"


def installed(accepted: list[str]) -> str:
    names = sorted(f"{one.name}=={one.version}" for one in metadata.distributions())
    return hashlib.sha256("\n".join([*names, *accepted]).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())

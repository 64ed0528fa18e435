"""What the scripts of this folder share: waits cut short, and outcomes written down for the test that started them."""

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

_sleep = time.sleep
# The client waits between its attempts, longer each time; a loopback server needs none of it.
time.sleep = lambda seconds: _sleep(min(seconds, 0.01))  # type: ignore[assignment]

REPORT: dict[str, Any] = {}
REPORT_FILE, ARGUMENTS = Path(sys.argv[-2]), json.loads(sys.argv[-1])


def outcome(name: str, action: Callable[[], Any]) -> Any:
    """Runs `action` and reports its value, or the error that it ended in."""
    try:
        REPORT[name] = {"value": action()}
    except Exception as error:
        REPORT[name] = {"error": type(error).__name__, "message": str(error)}
    return REPORT[name].get("value")


def set_faults(**faults: Any) -> None:
    """Replaces the faults of the loopback Hub."""
    url = f"{ARGUMENTS['url']}/_faults"
    request = urllib.request.Request(url, data=json.dumps(faults).encode(), method="POST")
    urllib.request.urlopen(request, timeout=10).close()


def write_report() -> None:
    REPORT_FILE.write_text(json.dumps(REPORT))

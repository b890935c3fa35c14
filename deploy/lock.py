"""Write ``requirements.lock`` and ``sbom.cdx.json``: every package of the core, with its hash.

    pip install --dry-run --ignore-installed --no-deps --report report.json -r PINS
    python deploy/lock.py report.json > deploy/requirements.lock
    cyclonedx-py requirements deploy/requirements.lock --output-reproducible -o bill.json
    python deploy/lock.py bill.json > deploy/sbom.cdx.json

The second reads what ``cyclonedx-bom`` wrote: hashes become those of the component, and no
package index is named, for a site has its own.
"""

import json
import re
import sys
from pathlib import Path

HEAD = """# Every package of the core with its hash, for Python {python}, {machine}, Linux,
# no GPU (torch from the index of its CPU builds).  Written by deploy/lock.py.
# pip install --require-hashes -r requirements.lock, then: pip install --no-deps quietbeam
"""


def lock(report: dict) -> str:
    """Give the text of the lock file."""
    lines = []
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={item['metadata']['version']} \\\n    --hash=sha256:{digest}")
    about = report["environment"]
    head = HEAD.format(python=about["python_version"], machine=about["platform_machine"])
    return head + "\n".join(sorted(lines)) + "\n"


def bill(document: dict) -> str:
    """Give the text of the bill of materials."""
    document["metadata"].pop("tools", None)
    for part in document["components"]:
        part["hashes"] = part.pop("externalReferences")[0]["hashes"]
        part.pop("description", None)
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(bill(found) if "bomFormat" in found else lock(found))

"""Files are one idea each, and none is over 600 lines; pages that a program writes are as long as they are."""

import subprocess

LONGEST = 600
#: By python -m hybridlm.config.document, and by python -m kernels_pallas.aot.
WRITTEN = {"docs/config.md", "benchmarks/scorecard.md"}


def test_no_file_is_over_600_lines(root):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.md"], cwd=root, capture_output=True, check=True
    )
    names = set(filter(None, listed.stdout.decode().split("\0")))
    assert WRITTEN <= names and len(names) > 500
    lengths = {
        name: len((root / name).read_text(encoding="utf-8").splitlines())
        for name in names - WRITTEN
        if (root / name).is_file()
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}

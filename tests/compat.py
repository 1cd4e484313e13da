"""The adapter against other supported FlashInfer releases, each put before the installed one on the path.

Usage: python tests/compat.py [RELEASE ...]

Some releases ask for a GPU when the CUTLASS DSL is installed, at import; it is hidden from them, and nothing here needs it.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASES = ("0.6.13", "0.6.18.post1", "0.7.0", "0.7.1")
TESTS = ("tests/adapter/test_collisions.py", "tests/adapter/test_tuning.py")
HIDE_CUTLASS = 'import sys\nsys.modules["cutlass"] = sys.modules["cutlass.cute"] = None\n'


def main():
    failed = []
    for release in sys.argv[1:] or RELEASES:
        with tempfile.TemporaryDirectory() as base:
            place = Path(base)
            download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", base, f"flashinfer-python=={release}"]
            subprocess.run(download, check=True)
            (wheel,) = place.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place / "site")
            (place / "site" / "sitecustomize.py").write_text(HIDE_CUTLASS)
            path = os.pathsep.join([str(place / "site"), str(Path(__file__).parents[1])])
            print(f"== flashinfer-python {release}", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *TESTS]
            result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
            if result.returncode != 0:
                failed.append(release)
    if failed:
        sys.exit(f"failed against {', '.join(failed)}")


if __name__ == "__main__":
    main()

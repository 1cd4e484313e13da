"""Print the digests of all recipes, for another process to compare."""

import json
import sys

from tests.flashinfer_runners.keys import digests

json.dump(digests(), sys.stdout)

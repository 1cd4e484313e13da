"""Every error keeps its fields through a process boundary, says what and where, and has a documented exit code."""

import inspect
import pickle

import pytest

from fi_cachestore import errors
from fi_cachestore.errors import CacheStoreError, Gap

SAMPLES = {"str": "some text", "int": 7, "float": 1.5, "tuple[str, ...]": ("one", "two"), "tuple[Gap, ...]": (Gap("a", "b", "c", "d"),)}
CLASSES = [
    item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, CacheStoreError) and item is not CacheStoreError
]


def made(kind):
    names = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return kind(*(SAMPLES[parameter.annotation] for parameter in names))


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling(kind):
    error = made(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), str(copy)) == (kind, vars(error), str(error))
    assert vars(error)
    assert "object at 0x" not in str(error)
    assert kind.exit_code in (1, 10, 11, 20, 21, 30)

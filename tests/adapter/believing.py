"""What a root says of its records: for tests that ask, and for tests that are about something else."""

import collections

from fi_cachestore.records.verdict import Word
from fi_cachestore.store.open import open_store
from fi_cachestore.store.roots import open_root
from fi_cachestore.store.verdicts import VerdictFolder
from fi_cachestore.validation.ledger import Ledger


def believe(*roots):
    """Have an operator trust every schema of some roots: for tests about something else than trust."""
    say(Word.TRUSTED, *roots)


def say(word, *roots):
    """Have an operator say the same of every schema of some roots."""
    for root in roots:
        ledger, store = Ledger(open_root(root).verdicts), open_store(root)
        for schema in {store.get(digest).entry.evidence.schema for digest in store}:
            ledger.override(schema, word, "a test", "trust is not its subject", 0)


def verdicts(root):
    """The verdicts in a root, counted by kind."""
    return collections.Counter(place[1].partition("-")[0] for _, place in VerdictFolder(root).files() if place is not None)

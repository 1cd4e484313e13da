"""Loose and layered stores against the in-memory store, in any order of publishing, reading, damage, removal and re-opening."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from fi_cachestore.records.record import Record
from fi_cachestore.store.fsck import verify
from fi_cachestore.store.layers import Layered, ReadOnly
from fi_cachestore.store.loose import LooseReader, LooseStore, entry_path
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.port import Hit, Miss, Present, Published
from fi_cachestore.testing.samples import sample_record

NUMBERS = st.integers(0, 4)
TIMES = st.integers(1, 3)


class StoreMachine(RuleBasedStateMachine):
    published = Bundle("published")

    @initialize()
    def open(self):
        self.base = Path(tempfile.mkdtemp())
        self.root = self.base / "root"
        self.model = MemoryStore()
        self.damaged = set()
        self.reopen()

    def teardown(self):
        if hasattr(self, "base"):
            shutil.rmtree(self.base)

    @rule()
    def reopen(self):
        own = LooseStore(self.root, "objects", Record, durable=False)
        empty = ReadOnly(LooseReader(self.base / "image", "objects", Record))
        self.views = [own, Layered([empty, own], own), Layered([own, empty], own)]

    @rule(target=published, number=NUMBERS, time_ns=TIMES, view=st.integers(0, 2))
    def publish(self, number, time_ns, view):
        record = sample_record(number, times_ns={0: time_ns})
        expected, answer = self.model.publish(record), self.views[view].publish(record)
        assert type(answer) is type(expected)
        if isinstance(answer, Present):
            assert answer.entry == expected.entry
        else:
            assert isinstance(answer, Published)
        self.damaged.discard(record.digest)
        return number

    @rule(number=published, content=st.binary(max_size=40))
    def damage(self, number, content):
        digest = sample_record(number).digest
        path = entry_path(self.root / "objects", digest, 0)
        if path.exists():
            path.write_bytes(content)
            self.model._entries.pop(digest, None)
            self.damaged.add(digest)

    @rule(number=published)
    def remove(self, number):
        digest = sample_record(number).digest
        entry_path(self.root / "objects", digest, 0).unlink(missing_ok=True)
        self.model._entries.pop(digest, None)
        self.damaged.discard(digest)

    @rule()
    def remove_everything(self):
        shutil.rmtree(self.root, ignore_errors=True)
        self.model = MemoryStore()
        self.damaged = set()

    @invariant()
    def every_view_answers_as_the_model(self):
        if not hasattr(self, "base"):
            return
        for number in range(5):
            digest = sample_record(number).digest
            expected = self.model.get(digest)
            for view in self.views:
                answer = view.get(digest)
                if isinstance(expected, Hit):
                    assert answer.entry == expected.entry
                else:
                    assert isinstance(answer, Miss)
                    assert (answer.reason == "corrupt") == (digest in self.damaged)

    @invariant()
    def verify_finds_just_the_damage(self):
        if hasattr(self, "base"):
            checked = verify(self.root)
            assert len(checked.findings) == len(self.damaged)
            assert checked.record_count == len(self.model)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)

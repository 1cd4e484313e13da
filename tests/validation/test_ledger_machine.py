"""The ledger against a model in memory: any order of verdicts, overrides, refreshes, restarts and damage, by two processes and a layer."""

import shutil
import tempfile
import time
import zlib
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fi_cachestore.records.verdict import Word
from fi_cachestore.store.filesystem import OsFileSystem
from fi_cachestore.store.fsck import verify
from fi_cachestore.store.roots import open_root
from fi_cachestore.testing.samples import sample_record, sample_schema
from fi_cachestore.validation import stored
from fi_cachestore.validation.ledger import Ledger, Standing
from tests.validation.samples import CONTRADICTION, NOW_NS, RECORD, digest_of, left_out, seen, side

SCHEMAS = [sample_schema(number) for number in (1, 2)]
RECORDS = [sample_record(1, times_ns={0: time_ns}) for time_ns in (1, 2)]
RANKS = range(3)
WHO, WHICH, RANK = st.integers(0, 1), st.integers(0, 1), st.sampled_from(RANKS)


class Folder:
    """What one root holds, as sets."""

    def __init__(self):
        self.valid, self.banned, self.words, self.refused = set(), set(), {}, set()


class Model:
    """One process: what it saw, and what it has read of the two roots (the second is its read-only layer)."""

    def __init__(self, folders):
        self.folders, self.own, self.held, self.refused = folders, set(), set(), set()
        self.restart()

    def restart(self):
        self.own, self.held, self.refused = set(), set(), set()

    def standing(self, which, rank):
        words = [folder.words.get(which) for folder in self.folders]
        if words[0] in (Word.TRUSTED, Word.DISTRUSTED):
            return Standing.VALIDATED if words[0] is Word.TRUSTED else Standing.QUARANTINED
        below = None if words[0] is Word.EVIDENCE else words[1]
        banned_below = which in self.folders[1].banned and below is not Word.TRUSTED
        if which in self.held or which in self.folders[0].banned or below is Word.DISTRUSTED or banned_below:
            return Standing.QUARANTINED
        if below is Word.TRUSTED or (which, rank) in self.own | self.folders[0].valid | self.folders[1].valid:
            return Standing.VALIDATED
        return Standing.UNPROVEN


class ExactReader(OsFileSystem):
    """Tells every change of a folder by its time, where a real one has a grain and no eye for what happens inside files."""

    def changed_unix_ns(self, directory):
        files = sorted(Path(directory).iterdir()) if Path(directory).is_dir() else []
        return zlib.crc32(repr([(path.name, path.read_bytes()) for path in files]).encode())


class LedgerMachine(RuleBasedStateMachine):
    @initialize()
    def open(self):
        self.base = Path(tempfile.mkdtemp())
        self.at_once = mock.patch.object(stored, "_READ_SINGLY", 0)
        self.at_once.start()
        self.folders = [Folder(), Folder()]
        for name in ("root", "image"):
            open_root(self.base / name, durable=False)
        self.models = [Model(self.folders) for _ in range(2)]
        self.ledgers = [self.opened(reads_ahead=bool(who)) for who in range(2)]
        self.image = Ledger(open_root(self.base / "image", durable=False).verdicts)
        self.damaged = 0

    def opened(self, *, reads_ahead):
        opened = open_root(self.base / "root", after=[self.base / "image"], durable=False, reader=ExactReader())
        return Ledger(opened.verdicts, time.time_ns if reads_ahead else None)

    def teardown(self):
        if hasattr(self, "base"):
            self.at_once.stop()
            shutil.rmtree(self.base)

    @rule(who=WHO, which=WHICH, writer=RANK, reader=RANK)
    def promote(self, who, which, writer, reader):
        ledger, model = self.ledgers[who], self.models[who]
        for rank in (writer, reader):
            if model.standing(which, rank) is Standing.UNPROVEN:
                model.own.add((which, rank))
                self.folders[0].valid.add((which, rank))
        stands = ledger.promote(SCHEMAS[which], side(writer), side(reader), [(RECORD, seen())], NOW_NS)
        assert stands is all(model.standing(which, rank) is Standing.VALIDATED for rank in (writer, reader))

    @rule(who=WHO, which=WHICH)
    def quarantine(self, who, which):
        self.ledgers[who].quarantine(SCHEMAS[which], side(0), side(1), RECORD, seen(space=None), CONTRADICTION, NOW_NS)
        self.models[who].held.add(which)
        self.folders[0].banned.add(which)

    @rule(who=WHO, which=WHICH)
    def hold(self, who, which):
        self.ledgers[who].hold(SCHEMAS[which].digest, "told")
        self.models[who].held.add(which)

    @rule(who=WHO, which=WHICH, word=st.sampled_from(Word))
    def override(self, who, which, word):
        self.ledgers[who].override(SCHEMAS[which].digest, word, "me", "because", NOW_NS)
        self.folders[0].words[which] = word

    @rule(which=WHICH, word=st.sampled_from([*Word, None]))
    def change_the_image(self, which, word):
        if word is None:
            self.image.quarantine(SCHEMAS[which], side(0), side(1), RECORD, seen(space=None), CONTRADICTION, NOW_NS)
            self.folders[1].banned.add(which)
        else:
            self.image.override(SCHEMAS[which].digest, word, "me", "because", NOW_NS)
            self.folders[1].words[which] = word

    @rule(which=WHICH, rank=RANK)
    def validate_in_the_image(self, which, rank):
        if self.image.standing(SCHEMAS[which].digest, digest_of(rank)) is Standing.UNPROVEN:
            self.image.promote(SCHEMAS[which], side(rank), side(rank), [(RECORD, seen())], NOW_NS)
            self.folders[1].valid.add((which, rank))

    @rule(who=WHO, which=WHICH)
    def refuse(self, who, which):
        self.ledgers[who].refuse(RECORDS[which], "it kills", NOW_NS)
        self.folders[0].refused.add(which)

    @rule(who=WHO)
    def restart(self, who):
        self.ledgers[who] = self.opened(reads_ahead=bool(who))
        self.models[who].restart()

    @rule()
    def keep_an_overview(self):
        """The one that reads ahead leaves what it had to read for those that start later."""
        self.ledgers[1].keep_overview()

    @rule(which=WHICH, content=st.binary(max_size=40), data=st.data())
    def damage(self, which, content, data):
        """A validation turns bad on the disk."""
        held = sorted(rank for schema, rank in self.folders[0].valid if schema == which)
        if held:
            rank = data.draw(st.sampled_from(held))
            for path in (self.base / "root" / "verdicts" / SCHEMAS[which].digest).glob(f"validation-{digest_of(rank)}.*"):
                path.write_bytes(content)
                self.damaged += 1
            self.folders[0].valid.discard((which, rank))

    @rule(which=WHICH, content=st.binary(max_size=40))
    def damage_a_quarantine(self, which, content):
        """What bans goes on to ban when it turns bad on the disk."""
        for path in (self.base / "root" / "verdicts" / SCHEMAS[which].digest).glob("quarantine.*"):
            path.write_bytes(content)
            self.damaged += 1

    @invariant()
    def all_agree(self):
        if not hasattr(self, "ledgers"):
            return
        for ledger, model in zip(self.ledgers, self.models, strict=True):
            ledger.refresh()
            for which, schema in enumerate(SCHEMAS):
                for rank in RANKS:
                    assert ledger.standing(schema.digest, digest_of(rank)) is model.standing(which, rank)
                assert bool(ledger.banned_because(schema.digest)) is (model.standing(which, 99) is Standing.QUARANTINED)
            assert [ledger.is_refused(record) for record in RECORDS] == [which in self.folders[0].refused for which in range(2)]

    @invariant()
    def the_folder_is_sound(self):
        if hasattr(self, "base"):
            assert {finding.reason for finding in verify(self.base / "root").findings} <= ({"corrupt"} if self.damaged else set())


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_left_out_samples_differ():
    assert len({digest_of(rank) for rank in RANKS}) == len(RANKS)
    assert left_out(0) != left_out(1)

"""What threads may do to one another below the adapter: ordered where it can be, else many at once and many times."""

from fi_cachestore.choices import Choices
from fi_cachestore.config import Mode
from fi_cachestore.coordination.agreement import call_id, pair_of
from fi_cachestore.coordination.local import LocalCoordinator
from fi_cachestore.coordination.port import SystemClock
from fi_cachestore.keys.digest import Digest
from fi_cachestore.records.rules import NO_RULE, Rule
from fi_cachestore.records.settlement import Settlement
from fi_cachestore.session import Ports, Session
from fi_cachestore.store.memory import MemoryStore
from fi_cachestore.store.port import Hit, Miss
from fi_cachestore.store.rulebook import RuleBook
from fi_cachestore.testing.samples import sample_record
from tests.together import together

THREADS, ROUNDS = 8, 200
DEVICE = {"device": "cpu"}
CALL = (Digest("ab" * 32),)
PAIR = pair_of(CALL[0], b"tactic")
SETTLEMENT = Settlement(Digest(call_id(CALL).hex()), PAIR, 2, 17)


class SlowStore(MemoryStore):
    """Something happens between the moment that it has looked and the moment that it answers, once."""

    def __init__(self, meanwhile=lambda: None):
        super().__init__()
        self.meanwhile = meanwhile

    def _happen(self):
        happening, self.meanwhile = self.meanwhile, lambda: None
        happening()

    def get(self, digest):
        found = super().get(digest)
        self._happen()
        return found

    def __iter__(self):
        found = list(super().__iter__())
        self._happen()
        return iter(found)


def test_a_miss_from_before_a_refresh_is_not_remembered_after_it():
    store, record = SlowStore(), sample_record()
    session = Session(Mode.REPLAY, Ports(store, None, LocalCoordinator(), SystemClock()))
    store.meanwhile = lambda: (store.publish(record), session.refresh())
    assert isinstance(session.find(record.digest), Miss)
    assert isinstance(session.find(record.digest), Hit)


def test_that_nothing_was_settled_before_a_refresh_is_not_remembered_after_it():
    for is_empty in (True, False):
        store = SlowStore()
        choices = Choices(lambda digest: None, store)
        if not is_empty:
            store.publish(Settlement(Digest("cd" * 32), PAIR, 2, 17))
            choices.settled((Digest("ef" * 32),))
        store.meanwhile = lambda store=store, choices=choices: (store.publish(SETTLEMENT), choices.refresh())
        choices.settled(CALL)
        assert choices.settled(CALL) == PAIR


def test_settlements_are_asked_for_while_they_are_forgotten():
    store = MemoryStore()
    store.publish(SETTLEMENT)
    choices = Choices(lambda digest: None, store)

    def ask(number):
        for turn in range(ROUNDS):
            assert choices.settled((Digest(f"{number:032x}{turn:032x}"),)) is None
            assert choices.settled(CALL) == PAIR

    def forget():
        for _ in range(ROUNDS):
            choices.refresh()
            Choices(lambda digest: None, store, earlier=choices)

    together(*(lambda number=number: ask(number) for number in range(THREADS)), forget)


class SlowLog:
    """A log of rules during whose use something happens."""

    def __init__(self, meanwhile):
        self.meanwhile, self.kept = meanwhile, []

    def latest(self, digest):
        found, happening, self.meanwhile = tuple(reversed(self.kept)), self.meanwhile, lambda: None
        happening()
        return found

    def append(self, rules):
        self.meanwhile()
        self.kept.append(rules)


def test_rules_that_are_noted_while_others_are_read_count():
    book = RuleBook(log := SlowLog(lambda: None))
    rule = Rule((16, 64), False, None)
    log.meanwhile = lambda: book.note(DEVICE, rule)
    book.in_force(DEVICE)
    assert book.in_force(DEVICE) == (rule, NO_RULE)


def test_rules_that_are_noted_while_others_are_stored_are_no_error():
    book = RuleBook(log := SlowLog(lambda: None))
    book.note(DEVICE, Rule((16,), False, None))
    log.meanwhile = lambda: book.note({"device": "another"}, Rule((64,), False, None))
    book.store()
    assert len(log.kept) == 1
    book.store()
    assert len(log.kept) == 3


def test_no_rule_is_lost_where_many_are_noted_at_once():
    for turn in range(20):
        book = RuleBook(None)
        rules = [Rule((16, 32 * (1 + number + turn)), False, None) for number in range(THREADS)]
        together(*(lambda rule=rule, book=book: book.note(DEVICE, rule) for rule in rules))
        assert set(book.in_force(DEVICE)) >= {*rules, NO_RULE}


def test_entries_in_memory_are_listed_while_others_come():
    store, records = MemoryStore(), [Settlement(Digest(f"{number:064x}"), PAIR, 2, 17) for number in range(THREADS * ROUNDS)]

    def publish(number):
        for record in records[number::THREADS]:
            store.publish(record)

    def look():
        for _ in range(ROUNDS):
            found = list(store)
            assert found == sorted(found)

    together(*(lambda number=number: publish(number) for number in range(THREADS)), look, look)
    assert list(store) == [record.digest for record in records]

"""The coordination, `runtime.turn` and what it uses, run in one thread: any interleaving, deaths between any two stores.

Actors are the very generators that the engine drives; the world here only plays their effects.
A killed worker is replaced by a new one on the same words.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import types
from collections import Counter

import mutants
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qflow.runtime import allocator, consumer, side, streaming, taker, turn
from qflow.runtime.board import DATA, END, KEPT, PACKED, POISON, VIEWS, Board, Shape, edge_shape, words_needed
from qflow.runtime.simulation import Actor, Simulation


class World(Simulation):
    """Workers, bells, cursors and cells of a chain of steps, as plain values; takers keep some views for a while."""

    def __init__(self, source, steps, bounds, rng, kills=0, ordered=True, small=0.5, memory=None, sizes=()):
        self.source, self.steps, self.kills = list(source), steps, kills
        self.small = small  # how many results may share a cell
        self.sizes = sizes  # bytes of those that have one of their own
        self.room = 0.8  # how often one more value fits
        self.greedy = rng.random() < 0.5  # take all that lies there
        self.bias, self.favoured = rng.choice([0, 0.5, 0.9]), rng.choice([min, max])  # towards the source, or the consumer
        self.calls = 0  # of the steps' functions
        ns = [1, *(n for _, n in steps)]
        takers = [*ns[1:], 1]
        last = len(ns) - 1
        self.shape = Shape(
            tuple(
                edge_shape(bound, n, taking, ordered=ordered or e < last, memory=memory and memory[e])
                for e, (bound, n, taking) in enumerate(zip(bounds, ns, takers, strict=True))
            )
        )
        super().__init__(Board(self.shape, memoryview(bytearray(8 * words_needed(self.shape))).cast("Q")), len(steps), rng)
        self.cells = [{} for _ in self.board.edges]  # of each edge: cell -> the values in it
        self.pages = [Counter() for _ in self.board.edges]  # of each edge: cell -> bytes
        self.viewed = [
            set() for _ in self.board.edges
        ]  # of each edge: cells on which views were kept since their producer filled one
        self.punched = 0
        self.inbox = {}  # participant -> values copied out of a cell
        self.kept = {}  # participant -> cells on which it keeps views
        self.out, self.pulled = [], 0
        self.actors[0] = Actor(turn.feed(self.board), {"result": self._pull, **self._filling(0)})
        for step, (_, n) in enumerate(steps):
            for worker in range(n):
                self._start(self.shape.first[step + 1] + worker, step)
        self.consumer = self.shape.participants - 1
        cursor = (consumer.Cursor if ordered else consumer.Loose)(self.board, last, self.consumer)
        self.kept[self.consumer] = set()
        self.actors[self.consumer] = Actor(self._consume(cursor), {"give back": self._giving_back(last)})

    def _pull(self):
        if self.pulled == len(self.source):
            return None
        self.pulled += 1
        return self._parcel(DATA | END, self.source[self.pulled - 1])

    def _parcel(self, kind, value):
        packs = self.rng.random() < self.small
        return side.Parcel(kind, self.rng.choice(self.sizes) if self.sizes and not packs else 8, value, packs=packs)

    def _filling(self, edge):
        """The effects that write into the cells of an edge."""
        takers = range(self.shape.first[edge + 1], self.shape.first[edge + 1] + self.shape.edges[edge].takers)

        def fill(cell, parcel):
            assert not any(cell in self.kept.get(who, ()) for who in takers), "under a view"
            self.cells[edge][cell] = [parcel.content] if parcel.values else []
            if cell % self.board.edges[edge].cells_each < self.shape.edges[edge].large:
                self._check(edge, cell, allocator.pages_of(parcel))

        def add(cell, parcel):
            room = self.rng.random() < self.room
            if room:
                self.cells[edge][cell].append(parcel.content)
            return room

        def punch(cell, keep):
            assert not self.board.edges[edge].cell[cell]
            self.punched += self.pages[edge][cell] > keep
            self.pages[edge][cell] = min(self.pages[edge][cell], keep)

        return {"fill": fill, "add": add, "punch": punch}

    def _check(self, number, cell, size):
        """A cell is filled: what all have is noted, and is within the share of their producer, or passes alone."""
        edge, pages, share = self.board.edges[number], self.pages[number], self.shape.edges[number].share
        pages[cell] = max(pages[cell], size)
        assert all(pages[each] <= edge.pages[each] for each in pages)
        own = [each for each in pages if each // edge.cells_each == cell // edge.cells_each]
        seen = set(self.viewed[number])
        self.viewed[number] -= {each for each in own if edge.cell[each] < KEPT}
        if share:
            assert sum(pages[each] for each in own) <= max(share, size + sum(pages[each] for each in seen.intersection(own)))
        if share and size > share:
            assert not [each for each in pages if each != cell and pages[each] > share and each not in seen], "two at a time"

    def _giving_back(self, edge):
        def give_back(cell, keep):
            assert self.board.edges[edge].cell[cell]
            self.pages[edge][cell] = min(self.pages[edge][cell], keep)
            self.cells[edge][cell] = ["gone"] * 9999

        return give_back

    def _start(self, who, step):
        """A worker; a replacement knows nothing of its predecessor's views."""
        kept = self.kept[who] = set()
        own = taker.Taker(self.board, self.board.edges[step], who)
        results = iter(())

        def values(claim):
            return self.cells[step][claim.cell][claim.offset : claim.offset + claim.values]

        def begin(claim, k, skip):
            nonlocal results
            if not skip and self.shape.edges[step + 1].most > 1 and self.rng.random() < 0.2 * self.small:
                return side.Parcel(DATA, 8, packs=True, values=0)
            if kept and self.rng.random() < 0.5:
                self._play(own.unkeep(kept.pop()), self._giving_back(step))
            self.calls += 1
            value = (self.inbox[who] if claim.kind & PACKED else values(claim))[k]
            results = iter([self._parcel(*each) for each in outcomes(self.steps[step][0], value)])

        def release(claim):
            keep = not claim.kind & PACKED and len(kept) < VIEWS and own.holds(claim) and self.rng.random() < 0.2
            if keep:
                kept.add(claim.cell)
                self.viewed[step].add(claim.cell)
            return keep

        effects = {
            "putter": lambda putter: None,
            "share": lambda available: available if self.greedy else self.rng.randint(1, available),
            "copy": lambda claim: self.inbox.update({who: values(claim)}),
            "begin": begin,
            "result": lambda: next(results, None),
            "release": release,
            "give back": self._giving_back(step),
            **self._filling(step + 1),
        }
        self.actors[who] = Actor(turn.work(self.board, step, who), effects, step)

    def _play(self, actions, give_back):
        for word, what, *more in actions:
            if word == "ring":
                self.bells[what] += 1
            else:
                give_back(what, *more)

    def _consume(self, cursor):
        kept = self.kept[self.consumer]
        while True:
            if kept and self.rng.random() < 0.5:
                yield from cursor.taker.unkeep(kept.pop())
            claim = yield from cursor.take()
            if claim is None:
                return
            self.out += self.cells[-1][claim.cell][claim.offset : claim.offset + claim.values]
            keep = bool(self.sizes) and not claim.kind & PACKED and len(kept) < VIEWS and self.rng.random() < 0.2
            if keep:
                kept.add(claim.cell)
                self.viewed[-1].add(claim.cell)
            yield from cursor.done(claim, keep)

    def run(self, limit=10**9):
        """Let random actors act until all are done; fail when nobody can. In the end only views hold cells."""
        while self.actors:
            limit -= 1
            assert limit, "no end"
            self.act(self.choose())
        for edge in self.board.edges:
            assert all(cell in self.kept[word ^ KEPT] for cell, word in enumerate(edge.cell) if word)

    def choose(self):
        if self.rng.random() < self.bias and (able := self.able()):
            return self.favoured(able)
        return super().choose()

    def act(self, who):
        if self.kills and self.rng.random() < 0.02 and any(actor.step is not None for actor in self.actors.values()):
            self.kills -= 1
            victim = self.victim()
            self._start(victim, self.actors[victim].step)
        else:
            super().act(who)


def outcomes(function, value):
    """A step's results: a map's with END, an iterator's without."""
    result = function(value)
    if isinstance(result, list):
        return [(DATA, each) for each in result]
    return [(DATA | END, result)]


def serial(source, steps):
    values = list(source)
    for function, _ in steps:
        values = [result for value in values for _, result in outcomes(function, value)]
    return values


def calls(source, steps):
    """How many calls of their functions it takes."""
    return sum(len(serial(source, steps[:number])) for number in range(len(steps)))


FUNCTIONS = [
    lambda x: x + 1,
    lambda x: x * 3,
    lambda x: [x] * (x % 4),  # an iterator of 0 to 3 values
    lambda x: [x, -x] if x % 2 else [],
    lambda x: [x] if x % 3 else [],  # a filter
    lambda x: [] if x % 7 else [x],  # another
]


def many(x):
    return [x] * 150


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(0, 2**32), st.integers(0, 5))
def test_more_results_than_a_lane_is_deep(n, seed, kills):
    world = World(range(4), [(many, n), (FUNCTIONS[0], 2)], [1, 300, 1], random.Random(seed), kills)
    world.run()
    assert world.out == serial(range(4), world.steps)


steps_ = st.lists(st.tuples(st.sampled_from(FUNCTIONS), st.integers(1, 4)), min_size=1, max_size=3)
bounds_ = st.lists(st.none() | st.integers(1, 3), min_size=4, max_size=4)


SHARED = [None, 64 << 10, 300_000, 10**6, 3 * 10**6]  # bytes of an edge
SIZES = (70_000, 100_000, 400_000, 2_000_000)


@settings(max_examples=300)
@given(st.data(), st.integers(0, 25), st.integers(0, 2**32), st.integers(0, 12), st.booleans())
def test_bytes_stay_within_the_shares_or_pass_alone(data, items, seed, kills, ordered):
    """The world checks each cell that is filled; whatever is kept, killed and too large, all comes to its end."""
    steps, bounds = data.draw(steps_), data.draw(bounds_)
    memory = data.draw(st.lists(st.sampled_from(SHARED), min_size=4, max_size=4))
    world = World(
        range(items), steps, bounds[: len(steps) + 1], random.Random(seed), kills, ordered, small=0.2, memory=memory, sizes=SIZES
    )
    world.run()
    order = list if ordered else sorted
    assert order(world.out) == order(serial(range(items), steps))


def test_a_large_value_passes_when_many_cells_are_freed_at_once():
    steps = [(FUNCTIONS[0], 1)]
    world = World(range(601), steps, [1, 600], random.Random(1), small=0, memory=[None, 10**7])
    world._parcel = lambda kind, value: side.Parcel(kind, 2 * 10**7 if value == 601 else 8, value)
    waiting = [world.actors.pop(world.consumer)]
    while able := world.able():
        world.act(world.rng.choice(able))
    world.actors = {world.consumer: waiting[0], **world.actors}
    while world.consumer in world.able():
        world.act(world.consumer)
    assert len(world.out) == 600
    world.run()
    assert world.out == serial(range(601), steps)


def test_a_rare_giant_shrinks_again_and_nothing_else_is_ever_punched():
    for giant in (None, 20):
        world = World(range(3 * allocator.RECENT), [(FUNCTIONS[0], 1)], [3, 3], random.Random(1), small=0)
        sizes = iter(range(10**9))
        world._parcel = lambda kind, value, sizes=sizes, giant=giant: side.Parcel(
            kind, 200_000_000 if next(sizes) == giant else 1_000_000, value
        )
        grown = 0
        while world.actors:
            world.act(world.choose())
            grown = max(grown, *(sum(pages.values()) for pages in world.pages))
        used = [sum(pages.values()) for pages in world.pages]
        assert (grown > 2 * 10**8) == bool(giant)
        assert max(used) < 10**7
        assert world.punched == (1 if giant else 0)


@settings(max_examples=150)
@given(steps_, bounds_, st.integers(0, 25), st.integers(0, 2**32))
def test_any_interleaving_gives_the_serial_result(steps, bounds, items, seed):
    world = World(range(items), steps, bounds[: len(steps) + 1], random.Random(seed))
    world.run()
    assert world.out == serial(range(items), steps)


@settings(max_examples=300)
@given(steps_, bounds_, st.integers(0, 25), st.integers(0, 2**32), st.integers(1, 12))
def test_deaths_between_any_two_stores_change_nothing(steps, bounds, items, seed, kills):
    world = World(range(items), steps, bounds[: len(steps) + 1], random.Random(seed), kills)
    world.run()
    assert world.out == serial(range(items), steps)
    assert world.calls <= calls(range(items), steps) + kills  # only what was at work is repeated


@settings(max_examples=100)
@given(steps_, bounds_, st.integers(0, 25), st.integers(0, 2**32))
def test_without_order_every_result_comes_once(steps, bounds, items, seed):
    world = World(range(items), steps, bounds[: len(steps) + 1], random.Random(seed), ordered=False)
    world.run()
    assert sorted(world.out) == sorted(serial(range(items), steps))


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2**32)
)
def test_claims_are_limited_by_the_bounds(sizes, last, seed):
    """Nobody consumes: what was pulled is what the queues and workers hold."""
    steps = [(FUNCTIONS[0], n) for n, _ in sizes]
    bounds = [*(bound for _, bound in sizes), last]
    world = World(range(200), steps, bounds, random.Random(seed))
    del world.actors[world.consumer]
    while able := world.able():
        world.act(world.rng.choice(able))
    assert world.pulled <= sum(bounds) + 1 + sum(n for n, _ in sizes)


@settings(max_examples=60)
@given(steps_, bounds_, st.integers(0, 400), st.integers(0, 2**32))
def test_a_cancelled_run_comes_to_rest_from_any_point(steps, bounds, acts, seed):
    world = World(range(100), steps, bounds[: len(steps) + 1], random.Random(seed))
    for _ in range(acts):
        able = world.able()
        if not able:
            break
        world.act(world.rng.choice(able))
    world.board.cancelled[0] = 1
    for step, (_, n) in enumerate(steps):
        world.cursors[step].extend([(POISON, 0, 0)] * n)
    world.bells = [1] * len(world.bells)
    for _ in range(20_000):
        able = world.able()
        if not able:
            break
        who = world.rng.choice(able)
        try:
            world.act(who)
        except side.Cancelled:
            del world.actors[who]
    assert not world.actors


def test_values_that_gave_nothing_are_not_repeated():
    """A worker dies in the middle of a claim of many."""
    world = World(range(12), [(lambda x: [], 1)], [None, None], random.Random(1), small=1)
    world.greedy, world.room, (worker,) = True, 1, [who for who, actor in world.actors.items() if actor.step == 0]
    while 0 in world.actors:
        world.act(0)
    while world.calls < 7:
        world.act(worker)
    world._start(worker, 0)
    world.run()
    assert world.out == []
    assert world.calls == 13  # the one at work


class Torn(Exception):
    pass


class Dying(list):
    """Words whose writer dies after some stores."""

    def __init__(self, words, stores):
        super().__init__(words)
        self.stores = stores

    def __setitem__(self, at, word):
        if not self.stores:
            raise Torn
        self.stores -= 1
        super().__setitem__(at, word)


def test_a_streams_slot_is_the_old_or_the_new_one_whatever_was_stored():
    old, new = streaming.Slot(*range(1, 7)), streaming.Slot(*range(11, 17))
    words = Dying([0] * 13, 99)
    list(streaming._commit(types.SimpleNamespace(watched=True, job=[words]), 0, old))
    for stores in range(20):
        torn = Dying(words, stores)
        with contextlib.suppress(Torn):
            list(streaming._commit(types.SimpleNamespace(watched=True, job=[torn]), 0, new))
        assert streaming.valid_slot(torn) == (old if stores < 7 else new)


WORLD = mutants.MODULES[: mutants.MODULES.index("turn") + 1]  # what a `World` runs, wholly


def in_a_world(name):
    """Whether a mutant's place is one that a `World` runs."""
    module, old, *_ = mutants.MUTANTS[name]
    return module in WORLD or old in inspect.getsource(consumer.Cursor) + inspect.getsource(consumer.Loose)


def notices(seeds):
    """Whether any of so many worlds comes out wrong."""
    for seed in seeds:
        rng = random.Random(seed)
        steps = [(rng.choice(FUNCTIONS), rng.randint(1, 4)) for _ in range(rng.randint(1, 3))]
        bounds = [rng.choice([None, 1, 2, 3, 16, 40]) for _ in range(len(steps) + 1)]
        items = rng.randint(0, 60)
        if seed % 10 == 0:
            steps, bounds, items = [(many, 2), (FUNCTIONS[0], 2)], [1, 300, 1], 4
        if seed % 10 == 5:  # a full queue, for which two wait in turn
            steps, bounds, items = [(FUNCTIONS[0], 2)], [40, 1], 60
        order = list if seed % 4 else sorted
        bounded = {"memory": [rng.choice(SHARED) for _ in bounds], "sizes": SIZES, "small": 0.2} if seed % 10 in (3, 7) else {}
        world = World(range(items), steps, bounds, rng, kills=(kills := rng.randint(0, 12)), ordered=order is list, **bounded)
        try:
            with mutants.patience():
                world.run(limit=60_000)
            assert order(world.out) == order(serial(world.source, steps))
            assert world.calls <= calls(world.source, steps) + kills
        except Exception:
            return True
    return False


def put_in_place(made, monkeypatch):
    """Let worlds use changed modules."""
    for module in (*WORLD, "consumer"):
        monkeypatch.setitem(globals(), module, made[module])


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_mutant_changes_one_place(name):
    module = mutants.MUTANTS[name].module
    assert mutants.text(module, name) != mutants.text(module, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*filter(in_a_world, mutants.seen_by("world"))])
def test_removing_a_line_of_the_protocol_is_noticed(name, monkeypatch):
    put_in_place(mutants.runtime(name), monkeypatch)
    assert notices(range(2000))


@pytest.mark.slow
def test_changing_nothing_is_not_noticed(monkeypatch):
    put_in_place(mutants.runtime(None), monkeypatch)
    assert not notices(range(100))

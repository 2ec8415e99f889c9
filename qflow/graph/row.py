"""Row: operators in a row, given one value at a time; what fails stands among the results.

`Operator.transform` is what an operator means. A row is the same meaning turned round, value by value,
so that an engine can say where each result comes from, go on after a failure, and write down what the
streams keep:

    add(value)    [Each Each] -> Stream -> [Each] -> Stream -> ...    results
    finish()                     Stream -> [Each] -> Stream -> ...    the last results

A result comes with its index path (`path`) and with what is known of it: whether it is the `LAST`, and whether it is a
`Failed` in place of a result (which a user's value may be, too). Where that is asked for, results that are there already
may come together, as a list that is known to be `MANY`, with the path of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qflow.graph.attempt import FAILED, NO_ITEM, Eaches, Gate, Results, Watch, failed, through_each
from qflow.graph.context import Setting
from qflow.graph.flow import Each, Operator, Stream
from qflow.graph.path import ORIGIN, Path, index_of


class Start(NamedTuple):
    """Where a stream begins: the number of its first result, which inputs count, and what it knows of the first of them.

    Attributes:
        first: index path of the first input, without its origin; None: the first that comes.
        words: of `Accumulator.origin`.
        head: the repetition of the source to which the first result belongs.
        origin: of that.
    """

    given: int = 0
    first: Path | None = None
    words: tuple[int, ...] = ()
    head: Path = ()
    origin: Path = ()


class Place(NamedTuple):
    """Where a stream is: the number of its next result, and its origin; the last value that came, and to which repetition of
    the source the last result belonged."""

    given: int
    origin: Path = ()
    last: Path = ()
    head: Path = ()


class Time(NamedTuple):
    """Among values that have entered: those that follow belong to this repetition of the source."""

    head: Path


class Kept(NamedTuple):
    """What must be known of a stream to go on where it is: where it begins, where it is, what it keeps."""

    start: Start
    place: Place
    state: Any


class _At:
    """A stream at work."""

    __slots__ = ("_start", "first", "given", "head", "kept", "last", "origin", "stream")

    def __init__(self, stream: Stream[Any, Any], start: Start, place: Place, state: Any) -> None:
        self.stream, self.kept = stream, stream.accumulator(state)
        self._start, self.first, self.place = start, start.first, place
        if self.first is not None:
            self.kept.again(start.words)

    @property
    def state(self) -> Kept:
        start = Start(self.given, None, (), self.head) if self.first is None else self._start
        return Kept(start, self.place, self.kept.state)

    def begin(self, head: Path) -> None:
        """The results of a repetition are numbered from 0 on, or from where it was begun."""
        self.head, self.given = head, self._start.given if head == self._start.head else 0

    @property
    def place(self) -> Place:
        return Place(self.given, self.origin, self.last, self.head)

    @place.setter
    def place(self, place: Place) -> None:
        self.given, self.origin, self.last, self.head = place


class Row:
    """Operators in a row, at work.

    Args:
        operators: opened (`Operator.opened`).
        watch: around user code.
        states: `states` of a predecessor, to go on where it was.
        starts: of each stream, in the midst of a run.
        labels: the operators' names in the flow.
        gates: through which some operators are called, by their places.
    Attributes:
        empty: no operator changes anything: each value is the result, and there are no others.
        depends: what the operators do depends on the run, beside its data.
    """

    def __init__(
        self,
        operators: Sequence[Operator[Any, Any]],
        watch: Watch | None = None,
        states: Sequence[Kept] | None = None,
        labels: Sequence[str] | None = None,
        starts: Sequence[Start] = (),
        gates: Mapping[int, Gate] | None = None,
    ) -> None:
        self._watch = watch or Watch()
        self.empty = not any(isinstance(operator, (Each, Stream)) for operator in operators)
        context = self._watch.context
        depending = [operator.depends(context) for operator in operators]
        self.depends = any(depending)
        self._repeats = context.repeats
        if self.depends:
            settings = [Setting(context, label) for label in labels or [operator.name for operator in operators]]
            each = zip(operators, settings, depending, strict=True)
            operators = [operator.within(setting) if depends else operator for operator, setting, depends in each]
        self._watch.gates = {id(operators[place]): gate for place, gate in (gates or {}).items()}
        self._parts: list[Eaches] = [()]
        streams: list[Stream[Any, Any]] = []
        for operator in operators:
            if isinstance(operator, Stream):
                streams.append(operator)
                self._parts.append(())
            elif isinstance(operator, Each):
                self._parts[-1] += (operator,)
        if states is None:
            states = [
                Kept(start, Place(start.given, start.origin, head=start.head), None)
                for start in starts or [Start()] * len(streams)
            ]
        self._streams = [_At(stream, *kept) for stream, kept in zip(streams, states, strict=True)]
        self._paths = any(stream.kept.wants_paths for stream in self._streams)
        # Of the streams from each place on, those that may need no more values.
        self._ending = [[each.kept for each in self._streams[at:] if each.kept.ends] for at in range(len(self._streams) + 1)]
        self.entered: list[Any] | None = None  # what the first stream has taken, with paths where one looks at them
        self.deep = False  # user code between two streams was called
        self._again = False  # results were given out before
        self._time: Path = ()  # of the values that have entered last

    def add(
        self, value: Any, path: Path, reload: Callable[[], Any] | None = None, called: Callable[[], Any] | None = None
    ) -> Results:
        """The results that a value brings; ``reload`` gives it afresh when a step is tried again.

        ``called``: its first operator was called already, and this gives what it gave.
        """
        if self._enough(0, path):
            return _nothing()
        if called is not None:
            return through_each(self._parts[0], value, path, self._watch, reload, called)
        return self._after(0, value, path, reload)

    def take(self, values: list[Any]) -> int:
        """Let the first stream take the first of several values, none of which brings a result -> how many.

        They are not among those that have ``entered``.
        """
        if self._parts[0] or not self._streams or (self._repeats and self._ending[0]):
            return 0
        first = self._streams[0]
        return 0 if self._paths or first.kept.skip or first.first is not None else first.kept.take(values)

    def came(self, path: Path) -> None:
        """The first stream takes values, the last of them with this index path, all of one repetition of the source."""
        self._streams[0].last = path
        if self._repeats and self.entered is not None and not (self.entered and path[:1] == self._time):
            self._time = path[:1]
            self.entered.append(Time(self._time))

    def enter(self, values: Iterable[Any], places: Sequence[Place] | None = None) -> None:
        """Let the first stream take values again that had ``entered``; their results were given out.

        ``places``: where the streams were afterwards; None: where they are.
        """
        self._again = True
        time: Path = ()
        for value in values:
            if type(value) is Time:
                time = value.head
                continue
            path = time
            if self._paths:
                path, value = value
            self._streams[0].first = None
            for _ in self._given_out(0, self._added(0, value, path), value, path):
                pass
        for stream, place in zip(self._streams, places or (), strict=False):
            stream.place = place
        self._again = self.deep = False
        self.entered = []

    @property
    def places(self) -> list[Place]:
        """Where the streams are."""
        return [stream.place for stream in self._streams]

    def finish(self) -> Results:
        """The results that come when there are no more values."""
        done = [number for number, stream in enumerate(self._streams) if stream.kept.done]
        for number, stream in enumerate(self._streams):
            if number < max(done, default=0):
                stream.kept.cut()
            else:
                yield from self._given_out(number, stream.kept.finish(), NO_ITEM, (stream.given,))

    def cut(self, head: Path) -> None:
        """No more values of a repetition come, because a stream needs no more: for those before it that is not the end."""
        over = [number for number, stream in enumerate(self._streams) if stream.kept.over(head)]
        for stream in self._streams[: max(over, default=0)]:
            stream.kept.cut()

    @property
    def missing(self) -> int:
        """How many more values the first stream expects to take before its next result; 0: it can't tell."""
        return 0 if self._parts[0] or not self._streams else self._streams[0].kept.missing

    @property
    def whole(self) -> bool:
        """Whether values that have ``entered`` are still as they came: the first stream takes none of them apart."""
        return bool(self._streams) and self._streams[0].kept.whole

    @property
    def done(self) -> bool:
        """Whether a stream needs no more values."""
        return any(stream.kept.done for stream in self._streams)

    def over(self, head: Path) -> bool:
        """Whether a stream needs no more values of a repetition of the source."""
        return any(kept.over(head) for kept in self._ending[0])

    def _enough(self, number: int, path: Path) -> bool:
        """Whether a stream from a place on needs no more of the repetition to which a path belongs: those before it hear of that,
        and are not called any more."""
        enough = bool(self._ending[number]) and any(kept.over(path[:1]) for kept in self._ending[number])
        if enough:
            self.cut(path[:1])
        return enough

    @property
    def states(self) -> list[Kept]:
        """For each stream how many results it has given, and what it keeps."""
        return [stream.state for stream in self._streams]

    def _after(self, part: int, value: Any, path: Path, reload: Callable[[], Any] | None = None) -> Results:
        """What comes of a value that has passed the streams before ``part``."""
        results = through_each(self._parts[part], value, path, self._watch, reload)
        return results if part == len(self._streams) else self._into(part, results)

    def _into(self, number: int, results: Results) -> Results:
        if number and any(each.user_code for each in self._parts[number]):
            self.deep = True
        stream = self._streams[number]
        for path, value, known in results:
            if known & FAILED:
                yield path, value, FAILED
            elif stream.first is None or index_of(path) >= stream.first:
                stream.first = None
                if not number and self.entered is not None:
                    if self._repeats:
                        self.came(path)
                    self.entered.append((path, value) if self._paths else value)
                yield from self._given_out(number, self._added(number, value, path), value, path)
                if self._enough(number, path):
                    return
            del value  # not kept alive while the next one is made

    def _added(self, number: int, value: Any, path: Path) -> Iterator[Any]:
        kept = self._streams[number].kept
        if kept.wants_paths:
            kept.path = path
        return kept.add(value)

    def _given_out(self, number: int, results: Iterator[Any], value: Any, path: Path) -> Results:
        """What a stream gives out for a value, through the rest of the row."""
        stream = self._streams[number]
        if value is not NO_ITEM:
            stream.last = path
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except self._watch.caught as error:
                yield path, failed(error, stream.stream, value), FAILED
                return
            if self._repeats and (head := stream.kept.head(stream.last)) != stream.head:
                stream.begin(head)
            given = (*stream.head, ORIGIN | len(stream.origin), *stream.origin, stream.given)
            stream.given += 1
            if stream.last:
                stream.origin = stream.kept.origin(stream.last)
            if self._again and number + 1 == len(self._streams):
                continue
            if self._enough(number + 1, given):
                if self._repeats and stream.head != stream.last[:1]:
                    continue  # it has given out what it kept of the repetition before
                return
            for below, each, known in self._after(number + 1, result, given):
                yield below, each, known & FAILED
                del each
            del result


def _nothing() -> Results:
    yield from ()

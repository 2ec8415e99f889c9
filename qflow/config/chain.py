"""Chain: several configurations, each going on with the output of the one before; the last one makes the output.

    in.h5 --a.yaml--> out.h5.1-of-3 --b.yaml--> out.h5.2-of-3 --c.yaml--> out.h5

What lies between goes when all is done. Beside each of these there is a note of what it was made of, so that a chain that was
interrupted goes on behind it only if that is still the same.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qflow import h5
from qflow.config.entries import Configuration
from qflow.errors import GraphError
from qflow.graph.flow import Flow
from qflow.graph.ranks import rank
from qflow.h5.journal import begun
from qflow.h5.outputs import Append
from qflow.h5.running import made_of

DONE = ".made-of"


def run_all(
    configurations: Sequence[tuple[str, Configuration]],
    input: str | None,
    output: str,
    *,
    exists: str = "refuse",
    resume: bool = False,
    drop: Sequence[str] = (),
    **options: Any,
) -> Iterator[tuple[str, Flow[Any, Any], h5.Summary]]:
    """Run configurations with their names, one after the other, and give for each its name, flow, and what was done.

    Args:
        configurations, input, output: the first one reads the input.
        exists, resume, drop, options: as in `qflow.h5.run`; ``drop`` beside what the configurations say.
    """
    last, first = len(configurations) - 1, rank().index == 0
    between = [f"{output}.{number + 1}-of-{last + 1}" for number in range(last)]
    appends = exists == "append"
    if last:
        input = _checked(input, output, between, exists, resume, first)
        exists = "overwrite" if appends else exists
    for number, (name, each) in enumerate(configurations):
        target = [*between, output][number]
        given = {**options, "params": each.params(), "drop": [*each.drop, *(drop if number == last else ())]}
        said = _said(each, input, target, given) if number < last else ""
        if not (resume and number < last and _is(target, said)):
            if resume and appends and number < last and os.path.exists(target + DONE):
                raise GraphError(
                    f"What {target!r} was made of has changed, and to begin anew may append once more. Remove it first."
                )
            if first and number < last:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target + DONE)
            made = "overwrite" if number < last else exists
            try:
                done = h5.run(each.flow, input, target, exists=made, resume=resume, attrs=each.attrs, **given)
            except BaseException as error:
                if number:
                    error.add_note(
                        f"qflow: what the configurations before have made is kept in {input!r}; `resume=True` goes on."
                    )
                raise
            if number < last and first:
                with open(target + DONE, "w") as file:
                    file.write(said)
            yield name, each.flow, done
        input = target
    if first:
        for path in between:
            os.unlink(path)
            os.unlink(path + DONE)


def _said(each: Configuration, input: str | None, target: str, given: Mapping[str, Any]) -> str:
    """What decides what a target holds."""
    parts = [part for operator in each.flow.operators for part in operator.inside]
    beside = [
        [*each.drop],
        given.get("compression"),
        repr(each.attrs),
        repr([part.attrs for part in parts if isinstance(part, Append)]),
    ]
    return json.dumps([made_of(each.flow, input, target, **{**given, "drop": ()}), beside], sort_keys=True)


def _checked(input: str | None, output: str, between: Sequence[str], exists: str, resume: bool, first: bool) -> str | None:
    """What the first of several configurations reads; a GraphError where an output is there that shall stay."""
    there = os.path.lexists(output)
    if there and exists == "refuse":
        raise GraphError(f"There is {output!r} already: write --exists append, --exists overwrite, or another output.")
    left = [path for path in between if os.path.exists(path) or begun(f"{path}.journal")]
    left += [output] if begun(f"{output}.journal") else []
    if first and left and not resume and exists != "overwrite":
        raise GraphError(f"A run into {output!r} was interrupted, and left {left[0]!r}. Write --resume, or --exists overwrite.")
    if exists == "append":
        if input is not None and not (there and os.path.samefile(input, output)):
            raise GraphError(f"With --exists append the rows of {output!r} itself are gone through, so leave --input out.")
        return output
    if there and input is not None and os.path.samefile(input, output):
        raise GraphError(f"The input is the output, {output!r}: write --exists append, or another output.")
    return input


def _is(path: str, said: str) -> bool:
    """Whether a file is there, and was made of this."""
    with contextlib.suppress(FileNotFoundError), open(path + DONE) as file:
        return os.path.exists(path) and file.read() == said
    return False

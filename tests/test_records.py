"""Records beside the dataclasses they stand for: the same words make the same class."""

import copy
import dataclasses
import inspect
import pickle

import pytest

from headwater import records
from headwater.config import MODELS, Config
from headwater.records import field, record


def declare(make, options):
    @make(**options)
    class Point:
        """A point."""

        x: int
        y: float = 2.0
        kind: str = options_field(make)(default="point", init=False)
        tags: list = options_field(make)(default_factory=list, repr=False)
        seconds: float = options_field(make)(default=0.0, compare=False)

        def __post_init__(self):
            if self.x < 0:
                raise ValueError(f"x is {self.x}")

    return Point


def options_field(make):
    return field if make is record else dataclasses.field


OPTIONS = [{}, {"frozen": True}, {"kw_only": True}, {"frozen": True, "kw_only": True}, {"eq": False}]


def outcome(f):
    try:
        return f()
    except (TypeError, AttributeError, ValueError) as e:
        return type(e)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_record_does_what_the_dataclass_does(options):
    ours, theirs = declare(record, options), declare(dataclasses.dataclass, options)
    doings = [
        lambda c: repr(c(x=1)),
        lambda c: repr(c(1)),
        lambda c: repr(c(1, 3.0, tags=[4])),
        lambda c: c(1, x=1),
        lambda c: c(1, 2.0, [], 0.0, 5),
        lambda c: c(),
        lambda c: c(x=1, z=2),
        lambda c: c(x=1, kind="line"),
        lambda c: c(x=-1),
        lambda c: c(x=1) == c(x=1),
        lambda c: c(x=1) == c(x=1, seconds=3.0),
        lambda c: c(x=1) == c(x=2),
        lambda c: c(x=1) == 1,
        lambda c: c(x=1).tags is c(x=1).tags,
        lambda c: hash(c(x=1, tags=())) == hash(c(x=1, tags=())),
        lambda c: setattr(c(x=1), "x", 2),
        lambda c: delattr(c(x=1), "x"),
        lambda c: c.y,
        lambda c: hasattr(c, "tags"),
        lambda c: repr(dataclasses.replace(c(x=1), x=5)),
        lambda c: dataclasses.replace(c(x=1), x=-5),
        lambda c: dataclasses.asdict(c(x=1)),
        lambda c: [(f.name, f.type, f.default, f.init, f.compare) for f in dataclasses.fields(c)],
        dataclasses.is_dataclass,
        lambda c: str(inspect.signature(c)),
        lambda c: repr(copy.copy(c(x=1, y=7.0))),
        lambda c: repr(copy.deepcopy(c(x=1, y=7.0))),
    ]
    for i, do in enumerate(doings):
        assert outcome(lambda do=do: do(ours)) == outcome(lambda do=do: do(theirs)), i


def test_a_frozen_record_says_what_to_do_instead():
    point = declare(record, {"frozen": True})(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"Point\.x is part of a frozen record; use replace"):
        point.x = 3
    assert records.replace(point, x=3) == type(point)(3)
    with pytest.raises(ValueError, match="x is -3"):
        records.replace(point, x=-3)


def test_what_a_record_may_not_be():
    with pytest.raises(AssertionError, match="use a factory"):

        @record
        class Shared:
            values: list = []  # noqa: RUF012 (that is the point)

    with pytest.raises(AssertionError, match="do not inherit"):

        @record
        class Child(declare(record, {})):
            more: int = 1


def test_the_configurations_are_records():
    for config in MODELS.values():
        assert pickle.loads(pickle.dumps(config)) == config
        assert Config.from_dict(dataclasses.asdict(config)) == config
        assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(ValueError, match="lacks 'vocab_size'"):
        Config.from_dict({"hidden_size": 1, "layers": [], "max_positions": 1})

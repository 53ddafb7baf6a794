"""Exchange of track tokens: who is judged how, with sessions that obey their tokens or do not."""

import contextlib
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from exported import exported

from refsam_bench.cli import command
from refsam_bench.exchange.token_exchange import (
    EXCHANGED_AFTER,
    Exchange,
    Exchanges,
    exchange_tokens,
    named_twins,
)
from refsam_bench.synthetic import generate
from refsam_trt.errors import UsageError
from refsam_trt.session.state_file import SavedExpression, SavedSession, read_state, write_state

SEED = 900_000


@functools.cache
def track_video(number: int):
    return generate(SEED, number, slice="track")


class Session:
    """Finds the object whose number its token holds, or (deaf to it) that of the expression."""

    def __init__(self, obeys: bool) -> None:
        self.obeys, self.texts, self.num_frames = obeys, [], 0

    def add_expression(self, text: str) -> None:
        self.texts.append(text)

    def step(self, frame):
        video, index = self.video_of(frame)
        self.num_frames += 1
        objects = [self.named(video, text) for text in self.texts]
        if self.num_frames == 1:
            self.tokens = np.array(objects, np.float32)[:, None]
        if self.obeys:
            objects = [int(token[0]) for token in self.tokens]
        return [SimpleNamespace(mask=video.mask(number)[index]) for number in objects]

    @staticmethod
    def named(video, text: str) -> int:
        return next(e.object_id for e in video.expressions if e.text == text)

    @staticmethod
    def video_of(frame):
        for number in range(3):
            video = track_video(number)
            for index in range(16):
                if np.array_equal(frame, video.frames[index]):
                    return video, index
        raise AssertionError("not one of the videos")

    def save_state(self, path: Path) -> None:
        expressions = tuple(SavedExpression(i, text) for i, text in enumerate(self.texts))
        saved = SavedSession(1, "0" * 64, "v", "fp32", expressions, 2, self.num_frames, (256, 256))
        write_state(path, saved, {"track_token": self.tokens})

    def load_state(self, path: Path) -> None:
        saved, tensors = read_state(path)
        assert saved.num_frames == EXCHANGED_AFTER
        self.texts = [expression.text for expression in saved.expressions]
        self.num_frames, self.tokens = saved.num_frames, tensors["track_token"]


def engine(obeys: bool):
    return SimpleNamespace(open_video=lambda: contextlib.nullcontext(Session(obeys)))


@pytest.mark.parametrize(("obeys", "share"), [(True, 1.0), (False, 0.0)])
def test_masks_that_follow_their_tokens_are_exchanged_and_others_are_not(obeys, share):
    ticks: list[int] = []
    exchanges = exchange_tokens(engine(obeys), SEED, 2, lambda: ticks.append(1))
    assert len(ticks) == 2
    assert (exchanges.kept, exchanges.exchanged) == (1.0, share)
    figures = exchanges.to_json()
    assert figures["num_with_named_twins"] == len(figures["videos"]) == len(exchanges.videos)


class Fickle(Session):
    """Follows the words as they stand: in the end they fit the other twin. Tokens do not count."""

    def step(self, frame):
        results = super().step(frame)
        return results if self.num_frames < EXCHANGED_AFTER else results[::-1]


class Torn(Session):
    """Follows the token for the first expression and the words for the second."""

    def step(self, frame):
        video, index = self.video_of(frame)
        results = super().step(frame)
        return [
            results[0],
            SimpleNamespace(mask=video.mask(self.named(video, self.texts[1]))[index]),
        ]


class Confused(Session):
    """Finds the first object for both expressions."""

    def step(self, frame):
        return [super().step(frame)[0]] * 2


@pytest.mark.parametrize(("kind", "kept"), [(Torn, 1.0), (Confused, 0.0)])
def test_one_twin_alone_neither_keeps_nor_exchanges(kind, kept):
    torn = SimpleNamespace(open_video=lambda: contextlib.nullcontext(kind(True)))
    exchanges = exchange_tokens(torn, SEED, 1, lambda: None)
    assert (exchanges.kept, exchanges.exchanged) == (kept, 0.0)


def test_masks_that_change_places_without_their_tokens_are_not_exchanged():
    fickle = SimpleNamespace(open_video=lambda: contextlib.nullcontext(Fickle(False)))
    exchanges = exchange_tokens(fickle, SEED, 2, lambda: None)
    assert (exchanges.kept, exchanges.exchanged) == (0.0, 0.0)


def test_twins_look_alike_in_the_end_and_both_are_named():
    for index in range(6):
        video = generate(SEED, index, slice="track", frame_indices=[0])
        twins = named_twins(video)
        assert twins is not None
        first, second = (video.scene.objects[twin.object_id - 1] for twin in twins)
        assert first is not second
        assert first.shape == second.shape
        assert first.colour_at(1.0) == second.colour_at(1.0)


def test_videos_without_twins_are_refused(monkeypatch):
    monkeypatch.setattr("refsam_bench.exchange.token_exchange.named_twins", lambda video: None)
    with pytest.raises(UsageError, match="no named twins in 1 videos; give more videos"):
        exchange_tokens(engine(True), SEED, 1, lambda: None)


def test_the_command_runs_a_bundle(tmp_path_factory):
    bundle = exported(tmp_path_factory, "tiny")
    arguments = ["exchange", str(bundle), "--num-videos", "1", "--json"]
    ended = CliRunner().invoke(command, arguments, catch_exceptions=False)
    figures = json.loads(ended.stdout)
    assert figures["random_weights"] is True
    assert {figures["kept"], figures["exchanged"]} <= {0.0, 1.0}


def test_twins_have_become_each_other_before_the_exchange():
    """Otherwise their words still fit, and a token from another twin proves nothing."""
    time, changes = EXCHANGED_AFTER / 15, set()
    for index in range(12):
        video = generate(SEED, index, slice="track", frame_indices=[0])
        first, second = (video.scene.objects[twin.object_id - 1] for twin in named_twins(video))
        if first.colour_at(0.0) != second.colour_at(0.0):
            assert first.colour_at(time) == second.colour_at(time) is not None
            changes.add("colour")
            continue
        poses = [(first.pose_at(t), second.pose_at(t)) for t in (0.0, time)]
        changed = set()
        for measure in ("x", "y", "radius"):
            before, after = (getattr(a, measure) - getattr(b, measure) for a, b in poses)
            if before * after < 0.0:
                changed.add(measure)
        assert changed, f"video {index}: its twins are as they were"
        changes |= changed
    assert changes >= {"colour", "radius"}


def test_shares_are_those_of_the_videos_with_named_twins():
    both = tuple(Exchange(name, ("a", "b"), name == "x", True) for name in ("x", "y"))
    figures = Exchanges(SEED, 8, both).to_json()
    assert (figures["num_videos"], figures["num_with_named_twins"]) == (8, 2)
    assert (figures["kept"], figures["exchanged"]) == (0.5, 1.0)


def test_objects_are_twins_only_if_shape_pattern_and_last_colour_are_the_same():
    def item(shape="ring", pattern="plain", last="red"):
        colours = {0.0: "blue", 1.0: last}
        return SimpleNamespace(shape=shape, pattern=pattern, colour_at=colours.__getitem__)

    named = tuple(SimpleNamespace(object_id=number) for number in (1, 2))
    for other, expected in (
        (item(), named),
        (item(shape="star"), None),
        (item(pattern="dots"), None),
        (item(last="green"), None),
    ):
        scene = SimpleNamespace(objects=[item(), other])
        assert named_twins(SimpleNamespace(expressions=named, scene=scene)) == expected

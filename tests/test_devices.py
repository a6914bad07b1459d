"""Tests of the lanes of a device, with a fake device whose streams are threads."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import DeviceError
from model_handlers.devices.find import find_devices
from model_handlers.devices.lanes import LANES, Host, Lanes, Replicas, Staging, lanes_of
from model_handlers.devices.pass_size import PATIENCE, PassSize, in_passes, rows_that_fit

# A test that waits this long for another thread fails.
SECONDS = 20


class FakeStream:
    """A queue of work in a thread of its own, which copies late, as a GPU does."""

    def __init__(self, log: list[str], go: Callable[[], object] = lambda: None) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._log, self._go = log, go

    def _later(self, work: Callable[[], object]) -> Future[object]:
        return self._thread.submit(work)

    def to_device(self, tensor: Tensor) -> Tensor:
        there = torch.empty_like(tensor)

        def copy() -> None:
            self._log.append("in")
            self._go()
            there.copy_(tensor)
            self._log.append("copied")

        self._later(copy)
        return there

    def to_host(self, tensor: Tensor, into: Tensor) -> None:
        def copy() -> None:
            self._go()
            into.copy_(tensor)
            self._log.append("out")

        self._later(copy)

    def call(
        self, compute: Callable[[list[Tensor]], Sequence[Tensor]], tensors: list[Tensor]
    ) -> Sequence[Tensor]:
        if compute is fail_at_once:
            return compute(tensors)
        self.synchronize()
        early = compute(tensors)
        outputs = [torch.empty_like(tensor) for tensor in early]

        def finish() -> None:
            self._go()
            for output, tensor in zip(outputs, early, strict=True):
                output.copy_(tensor)

        self._later(finish)
        return outputs

    def mark(self) -> "FakeMark":
        return FakeMark(self._later(lambda: None))

    def after(self, mark: "FakeMark") -> None:
        self._later(mark.synchronize)

    def synchronize(self) -> None:
        self.mark().synchronize()


class FakeMark:
    def __init__(self, done: Future[object]) -> None:
        self._done = done

    def synchronize(self) -> None:
        self._done.result(SECONDS)


def fail_at_once(_: list[Tensor]) -> list[Tensor]:
    """A model that raises before its inputs are on the device."""
    raise ValueError("bad row")


def fake_pinned(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def fake_gpu(log: list[str], go: Callable[[], object] = lambda: None) -> Any:
    return lanes_of(lambda: FakeStream(log, go), fake_pinned)


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor * 2 for tensor in tensors]


def test_a_device_runs_two_batches_at_most_and_copies_one_while_the_other_computes() -> None:
    log: list[str] = []
    runner = Lanes([fake_gpu(log)])
    inside, most, both = [0], [0], threading.Event()
    computing = threading.Event()

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        if not computing.is_set():
            computing.set()
            # The copy of the second batch is seen while this first one computes.
            for _ in range(SECONDS * 100):
                if log.count("in") > 1:
                    both.set()
                    break
                threading.Event().wait(0.01)
            # The third batch waits for a lane, so it does not copy.
            assert log.count("in") == 2
        inside[0] -= 1
        return doubled(tensors)

    arrays = [np.full((5, 3), n, np.float32) for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = [*threads.map(lambda array: runner.run(compute, [array]), arrays)]
    assert both.is_set()
    assert most == [1]
    for array, (answer,) in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer, array * 2)


def test_no_more_batches_are_on_a_device_than_it_has_lanes() -> None:
    log: list[str] = []
    runner = Lanes([fake_gpu(log)])
    with ThreadPoolExecutor(8) as threads:
        rows = [np.ones((2, 2), np.float32)] * 40
        assert len([*threads.map(lambda array: runner.run(doubled, [array]), rows)]) == 40
    on_device = np.cumsum([{"in": 1, "copied": 0, "out": -1}[event] for event in log])
    assert on_device.max() <= 2
    assert log.count("in") == log.count("out") == 40


@pytest.mark.slow
def test_a_buffer_is_not_used_again_before_its_batch_is_done() -> None:
    # Each copy waits a little, so a buffer that is written too early has the wrong batch.
    runner = Lanes([fake_gpu([], lambda: threading.Event().wait(0.002))])

    def score(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 1000, (seed % 7 + 1, 3)).astype(np.int64)
        wide = rows.astype(np.float32) / 3
        answers = runner.run(lambda ts: [ts[0] + 1, ts[1] * 3], [rows, wide])
        first = [answer.copy() for answer in answers]
        runner.run(doubled, [np.zeros((9, 3), np.int64)])
        assert np.array_equal(answers[0], first[0])
        return np.array_equal(answers[0], rows + 1) and np.allclose(answers[1], rows)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(score, range(40)))


def test_a_batch_that_fails_leaves_its_lane_to_the_next_one() -> None:
    held, log = threading.Event(), list[str]()
    runner = Lanes([fake_gpu(log, lambda: held.wait(SECONDS))])
    threading.Timer(0.05, held.set).start()
    for count in range(1, 2 * LANES + 1):
        with pytest.raises(ValueError, match="bad row"):
            runner.run(fail_at_once, [np.ones((1, 1), np.float32)])
        # Its copy has ended, so the next batch may be written into its buffer.
        assert log.count("copied") == count
    (answer,) = runner.run(doubled, [np.ones((1, 1), np.float32)])
    assert answer.tolist() == [[2.0]]


def test_batches_are_shared_by_all_devices() -> None:
    logs: list[list[str]] = [[], []]
    runner = Lanes([fake_gpu(log) for log in logs])
    for _ in range(8):
        runner.run(doubled, [np.ones((1, 1), np.float32)])
    assert [log.count("in") for log in logs] == [4, 4]


def test_a_batch_is_run_by_the_copy_of_the_model_on_its_device() -> None:
    copies = {torch.device("cpu"): lambda x: "cpu", torch.device("meta"): lambda x: "meta"}
    replicas = Replicas(copies)
    assert replicas(torch.zeros(1)) == "cpu"
    assert replicas(torch.zeros(1, device="meta")) == "meta"


def test_a_buffer_holds_tensors_of_every_dtype_and_grows() -> None:
    sizes: list[int] = []

    def allocate(size: int) -> Tensor:
        sizes.append(size)
        return fake_pinned(size)

    staging = Staging(allocate)
    like = [torch.ones(3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.int64), torch.ones(())]
    for given in ([], like, [torch.ones(1000, 3, dtype=torch.float64)], like):
        held = staging.hold(given)
        assert [(t.dtype, t.shape) for t in held] == [(t.dtype, t.shape) for t in given]
        for into, tensor in zip(held, given, strict=True):
            into.copy_(tensor)
        assert all(torch.equal(a, b) for a, b in zip(held, given, strict=True))
    assert sizes == [256, 1024, 32_768]


@pytest.mark.parametrize("copies", [True, False])
def test_the_host_copies_inputs_only_if_the_model_may_write_into_them(copies: bool) -> None:
    array = np.zeros(3, np.float32)
    (answer,) = Host(copies).run(lambda tensors: [tensors[0].add_(1)], [array])
    assert answer.tolist() == [1, 1, 1]
    assert array.tolist() == ([0, 0, 0] if copies else [1, 1, 1])


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("cpu", 2, ["cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", 3, ["cuda:1"]),
    ],
)
def test_a_name_stands_for_every_gpu_unless_it_has_a_number(
    name: str, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    assert [str(device) for device in find_devices(name)] == expected


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:2", 2), ("cuda:99", 0)])
def test_a_device_that_does_not_exist_is_refused_in_one_line(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(DeviceError, match=f"{name} is not available: this worker has {count} CUDA"):
        find_devices(name)


# The number of rows.


def limited(memory: list[int], size: PassSize, seen: list[int]) -> Callable[[slice], Any]:
    """Return a function that has memory for so many rows, and otherwise halves the size."""

    def attempt(rows: slice) -> list[np.ndarray] | None:
        count = rows.stop - rows.start
        seen.append(count)
        if count > memory[0]:
            size.shrink(count // 2)
            return None
        return [np.arange(rows.start, rows.stop)]

    return attempt


def test_memory_that_runs_out_halves_a_pass_and_no_row_is_lost() -> None:
    size, seen = PassSize(64), list[int]()
    (rows,) = in_passes(limited([10], size, seen), slice(3, 67), size)
    assert rows.tolist() == [*range(3, 67)]
    assert (size.rows, size.most) == (8, 64)
    assert seen == [64, 32, 16, 8, 8, 8, 8, 8, 8, 8, 8]


def test_a_pass_grows_again_after_memory_was_short_for_a_while() -> None:
    size, seen, memory = PassSize(64), list[int](), [10]
    attempt = limited(memory, size, seen)
    in_passes(attempt, slice(0, 64), size)
    memory[0] = 64
    for _ in range(4 * PATIENCE):
        in_passes(attempt, slice(0, size.rows), size)
    assert size.rows == 64


def test_attempts_to_grow_become_rare_while_memory_stays_short() -> None:
    size, seen = PassSize(64), list[int]()
    attempt = limited([10], size, seen)
    for _ in range(30 * PATIENCE):
        in_passes(attempt, slice(0, size.rows), size)
    # 64 and 32 once, then 16 after 1, 2, 4, 8 and 16 times the patience.
    assert [n for n in seen if n > 10] == [64, 32, 16] + [16] * 4
    assert size.rows == 8


def test_small_passes_do_not_show_that_there_is_memory_again() -> None:
    size = PassSize(64)
    size.shrink(8)
    for _ in range(2 * PATIENCE):
        size.passed(7)
    assert size.rows == 8


def test_a_limit_of_the_model_stays() -> None:
    size = PassSize(64)
    size.limit(20)
    for _ in range(2 * PATIENCE):
        size.passed(20)
    assert (size.rows, size.most) == (20, 20)


@pytest.mark.parametrize(
    ("fixed", "per_row", "free", "most", "expected"),
    [
        (0, 100, 100_000, 10_000, 800),
        (8_000, 100, 100_000, 10_000, 720),
        (0, 100, 10**9, 500, 500),
        (0, 10**6, 1000, 500, 1),
        (0, 10**6, 10**8, 500, 80),
        (50, 0, 1000, 500, 500),
        (0, 100, 10, 1, 1),
    ],
)
def test_the_rows_of_a_pass_follow_from_the_memory_of_some_passes(
    fixed: int, per_row: int, free: int, most: int, expected: int
) -> None:
    seen = []

    def peak(rows: int) -> int:
        seen.append(rows)
        return fixed + per_row * rows

    assert rows_that_fit(peak, free, most) == expected
    assert all(fixed + per_row * rows <= free for rows in seen if rows > 8)


def test_small_passes_that_hide_the_memory_of_a_row_do_not_mislead() -> None:
    # Up to 100 rows, the workspace of a kernel needs more than the rows.
    assert rows_that_fit(lambda rows: max(10**7, 10**5 * rows), 10**10, 10**6) == 80_000

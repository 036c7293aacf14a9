"""Stage `judge`: every edited item before a judge, several at once, each paid for once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kiwi_cli.bench.judges.base import Answer, Judge, Passing, Rejected, Request, hash_media
from kiwi_cli.bench.judges.ledger import Ledger
from kiwi_cli.bench.judges.parse import parse_scores
from kiwi_cli.bench.judges.protocols import Protocol
from kiwi_cli.bench.judges.rubrics import Rubric
from kiwi_cli.bench.run import Run
from kiwi_cli.bench.suites.items import Item
from kiwi_cli.errors import KiwiError

LONGEST_WAIT = 60.0  # seconds between two tries


@dataclass(frozen=True)
class Terms:
    """How to treat the judge.

    Attributes:
        concurrency: questions at once. per_minute: at most so many; None is no limit.
        retries: of a question that fails in passing. first_wait: seconds, doubled with each.
    """

    concurrency: int = 4
    per_minute: float | None = None
    retries: int = 6
    first_wait: float = 2.0


@dataclass
class JudgeSummary:
    """Outcome of a stage.

    Attributes:
        scored: items with every score, earlier ones included. failures: item id -> reason. unedited: ids.
        answers: paid for in this call. repeated: questions in doubt that were asked again.
        answered_by: model version -> answers in this call.
    """

    scored: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    unedited: list[str] = field(default_factory=list)
    answers: int = 0
    repeated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    answered_by: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Pace:
    """Lets calls through at a rate."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Until this caller's turn, or until `stop`."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        stop.wait(max(0.0, turn - now))


def build_request(run: Run, item: Item, protocol: Protocol, rubric: Rubric, judge: Judge) -> Request:
    """What is asked about an item: the protocol's order, the rubric's words."""
    media, labels = [run.source(item), run.edited(item)], ["Original", "After the edit"]
    reference = run.reference(item)
    if reference is not None:
        media.insert(0, reference)
        labels.insert(0, "Reference picture")
    identity = {
        "benchmark": run.benchmark.name,
        "protocol": protocol.name,
        "rubric": rubric.version,
        "backend": judge.backend,
        "settings": judge.settings,
    }
    return Request(
        item.id,
        rubric.names(item.category),
        rubric.text(item.category, item.instruction),
        protocol.place,
        tuple(media),
        tuple(labels),
        judge.model,
        protocol.temperature,
        identity,
    )


def _discard_leftovers(judge: Judge, ledger: Ledger) -> None:
    """Delete the uploads that an earlier run left with the judge."""
    for name in ledger.leftovers:
        if judge.discard(name):
            ledger.write("deleted", name=name)


def judge_items(
    run: Run,
    items: Sequence[Item],
    protocol: Protocol,
    rubric: Rubric,
    judge: Judge,
    ledger: Ledger,
    terms: Terms = Terms(),
    retry_failed: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    failed: Callable[[Item, str], None] | None = None,
) -> JudgeSummary:
    """Ask about every item that has a result and no scores yet.

    Args:
        retry_failed: also items whose answers could not be read as often as the protocol tries.

    Raises:
        KiwiError: the judge refuses the key or does not know the model; what was answered is in the ledger.
    """
    work = _Work(run, protocol, rubric, judge, ledger, terms, retry_failed, failed)
    begin = time.perf_counter()
    _discard_leftovers(judge, ledger)
    queue: Iterator[Item] = iter(items)
    taking = threading.Lock()
    done = 0

    def serve() -> None:
        nonlocal done
        while not work.stop.is_set():
            with taking:
                item = next(queue, None)
            if item is None:
                return
            try:
                work.one(item)
            except BaseException as error:
                work.fatal.append(error)
                work.stop.set()
                return
            with taking:
                done += 1
                if progress is not None:
                    progress("items", done, len(items))

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(terms.concurrency, len(items)))]
    for thread in threads:
        thread.start()
    try:
        _join(threads)
    except KeyboardInterrupt:
        # What is on its way is paid for: wait for it, unless the person insists.
        work.stop.set()
        _join(threads)
        raise
    if work.fatal:
        raise work.fatal[0]
    work.summary.seconds = time.perf_counter() - begin
    return work.summary


def _join(threads: Sequence[threading.Thread]) -> None:
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(0.1)  # short, so that Ctrl-C is heard


class _Work:
    """What the threads of one call share."""

    def __init__(
        self,
        run: Run,
        protocol: Protocol,
        rubric: Rubric,
        judge: Judge,
        ledger: Ledger,
        terms: Terms,
        retry_failed: bool,
        failed: Callable[[Item, str], None] | None,
    ) -> None:
        self.run, self.protocol, self.rubric, self.judge, self.ledger = run, protocol, rubric, judge, ledger
        self.terms, self.retry_failed, self.failed = terms, retry_failed, failed
        self.pace = Pace(terms.per_minute)
        self.stop = threading.Event()
        self.fatal: list[BaseException] = []
        self.summary = JudgeSummary()
        self._lock = threading.Lock()

    def one(self, item: Item) -> None:
        """Judge an item; whatever is wrong with this item alone becomes its reason."""
        if not self.run.edited(item).is_file():
            with self._lock:
                self.summary.unedited.append(item.id)
            return
        try:
            request = build_request(self.run, item, self.protocol, self.rubric, self.judge)
            digest = request.hash
        except OSError as error:
            self._fail(item, f"cannot read '{error.filename}': {error.strerror}")
            return
        state = self.ledger.state(digest)
        tries = self.protocol.tries
        if state.scored:
            with self._lock:
                self.summary.scored += 1
            return
        if state.answers >= tries and not self.retry_failed:
            self._fail(item, f"{state.answers} answers could not be read; the last: {state.problem}")
            return
        if state.in_doubt:
            with self._lock:
                self.summary.repeated += state.in_doubt
        allowed = tries if self.retry_failed else tries - state.answers
        try:
            self._ask_until_read(item, request, digest, allowed)
        except Rejected as error:
            self.ledger.write("rejected", request=digest, item=item.id, problem=error.problem)
            self._fail(item, error.problem)
        except Passing as error:
            self._fail(item, f"{error.problem}; gave up after {self.terms.retries} retries")
        except KiwiError:
            raise
        except Exception as error:  # an answer that the client chokes on is this item's alone
            self._fail(item, f"the answer cannot be read: {type(error).__name__}: {error}"[:300])

    def _ask_until_read(self, item: Item, request: Request, digest: str, allowed: int) -> None:
        prepared = self._retrying(lambda: self.judge.prepare(request, self._note))
        try:
            problem = ""
            for _ in range(allowed):
                started = time.perf_counter()
                answer = self._retrying(lambda: self._ask(item, request, digest, prepared))
                scores, problem = parse_scores(answer.text, request.names, self.protocol.scale, self.protocol.whole)
                if scores is None and answer.finish not in ("", "STOP", "stop"):
                    problem += f" ({answer.finish})"
                self._record(item, request, digest, answer, scores, problem, time.perf_counter() - started)
                if scores is not None or self.stop.is_set():
                    return
            self._fail(item, problem)
        finally:
            self.judge.release(prepared, self._note)

    def _ask(self, item: Item, request: Request, digest: str, prepared: Any) -> Answer:
        self.pace.wait(self.stop)
        self.ledger.write("sent", request=digest, item=item.id)
        try:
            return self.judge.ask(request, prepared)
        except Passing as error:
            self.ledger.write("error", request=digest, item=item.id, problem=error.problem, sent=error.sent)
            raise
        except KiwiError as error:
            self.ledger.write("error", request=digest, item=item.id, problem=error.message, sent=False)
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:300]
            self.ledger.write("error", request=digest, item=item.id, problem=problem, sent=True)
            raise

    def _record(
        self,
        item: Item,
        request: Request,
        digest: str,
        answer: Answer,
        scores: dict[str, float] | None,
        problem: str,
        seconds: float,
    ) -> None:
        self.ledger.write(
            "answer",
            request=digest,
            item=item.id,
            category=item.category,
            benchmark=self.run.benchmark.name,
            protocol=self.protocol.name,
            rubric=self.rubric.version,
            backend=self.judge.backend,
            asked=self.judge.model,
            answered_by=answer.answered_by,
            temperature=request.temperature,
            settings=self.judge.settings,
            edited=hash_media(request.media[-1]),
            text=answer.text,
            scores=scores,
            problem=problem,
            finish=answer.finish,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            seconds=round(seconds, 3),
        )
        with self._lock:
            self.summary.answers += 1
            self.summary.scored += scores is not None
            self.summary.input_tokens += answer.input_tokens or 0
            self.summary.output_tokens += answer.output_tokens or 0
            self.summary.answered_by[answer.answered_by] += 1

    def _retrying(self, call: Callable[[], Any]) -> Any:
        wait = self.terms.first_wait
        for attempt in range(self.terms.retries + 1):
            try:
                return call()
            except Passing as error:
                if attempt == self.terms.retries or self.stop.is_set():
                    raise
                self.stop.wait(min(max(wait, error.wait or 0.0), LONGEST_WAIT))
                wait *= 2
        raise AssertionError

    def _note(self, kind: str, name: str) -> None:
        self.ledger.write(kind, name=name)

    def _fail(self, item: Item, reason: str) -> None:
        with self._lock:
            self.summary.failures[item.id] = reason
        if self.failed is not None:
            self.failed(item, reason)

"""The runner of every script that asks models: rows, one model at a time, a journal, result files.

Finished batches go to the journal before the next one starts, so the same command continues a run that was
killed. Several processes of one launch share the rows: each has a part of the journal of its own, and process
0 waits for the others and puts the results together. Result files are strict JSON at every moment: one for
each temperature, `results_temp_<T>_<stamp>.json`, and `summary_<stamp>.json` over all of them.
"""

import argparse
import gc
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot.utils.cli import flags_of, this_command
from cot.utils.engine_choice import stay_with
from cot.utils.engines import open_engine
from cot.utils.errors import (
    EXIT_OK,
    EXIT_SAMPLES,
    EXIT_UNEXPECTED,
    Interrupted,
    UserError,
    hold_signals,
    raise_if_signalled,
)
from cot.utils.files import dumps, encode_record, timestamp
from cot.utils.formats import format_of
from cot.utils.journal import Journal, join_journal, open_journal, read_headers
from cot.utils.loading import loading_of
from cot.utils.memory_arms import PromptShape, make_prompt
from cot.utils.model_names import ModelSource, fetch_model
from cot.utils.processes import Processes, share_rows
from cot.utils.progress import Progress
from cot.utils.prompts import Prompt
from cot.utils.records import Row, make_record, make_requests
from cot.utils.results import SCHEMA_VERSION, ResultFiles, code_version, environment
from cot.utils.sampling import ignored_settings, sampling_of
from cot.utils.students import Profile
from cot.utils.summary import look_at
from cot.utils.templates import PromptFormat

if TYPE_CHECKING:
    from cot.utils.completions import Request
    from cot.utils.engines import Engine
    from cot.utils.scorers import Scorers


class Run:
    """One run of a script, as a context: entered with its journal open, left with its files written.

    Left without an error, the run is finished: the same command then begins a new one. Left by a signal or
    an error, the files say so, and the same command continues.

    Attributes:
        records: by row key, what is there so far.
        stamp: of the run, in every file's name.
        exit_code: of the script.
        is_main: whether this process measures the answers and writes the result files.

    Args:
        args: the script's flags, among them those of `add_generation_flags`, `add_template_flags`,
            `add_loading_flags` and `add_engine_flags`, and `device, dtype, fail_on_error, retry_failed`.
        rows: all answers, in the order of the results.
        sources: the model of each policy.
        shape: how prompts are built.
        profiles: by student id; empty in plain chain of thought.
        config: what the result files record beside the flags; `device` and `engine` are those picked.
        folder: where they lie.
        scorers: what measures the answers, many at once; without, `Run.finish` is told how.
        growing: a finished run of other rows is continued, so that policies can be added to it.
        tokenizers: by policy, those that were loaded already.
        identity: what decides the records beside flags and rows, where not all rows are known at the start.
    """

    def __init__(
        self,
        script: str,
        args: argparse.Namespace,
        rows: Sequence[Row],
        sources: Mapping[str, ModelSource],
        shape: PromptShape,
        profiles: Mapping[str, Profile],
        config: dict,
        folder: Path,
        scorers: "Scorers | None" = None,
        growing: bool = False,
        tokenizers: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.script, self.args, self.folder = script, args, folder
        self.rows, self.sources, self.shape, self.profiles = list(rows), dict(sources), shape, profiles
        self.processes = Processes()
        self.is_main = self.processes.is_main
        self.scorers = scorers
        described = scorers.describe() if scorers else {}
        count = self.processes.count
        self.config = {**flags_of(args), **config, **described, "processes": count, "models": {}}
        self.environment = environment(config["device"])
        self.records: dict[str, dict] = {}
        self._lines: dict[str, bytes] = {}  # the records as result files hold them while the run goes on
        self._counts: dict[str, tuple[int, int]] = {}  # by policy: right answers, answers
        self._formats: dict[str, PromptFormat] = {}  # by policy, as are the probes of its number format
        self._probes: dict[str, dict | None] = {}
        self.exit_code = EXIT_OK
        self._growing, self._tokenizers = growing, dict(tokenizers or {})
        self._further_identity = dict(identity or {})
        self._generation_s: dict[int, float] = {}  # by process
        self._metrics_s = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> "Run":
        parts = self._identify()
        header = {"started": timestamp(), "flags": flags_of(self.args), "parts": parts}
        self._journal: Journal = self._open(header) if self.is_main else self._join(header)
        self.stamp = self._journal.stamp
        self._files = ResultFiles(
            folder=self.folder,
            stamp=self.stamp,
            script=self.script,
            started=self._journal.header["started"],
            config=self.config,
            environment=self.environment,
        )
        self._take_in(self._journal.batches)

        # all processes deal out the rows that were missing when process 0 began
        if self.is_main:
            missing = "".join("01"[row.key not in self.records] for row in self.rows)
            self.processes.tell("missing", missing)
        else:
            missing = self.processes.hear("missing")
        left = [row for row, is_missing in zip(self.rows, missing, strict=True) if is_missing == "1"]
        self._shares = share_rows(left, self.processes.count)
        return self

    def _open(self, header: dict) -> Journal:
        """The journal of this run, new or continued; the other processes are told."""
        retry = self.args.retry_failed
        key = hashlib.sha256(dumps(header["parts"]).encode()).hexdigest()
        earlier = read_headers(self.folder, finished=retry)
        if all(other.get("key") != key for other in earlier.values()):
            self._say_what_changed(earlier, header)
            if retry:
                raise UserError(f"--retry_failed: no run of these flags, this data and code in {self.folder}")
        journal = open_journal(self.folder, key, header, self._growing or retry)
        self.processes.tell("journal", journal.path.name)
        return journal

    def _join(self, header: dict) -> Journal:
        """The journal that process 0 has opened."""
        path, rank = self.folder / self.processes.hear("journal"), self.processes.rank
        journal = join_journal(path, rank)
        there = journal.header["parts"]
        changed = [part for part, value in header["parts"].items() if there.get(part) != value]
        if changed:
            raise UserError(f"process {rank}: {', '.join(changed)} differ from those of process 0")
        return journal

    def _take_in(self, batches: Sequence[dict]) -> None:
        """Adds what a journal holds. Of a row that was generated again, an answer counts and no error."""
        records: dict[str, dict] = {}
        generation_s: dict[int, float] = {}
        for entry in batches:
            for policy, described in entry.get("models", {}).items():
                known = self.config["models"].setdefault(policy, described)
                known["engines"] += [each for each in described["engines"] if each not in known["engines"]]
            for name, record in entry.get("records", {}).items():
                if name not in records or records[name]["error"]:
                    records[name] = record
            process = entry.get("process", 0)
            generation_s[process] = generation_s.get(process, 0.0) + entry.get("wall_s", 0.0)
        self._generation_s |= generation_s
        retry = self.args.retry_failed
        fresh = {name: each for name, each in records.items() if not (retry and each["error"])}
        self._add({name: record for name, record in fresh.items() if name not in self.records})

    def __exit__(self, _kind, error, _trace) -> None:
        if error is None:
            if self.is_main:
                self._journal.finish()
            else:
                self._journal.close()
            return
        launch = " the same launch, or in one process with" if self.processes.count > 1 else ""
        advice = f"continue with{launch}: {this_command()}"
        if isinstance(error, Interrupted):
            error.advice = advice
        elif not isinstance(error, UserError):  # which says itself what to do
            error.add_note(advice)
        try:
            if self.is_main:
                self._take_in(self._journal.read_others())
                self._write("cancelled" if isinstance(error, Interrupted) else "error")
        except OSError as failure:  # a full disk
            failure.add_note(advice)
            raise
        finally:
            self._journal.close()

    def generate(self) -> None:
        """Answers every row that the journal does not hold, one policy's model in memory at a time.

        Of several processes each answers its share. Process 0 then waits for the others, and answers itself
        what one that has died has left.

        Raises:
            UserError: an engine gave fewer answers than it was asked for.
        """
        left, count = sum(map(len, self._shares)), self.processes.count
        if self._journal.batches:
            print(f"continuing {self._journal.path}: {left} of {len(self.rows)} rows left", flush=True)
        if count > 1:
            own = len(self._shares[0])
            print(f"{count} processes share {left} rows: this one answers {own}", flush=True)
        if self.is_main:
            self._write("running")
        self._answer(self._shares[self.processes.rank])

        others = range(1, count) if self.is_main else ()
        if others:
            print("waiting for the other processes", flush=True)
        for rank in others:
            with self._journal.take_over(rank) as batches:
                self._take_in(batches)
                self._answer(self._shares[rank])

    def _answer(self, rows: Sequence[Row]) -> None:
        """Answers those of the rows that are not answered yet."""
        missing = [row for row in rows if row.key not in self.records]
        done = len(self.in_order())
        self._progress = Progress(
            done + len(missing), done, self.args.max_new_tokens, silent=not self.is_main
        )
        for policy in dict.fromkeys(row.policy for row in missing):
            asked = [row for row in missing if row.policy == policy]
            engine = self.load(policy)
            prompts = self.make_prompts(policy, engine, asked)
            self._describe(policy, engine, prompts)
            for batch in engine.generate(self._begin(asked, prompts), watch=self._watch):
                self._keep(asked, prompts, batch)
            self._check_count(asked)
            del engine  # before the next model is loaded
            gc.collect()
        self._progress.close()

    def ask(self, engine: "Engine", rows: Sequence[Row], progress: Progress) -> list[dict]:
        """Records of further rows of one policy, from its engine where the journal does not hold them.

        For a run whose next question depends on the last answer.
        """
        known = {row.key for row in self.rows}
        self.rows += [row for row in rows if row.key not in known]
        self._progress = progress
        if missing := [row for row in rows if row.key not in self.records]:
            prompts = self.make_prompts(rows[0].policy, engine, missing)
            self._describe(rows[0].policy, engine, prompts)
            for batch in engine.generate(self._begin(missing, prompts), watch=self._watch):
                self._keep(missing, prompts, batch)
            self._check_count(missing)
        return [self.records[row.key] for row in rows]

    def _begin(self, asked: Sequence[Row], prompts: Mapping) -> list["Request"]:
        """What the engine is asked; the clock of its first batch runs from here."""
        self._batch_start = time.monotonic()
        asked_with = [prompts[row.cell] for row in asked]
        return make_requests(asked, asked_with, self.args.seed, sampling_of(self.args))

    def _watch(self, tokens: int, rows: int) -> None:
        """Told by the engine after each token of a batch."""
        raise_if_signalled()
        self._progress.step(tokens, rows)

    def _check_count(self, asked: Sequence[Row]) -> None:
        answered = sum(row.key in self.records for row in asked)
        if answered < len(asked):
            message = f"the engine answered {answered} of {len(asked)} rows; continue with: {this_command()}"
            raise UserError(message, EXIT_UNEXPECTED)

    def load(self, policy: str, engine: str | None = None) -> "Engine":
        """A policy's engine.

        A run that continues decodes in the number format that it began with, whatever the clock says now.

        Args:
            engine: `transformers` or `vllm`; None for what the run is to use.
        """
        from cot.utils.models import load_tokenizer, settle_dtype

        args, device = self.args, self.config["device"]
        source = self.sources[policy] = fetch_model(self.sources[policy])
        begun = self.config["models"].get(policy)
        tokenizer = self._tokenizers.get(policy) or load_tokenizer(source)
        # a template may show the date: that of the run's start, so that a run can continue the next day
        self._formats[policy] = format_of(args, tokenizer, source, started=self._journal.begun)
        choice, lines = settle_dtype(source, begun["dtype"] if begun else args.dtype, device, args.device)
        if not begun:
            print("".join(f"{line}\n" for line in lines), end="", flush=True)
        self._probes[policy] = choice.probe
        dtype = self.processes.agree(f"dtype of {policy}", choice.dtype)  # a probe may differ

        if engine is None:
            engine = self.config["engine"]
            if begun:
                engine = stay_with(begun["engines"][0]["name"], engine, args, source)
        return open_engine(engine, args, source, tokenizer, device, dtype)

    def make_prompts(self, policy: str, engine: "Engine", rows: Sequence[Row]) -> dict[tuple, Prompt]:
        """The prompts of a policy's rows, by cell."""
        room = None
        if engine.context_length is not None:
            room = engine.context_length - self.args.max_new_tokens
        return {
            cell: make_prompt(
                engine.tokenizer,
                row.moment,
                row.memory,
                self.shape,
                room,
                prompt_format=self._formats[policy],
            )
            for cell, row in {row.cell: row for row in rows}.items()
        }

    def _describe(self, policy: str, engine: "Engine", prompts: Mapping[tuple, Prompt]) -> None:
        """Records model and engine once, and settles how many rows are decoded at once.

        A run that continues decodes in batches of the size that it began with: the same batches give the
        same sums. Another engine has a size of its own.
        """
        longest = max(len(prompt.ids) for prompt in prompts.values()) + self.args.max_new_tokens
        described = engine.describe(self.sources[policy], longest)
        this = described.pop("engine")
        begun = self.config["models"].get(policy)
        if begun is None:
            if ignored := ignored_settings(described["generation_defaults"], self.args):
                named = ", ".join(f"{name} {value}" for name, value in ignored.items())
                print(f"note:    {policy}: its generation_config's {named} is ignored", flush=True)
            begun = described | {"dtype_probe": self._probes[policy], "engines": []}
        if this not in begun["engines"]:
            begun = begun | {"engines": [*begun["engines"], this]}
            self.config["models"][policy] = begun
            self._journal.append({"models": {policy: begun}})
        if this["name"] == begun["engines"][0]["name"]:
            engine.batch_size = begun["batch_size"]

    def in_order(self) -> list[dict]:
        """The records that are there, in the order of the rows."""
        return [self.records[row.key] for row in self.rows if row.key in self.records]

    def finish(
        self,
        summarize: Callable[[list[dict]], dict],
        measure: Callable[[list[dict]], None] = lambda records: None,
    ) -> tuple[Path, dict]:
        """Measures the answers, writes all result files; the summary's path and its content.

        Args:
            summarize: from records to a file's `summary`; called for each temperature and for all.
            measure: fills in, in place, what the scorers do not measure.
        """
        self._finish_start = time.monotonic()
        records = self.in_order()
        if self.scorers:
            self.scorers.add_metrics(records)
        measure(records)
        raise_if_signalled()

        failed = sum(record["error"] is not None for record in records)
        status = "success"
        if failed > self.args.fail_on_error * len(records):
            status, self.exit_code = "error", EXIT_SAMPLES
            print(f"error: {failed} of {len(records)} answers failed; see `error` in them", file=sys.stderr)
        print("\n".join(look_at(records, self.args.max_new_tokens)), flush=True)
        return self._write(status, summarize)

    def _identify(self) -> dict[str, str]:
        """By name, a hash of each part of what decides the records."""
        args = self.args
        cells = {row.cell: row for row in self.rows}.values()
        kind, _, _ = self.config["device"].partition(":")  # of device; each process has its own
        # not the engine: the same command continues a run, whatever generates here
        decoding = [args.max_new_tokens, args.batch_size, args.seed, kind, args.dtype, args.max_model_len]
        decoding += [sampling_of(args), loading_of(args)]
        parts = {
            "code": code_version(),
            "libraries": [SCHEMA_VERSION, self.environment["versions"]],
            "decoding": decoding,
            "prompt": self.shape,
            "template": [args.thinking, args.chat_template_kwargs, args.think_end, args.system_prompt],
            "questions": [(row.index, row.moment) for row in cells],
            "memory": [row.memory for row in cells],
            "profiles": list(self.profiles.values()),
            **self._further_identity,
        }
        if not self._growing:
            parts["rows"] = [row.key for row in self.rows]
            parts["models"] = [(name, source.revision) for name, source in self.sources.items()]
        # dataclasses write all their fields, in a fifth of the time that JSON takes
        return {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()}

    def _say_what_changed(self, earlier: Mapping[str, dict], header: dict) -> None:
        """One line for each run of the same flags that this one does not continue."""
        for name, other in earlier.items():
            parts = other.get("parts", {})
            changed = [part for part, value in header["parts"].items() if parts.get(part) != value]
            if changed and other.get("flags") == header["flags"]:
                print(f"not continuing {name}: {', '.join(changed)} changed", flush=True)

    def _keep(self, asked: Sequence[Row], prompts: Mapping, batch: Sequence[tuple]) -> None:
        """Records a batch: first in the journal, then in the result files where they are due."""
        wall_s, records = time.monotonic() - self._batch_start, {}
        for place, completion in batch:
            row = asked[place]
            profile = self.profiles.get(row.moment.student_id)
            records[row.key] = make_record(row, prompts[row.cell], completion, profile)
        with hold_signals():  # what the journal holds is counted, too
            process = self.processes.rank
            self._journal.append({"process": process, "wall_s": wall_s, "records": records})
            self._add(records)
            self._generation_s[process] = self._generation_s.get(process, 0.0) + wall_s
        if self.is_main and self._files.are_due:
            self._write("running")
        self._progress.update(len(batch), self._note(asked[0].policy))
        self._batch_start = time.monotonic()
        if self.is_main and self.scorers:  # the next batch's time, as its engine may be at it
            self.scorers.embed(records.values())
            self._metrics_s += time.monotonic() - self._batch_start

    def _add(self, records: Mapping[str, dict]) -> None:
        """Takes in records, and counts for the progress line which are right."""
        self.records |= records
        self._lines |= {name: encode_record(record) for name, record in records.items()}
        for record in records.values():
            right, answers = self._counts.get(record["policy"], (0, 0))
            self._counts[record["policy"]] = right + bool(record["correct"]), answers + 1

    def _note(self, policy: str) -> str:
        right, answers = self._counts[policy]
        name = f"{policy} " if len(self.sources) > 1 else ""
        return f"{name}accuracy {right / answers:.1%}"

    def _write(
        self,
        status: str,
        summarize: Callable[[list[dict]], dict] | None = None,
    ) -> tuple[Path, dict]:
        """All files as they stand; what takes its time, metrics and statistics, only with `summarize`."""
        by_temperature: dict[float, list[str]] = {temperature: [] for temperature in self.args.temperatures}
        for row in self.rows:
            if row.key in self.records:
                by_temperature[row.temperature].append(row.key)

        def describe(records: list[dict]) -> dict:
            return {"rows_done": len(records), **(summarize(records) if summarize else {})}

        summaries: dict[float | None, dict] = {
            temperature: describe([self.records[key] for key in keys])
            for temperature, keys in by_temperature.items()
        }
        only = len(by_temperature) == 1
        summaries[None] = summaries[self.args.temperatures[0]] if only else describe(self.in_order())
        timing = self._timing(self.in_order()) if summarize else {}
        shown: Mapping[str, Any] = self.records if summarize else self._lines
        return self._files.write(
            status,
            results={
                temperature: [shown[key] for key in keys] for temperature, keys in by_temperature.items()
            },
            summaries={where: summary | {"timing": timing} for where, summary in summaries.items()},
        )

    def _timing(self, records: Sequence[dict]) -> dict:
        """Seconds and tokens per second, earlier attempts' generation included, of the slowest process."""
        generation_s = max(self._generation_s.values(), default=0.0)
        tokens = sum(record["output_tokens"] or 0 for record in records)
        return {
            "generation_s": generation_s,
            "metrics_s": self._metrics_s + time.monotonic() - self._finish_start,
            "wall_s": time.monotonic() - self._start,
            "tokens_per_second": tokens / generation_s if generation_s else None,
        }

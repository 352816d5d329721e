"""What happens in the demonstration, on a deployment that is up: jobs of both institutions, questions, results, bills."""

from __future__ import annotations

import inspect
import json
import math
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

from protos.suanli.v1 import jobs_pb2, statements_pb2, usage_pb2
from suanli.client import Client, Job
from suanli.errors import FailedPrecondition, InvalidArgument, SuanliError
from suanli.info import JobInfo
from suanli.local.control import Control
from suanli.local.demo import tenants
from suanli.local.demo.findings import Analysis, Answer, Bill, Charged, Findings, JobRun, Tenant
from suanli.local.demo.published import SHOWN
from suanli.local.demo.tenants import MINISTRY, TENANTS, UNIVERSITY
from suanli.reports import page

TASKS = 6
JOBS_TIMEOUT_S = 240.0
RELIABILITY_WANTED = 0.8
_POLL_S = 0.25
_POWER = Path(__file__).with_name("jobs") / "power.py"

Say = Callable[[str], None]


class Scenario:
    """One run. ``run`` fills the findings, also with what went wrong, and leaves results in ``folder``."""

    def __init__(self, address: str, ca: str, key_file: Path, folder: Path, findings: Findings, say: Say) -> None:
        self._address = address
        self._ca = ca
        self._key_file = key_file
        self._folder = folder
        self._findings = findings
        self._say = say
        self._jobs: dict[str, tuple[Tenant, Job]] = {}
        self._algorithms: dict[str, str] = {}

    def run(self) -> None:
        """Everything, in order. Raises SuanliError or LocalError when it cannot go on."""
        with ExitStack() as stack:
            control = stack.enter_context(Control(self._address, self._key_file, self._ca))
            clients = {
                tenant: stack.enter_context(Client(self._address, tenants.create(control, tenant), ca=self._ca))
                for tenant in TENANTS
            }
            tenants.put_prices(control)
            self._say(f"Two institutions: {UNIVERSITY.title} and {MINISTRY.title}.")
            self._submit(clients[UNIVERSITY], clients[MINISTRY])
            self._follow()
            self._collect()
            self._function(clients[UNIVERSITY])
            self._record_runs()
            self._bills(control)
            self._statements(control)
            self._verify(control)

    # --- jobs -----------------------------------------------------------------------------------------------------

    def _submit(self, university: Client, ministry: Client) -> None:
        training = self._catalogue(university, UNIVERSITY, "response-model", "train-network")
        self._catalogue(ministry, MINISTRY, "school-effects", "star98")
        self._add(
            MINISTRY,
            "power",
            ministry.submit(
                name="power",
                project=MINISTRY.project,
                script=_POWER.name,
                folder=str(_POWER.parent),
                array=TASKS,
                cpus=1,
                memory="512MiB",
                only_regions=[MINISTRY.region],
            ),
        )
        # The gang holds all of the region, so that what comes now has to wait, and can be asked why.
        while training.status().state in {"HELD", "QUEUED"}:
            time.sleep(_POLL_S)
        waiting = self._catalogue(university, UNIVERSITY, "irt", "lsat6")
        explained = waiting.why()
        self._findings.why = Answer(
            f"The university's job “lsat6”, while its training job holds the region {UNIVERSITY.region}.",
            explained.code,
            explained.message,
            tuple(f"{pool.pool}: {pool.message}" for pool in explained.pools),
        )
        self._say(f"Why does lsat6 wait? {explained.message}")
        self._refusal(ministry)

    def _refusal(self, client: Client) -> None:
        try:
            client.submit(command=["true"], project=MINISTRY.project, cpus=512, memory="64GiB")
        except (FailedPrecondition, InvalidArgument) as error:
            self._findings.refused = Answer("A job of 512 CPUs and 64 GiB.", error.reason, error.message)
            self._say(f"Refused at once: {error.message}")
        except SuanliError as error:
            self._findings.problems.append(f"A job that no pool can hold was refused in another way: {error}")
        else:
            self._findings.problems.append("A job that no pool can ever hold was accepted.")

    def _catalogue(self, client: Client, tenant: Tenant, algorithm: str, name: str) -> Job:
        job = client.submit(name=name, project=tenant.project, algorithm=algorithm, only_regions=[tenant.region])
        self._algorithms[job.id] = algorithm
        return self._add(tenant, name, job)

    def _add(self, tenant: Tenant, name: str, job: Job) -> Job:
        self._jobs[job.id] = (tenant, job)
        self._say(f"{tenant.title} submits {name}.")
        return job

    def _follow(self) -> None:
        """Say how the jobs get on until all have ended."""
        deadline = time.monotonic() + JOBS_TIMEOUT_S
        told: dict[str, str] = {}
        while time.monotonic() < deadline:
            ended = 0
            for job_id, (_, job) in self._jobs.items():
                info = job.status()
                ended += info.ended
                if told.get(job_id) != (text := _progress(info)):
                    told[job_id] = text
                    self._say(f"{info.name}: {text}")
            if ended == len(self._jobs):
                return
            time.sleep(_POLL_S)
        for _, job in self._jobs.values():
            job.cancel("The demonstration's time is over.")
        self._findings.problems.append(f"Not all jobs had ended after {JOBS_TIMEOUT_S:.0f} seconds.")

    # --- results --------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        for job_id, (tenant, job) in self._jobs.items():
            info = job.status()
            if not info.succeeded:
                self._failed(info, job)
            elif job_id in self._algorithms:
                self._analysis(tenant, job, info)
            else:
                self._power(job)
        order = list(SHOWN)
        self._findings.analyses.sort(key=lambda analysis: order.index(analysis.folder.name))

    def _failed(self, info: JobInfo, job: Job) -> None:
        lines = []
        try:
            lines = [line.text for line in job.logs(stream="stderr")][-5:]
        except SuanliError as error:
            lines = [str(error)]
        self._findings.problems.append(" / ".join([info.sentence, *lines]))

    def _analysis(self, tenant: Tenant, job: Job, info: JobInfo) -> None:
        algorithm = self._algorithms[job.id]
        folder = self._folder / algorithm
        job.fetch(folder)
        results = json.loads((folder / "results.json").read_text("utf-8"))
        shown = SHOWN[algorithm]
        figures = shown.figures(results)
        for figure in figures:
            if figure.agrees is False:
                text = f"{shown.title}: {figure.label} is {figure.value}, published {figure.published}."
                self._findings.problems.append(text)
        self._findings.analyses.append(
            Analysis(
                job.id,
                shown.title,
                shown.question,
                tenant.id,
                info.region,
                results["summary"],
                figures,
                shown.source,
                tuple(results["warnings"]),
                folder,
            )
        )

    def _power(self, array: Job) -> None:
        for number, task in enumerate(array.tasks()):
            folder = self._folder / "power" / str(number)
            task.fetch(folder)
            point = json.loads((folder / "power.json").read_text("utf-8"))
            self._findings.power.append((point["pupils"], point["power"]))

    def _function(self, client: Client) -> None:
        """Let a function go on from a result: how many questions would make a reliable test?"""
        folder = next((a.folder for a in self._findings.analyses if a.folder.name == "irt"), None)
        if folder is None:
            return
        results = json.loads((folder / "results.json").read_text("utf-8"))
        alpha, items = results["classical"]["alpha"], len(results["data"]["items"])
        function = _questions_needed()
        self._say("A Python function as a job: how many such questions would a reliable test need?")
        job = client.submit_function(
            function,
            (alpha, items, RELIABILITY_WANTED),
            name="questions-needed",
            project=UNIVERSITY.project,
            only_regions=[UNIVERSITY.region],
            memory="512MiB",
        )
        self._jobs[job.id] = (UNIVERSITY, job)
        value = job.result(timeout=JOBS_TIMEOUT_S)
        call = f"client.run(questions_needed, {alpha:.3f}, {items}, {RELIABILITY_WANTED})  # {value}"
        source = textwrap.dedent(inspect.getsource(function)).rstrip()
        self._findings.function = (f"{source}\n\n{call}", f"{value} questions")
        self._say(f"It returned {value}.")

    # --- what was held, and the bill ------------------------------------------------------------------------------

    def _record_runs(self) -> None:
        for tenant, job in self._jobs.values():
            info = job.status()
            handles = job.tasks() if info.proto.HasField("array") else [job]
            runs = [_run_of(tenant, handle.status()) for handle in handles]
            self._findings.jobs += runs
            self._findings.problems += [
                f"{run.name} ended as {run.state}. {run.message}".strip() for run in runs if run.state != "SUCCEEDED"
            ]

    def _bills(self, control: Control) -> None:
        dimensions = [usage_pb2.USAGE_DIMENSION_INSTITUTION, usage_pb2.USAGE_DIMENSION_REGION]
        usage = control.call(control.usage.GetUsage, usage_pb2.GetUsageRequest(group_by=dimensions))
        bills = [
            Bill(row.key[0], row.key[1], int(row.cpu_milli_ms), int(row.memory_mib_ms), row.attempts)
            for row in usage.rows
        ]
        sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        request = usage_pb2.ListLedgerRequest(page_size=1000)
        while True:
            page = control.call(control.usage.ListLedger, request)
            for record in page.records:
                held_ms = record.end_ms - record.start_ms
                together = sums[record.institution, record.region]
                together[0] += record.cpu_milli * held_ms
                together[1] += record.memory_mib * held_ms
                self._findings.ledger_records += 1
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        billed = {(bill.institution, bill.region): [bill.cpu_milli_ms, bill.memory_mib_ms] for bill in bills}
        self._findings.bills = bills
        self._findings.ledger_agrees = billed == dict(sums) and bool(bills)
        if not self._findings.ledger_agrees:
            self._findings.problems.append("The bills are not the sums of the ledger's records.")

    def _statements(self, control: Control) -> None:
        """Of the months in which something was used: at the turn of a month there are two."""
        dimensions = [usage_pb2.USAGE_DIMENSION_INSTITUTION, usage_pb2.USAGE_DIMENSION_PERIOD]
        usage = control.call(control.usage.GetUsage, usage_pb2.GetUsageRequest(group_by=dimensions))
        for row in usage.rows:
            request = statements_pb2.GetStatementRequest(institution=row.key[0], month=row.key[1])
            statement = control.call(control.usage.GetStatement, request)
            file = f"statement-{statement.number}.html"
            (self._folder / file).write_text(page.html(statement), encoding="utf-8")
            total = f"{Decimal(statement.total_minor).scaleb(-statement.currency_digits):f} {statement.currency}"
            self._findings.statements.append(Charged(statement.institution, statement.number, total, file))

    def _verify(self, control: Control) -> None:
        last = control.last(control.usage.VerifyLedger, usage_pb2.VerifyLedgerRequest())
        self._findings.problems += [fault.message for fault in last.faults]
        self._findings.verified_records = last.checked if last.done and not last.faults else 0
        self._say(f"Verified {last.checked} records of the ledger: {len(last.faults)} faults.")


def _questions_needed() -> Callable[[float, int, float], int]:
    # Made here and not at the top, so that its code travels with the job rather than its address.
    def questions_needed(alpha: float, questions: int, wanted: float) -> int:
        """How long the test must be (Spearman, Brown)."""
        here = alpha / (1 - alpha)
        there = wanted / (1 - wanted)
        return math.ceil(questions * there / here)

    return questions_needed


def _progress(info: JobInfo) -> str:
    array: Any = info.proto.array
    if info.proto.HasField("array") and not info.ended:
        return f"{array.succeeded} of {array.size} tasks done"
    if info.state in {"STARTING", "RUNNING"}:
        replicas = info.proto.spec.replicas
        gang = f", {replicas} replicas at once" if replicas > 1 else ""
        return f"runs in {info.region}{gang}"
    if info.ended and info.end_time_ms:
        return f"{info.state.lower()} {(info.end_time_ms - info.submit_time_ms) / 1000:.1f} s after it was submitted"
    return info.state.lower()


def _run_of(tenant: Tenant, info: JobInfo) -> JobRun:
    job = info.proto
    attempt = job.attempts[-1] if job.attempts else jobs_pb2.Attempt()
    name = f"{info.name}[{job.array_index}]" if job.array_id else info.name
    return JobRun(
        id=info.id,
        name=name,
        institution=tenant.id,
        state=info.state,
        message=info.message,
        region=info.region,
        pool=info.pool,
        replicas=max(1, job.spec.replicas),
        cpu_milli=job.spec.resources.cpu_milli,
        memory_mib=job.spec.resources.memory_mib,
        submit_ms=info.submit_time_ms,
        grant_ms=attempt.grant_time_ms,
        start_ms=attempt.start_time_ms,
        end_ms=attempt.end_time_ms,
        nodes=tuple(replica.node_name for replica in attempt.replicas),
        cpu_used_ms=attempt.cpu_used_ms,
        peak_memory_mib=attempt.peak_memory_mib,
    )

"""`expunge run`: unlearn, audit, report. Each phase leaves its result whole, so a killed run goes on where it was."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from expunge import catalog
from expunge.artifact.evidence import Evidence, conversation
from expunge.artifact.model import ModelHandle, merged
from expunge.artifact.opening import MANIFEST, now, open_handle, read_manifest, save_artifact, versions
from expunge.artifact.store import Lines, cache_dir, spoken_io, write_json, write_text
from expunge.audits import engine
from expunge.audits.verdict import verdict
from expunge.data.request import ForgetRequest, write_rows
from expunge.data.text import windows
from expunge.methods.distributed import wait, world
from expunge.methods.gradient import Loop, train
from expunge.methods.terms import Term, bind, settings
from expunge.metrics.conventions import conventions
from expunge.pipeline import gates, recipes
from expunge.pipeline.resolve import Sources, Tell, check_vocabulary, resolve
from expunge.records import (
    CONTROL_COMMAND,
    AbsentError,
    AuditResult,
    Manifest,
    Parent,
    Row,
    RunConfig,
    Served,
    UsageError,
    Verdict,
    digest,
)
from expunge.report import card, flat, page
from expunge.tasks.causal_lm import CausalLM, width

LOOK_ONLY = {"out", "overwrite", "gate", "show_forget_text", "batch_audit", "micro_batch", "save_every"}
"""Settings that change no number; a run may be resumed with others."""


class Outcome(NamedTuple):
    """What a run came to."""

    run: Path
    results: list[AuditResult]
    verdict: Verdict | None
    gates: list[gates.Outcome]


def key(config: RunConfig) -> str:
    """Content key of the settings that decide a run's numbers."""
    resolved = settings(catalog.find_method(config.method), config.terms)
    return digest(config.model_dump(mode="json", exclude={*LOOK_ONLY, "terms"}), resolved)


def run_directory(config: RunConfig) -> Path:
    """The directory that a configuration runs in, its own unless --out names one."""
    if config.out:
        return Path(config.out)
    what = Path(config.forget).stem if config.forget else (config.split if config.tofu else "pocket")
    method = Path(config.method.split(":")[0]).stem
    return Path("runs") / f"{method}-{what}-{key(config)[:8]}"


def check(config: RunConfig) -> None:
    """Refuses, before anything is loaded, what cannot run: names, hyper-parameters, gates, suites."""
    settings(catalog.find_method(config.method), config.terms)
    engine.suite(config.suite)
    for text in config.gate:
        gates.parse(text)
    conventions(config.compat)


def start(config: RunConfig) -> Path:
    """Makes or takes up the run directory; UsageError when it holds a run with other settings."""
    check(config)
    run = run_directory(config)
    with spoken_io(run):
        run.mkdir(parents=True, exist_ok=True)
    stated = run / "config.yaml"
    if stated.exists() and not config.overwrite:
        before = recipes.configure(recipes.read(stated), {})
        if key(before) != key(config):
            old, new = before.model_dump(), config.model_dump()
            differing = ", ".join(k for k in new if old[k] != new[k] and k not in LOOK_ONLY)
            raise UsageError(
                f"{run} holds a run with other settings ({differing}). Choose another --out, or start over with "
                "--overwrite."
            )
    elif config.overwrite and world().main:
        _clear(run)
    wait()
    write_text(stated, recipes.as_yaml(config))
    return run


@contextmanager
def _unbegun(run: Path) -> Iterator[None]:
    """Takes back the directory of a run that is refused before its first step: the mended command may have it."""
    try:
        yield
    except (UsageError, AbsentError):
        begun = any((run / name).exists() for name in ("artifact", "checkpoints", "results.jsonl"))
        if world().main and not begun and all(e["kind"] != "step" for e in Lines(run / "events.jsonl")):
            for name in ("config.yaml", "events.jsonl"):
                (run / name).unlink(missing_ok=True)
            with suppress(OSError):  # not ours alone
                run.rmdir()
        raise


def _clear(run: Path) -> None:
    import shutil

    known = ("config.yaml", "artifact", "checkpoints", "requests", "events.jsonl", "results.jsonl", "results.json",
             "results.csv", "report.html", "examples.jsonl")  # fmt: skip
    for path in (run / name for name in known):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def run(config: RunConfig, tell: Tell, *, audits: bool = True) -> Outcome:
    """The main job. Raises UsageError, AbsentError or BrokenRunError; what was finished stays."""
    directory = start(config)
    phases = Phases(directory)
    with _unbegun(directory):
        with phases.timed("prepare"):
            sources = resolve(config, tell)
            if sources.control:
                check_vocabulary(sources.original, sources.control, config.template)
        with phases.timed("unlearn"):
            unlearn(config, sources, directory, tell)
    if not world().main:
        return Outcome(directory, [], None, [])
    if not audits:
        return Outcome(directory, [], None, [])
    with phases.timed("audit"):
        results = audit(config, sources, directory, tell)
    return finish(config, sources, directory, results, tell)


class Phases:
    """Seconds per phase, kept with the events so that a resumed run adds up."""

    def __init__(self, run: Path) -> None:
        self.events = Lines(run / "events.jsonl")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Logs how long the block took."""
        began = time.perf_counter()
        yield
        if world().main:
            seconds = time.perf_counter() - began
            self.events.append({"time": time.time(), "kind": "phase", "phase": name, "seconds": seconds})


def unlearn(config: RunConfig, sources: Sources, run: Path, tell: Tell) -> Manifest:
    """Trains the unlearned model, unless the run has it already, and saves it as the run's artifact."""
    folder = run / "artifact"
    if (folder / MANIFEST).exists():
        finished = read_manifest(folder)
        _same_rows(run, finished.requests[-1].fingerprints if finished.requests else {}, sources.request)
        return finished
    if world().main:
        _begin(run, sources.request)
    wait()
    tell("opening the model", 0.0, sources.parent)
    parent = open_handle(sources.parent, template=config.template)
    model = merged(parent.load())
    task = CausalLM(parent.codec, next(model.parameters()).device)
    method = catalog.find_method(config.method)
    request = prepared(config, method, parent, sources.request)
    terms = bind(method, config.terms, width=width(model), seed=config.seed)
    model = with_adapter(config, model, task, terms)

    def report(step: int, steps: int, losses: dict[str, float]) -> None:
        tell("unlearning", step / steps, "  ".join(f"{name} {value:.3g}" for name, value in losses.items()))

    train(Loop(task, model, request, terms, config, run, report))
    if not world().main:
        wait()
        return parent.manifest
    served = (*sources.served, _serve(run, sources))
    _copy_earlier(run, sources)
    manifest = save_artifact(
        folder, model, parent.codec.tokenizer, parent=Parent(path=str(Path(sources.parent).resolve() if
        Path(sources.parent).exists() else sources.parent), digest=parent.manifest.digest), requests=served,
        method=config.method, intention=method.intention, terms=settings(method, config.terms), seed=config.seed,
        template=parent.codec.template, created=now(), notes={"citation": method.citation},
    )  # fmt: skip
    wait()
    return manifest


TRAINED = ("forget", "retain")


def _begin(run: Path, request: ForgetRequest) -> None:
    """Notes which rows the checkpoints are made from, or holds a resumed run to them."""
    noted = run / "checkpoints" / "rows.json"
    if noted.exists():
        _same_rows(run, json.loads(noted.read_text(encoding="utf-8")), request)
    else:
        write_json(noted, {name: request.fingerprints[name] for name in TRAINED if name in request.fingerprints})


def _same_rows(run: Path, before: Mapping[str, str], request: ForgetRequest) -> None:
    """UsageError when rows have changed since: an old model must not pass for one that forgot the new rows."""
    ours = request.fingerprints
    changed = [name for name in TRAINED if name in before and before[name] != ours.get(name)]
    if changed:
        raise UsageError(
            f"the {' and '.join(changed)} rows are not those that {run} was made from. Choose another --out, or start "
            "over with --overwrite."
        )


def prepared(
    config: RunConfig, method: catalog.Method, parent: ModelHandle, request: ForgetRequest
) -> ForgetRequest:
    """The request as the objective wants it: long texts in windows, alternatives made by a `prepare` companion."""

    def fit(rows: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(piece for row in rows for piece in windows(parent.codec, row))

    request = request.replace(forget=fit(request.forget), retain=fit(request.retain))
    for module in {id(m): m for m in catalog.modules(method)}.values():
        if hasattr(module, "prepare"):
            request = module.prepare(parent, request, seed=config.seed)
    return request


def with_adapter(config: RunConfig, model: Any, task: CausalLM, terms: list[Term]) -> Any:
    """The model with a LoRA adapter on its linear layers (or those the objective trains); as it is without."""
    if config.adapter == "none":
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise AbsentError("--adapter lora needs the package peft: pip install 'expunge[lora]'") from None
    depth = task.depth(model)
    names = {
        n.removesuffix(".weight") for t in terms if (b := t.blocks(depth)) for n in task.trainable(model, b)
    }
    torch.manual_seed(config.seed)
    targets: Any = sorted(names) or "all-linear"
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=targets, task_type="CAUSAL_LM"
        ),
    )


def _serve(run: Path, sources: Sources) -> Served:
    """Keeps this request's forget rows for later audits, and its fingerprints."""
    number, request = len(sources.served) + 1, sources.request
    name = (
        request.name if request.name not in {s.name for s in sources.served} else f"{request.name}-{number}"
    )
    file = f"requests/{number:03d}-{name}.jsonl"
    write_text(run / file, write_rows(request.forget))
    return Served(
        name=name,
        reason=request.reason,
        rows=len(request.forget),
        fingerprints=request.fingerprints,
        file=file,
    )


def _copy_earlier(run: Path, sources: Sources) -> None:
    files = {s.name: s.file for s in sources.served if s.file}
    for name, rows in sources.earlier.items():
        write_text(run / str(files[name]), write_rows(rows))


def gathered(
    config: RunConfig, sources: Sources, target: str, surface: str, tell: Tell
) -> tuple[engine.Models, dict[str, ModelHandle]]:
    """Evidence of the models that an audit compares, shared with every other run by content."""
    store = cache_dir() / "results"
    where = {"original": sources.original, "unlearned": target}
    if sources.control:
        where["control"] = sources.control.path
    if sources.control_2:
        where["control_2"] = sources.control_2
    handles = {
        n: open_handle(p, template=config.template, batch_size=config.batch_audit) for n, p in where.items()
    }
    if surface == "held":
        handles["unlearned"] = handles["unlearned"].held

    def evidence(name: str) -> Evidence:
        def progress(done: int, total: int) -> None:
            tell(f"auditing the {name.replace('_', ' ')}", done / total, f"{done} of {total} rows")

        return Evidence(handles[name], store, max_tokens=config.max_new_tokens, progress=progress)

    matched = sources.control.matched if sources.control else ()
    return engine.Models(**{name: evidence(name) for name in handles}, matched=matched), handles


def audit(
    config: RunConfig, sources: Sources, run: Path, tell: Tell, *, target: str = "", surface: str = "served"
) -> list[AuditResult]:
    """All results of the run's suite, appended to results.jsonl as they finish.

    target: the model to audit, the run's own by default. surface: `held` takes an adapter off first.
    """
    models, handles = gathered(config, sources, target or str(run), surface, tell)
    fit = handles["original"].codec
    request = sources.request
    named = {name: tuple(p for row in rows for p in (windows(fit, row) if isinstance(row, Row) else [row]))
             for name, rows in request.splits.items()}  # fmt: skip
    request = request.replace(
        forget=named.pop("forget"), retain=named.pop("retain"), heldout=named.pop("heldout", ()), others=named
    )
    earlier = {name: tuple(p for row in rows for p in windows(fit, row)) for name, rows in sources.earlier.items()}
    splits = engine.splits_of(request, config.seed, earlier)
    job = engine.Audit(
        models, splits, conventions(config.compat), Lines(run / "results.jsonl"), unseen=unseen(sources, splits),
        surface=surface,
    )  # fmt: skip
    results = job.run(engine.suite(config.suite))
    write_text(run / "examples.jsonl", examples(job))
    return results


def unseen(sources: Sources, splits: dict[str, Any]) -> dict[str, str]:
    """Splits on which the control may not stand as one that never knew, with the reason."""
    control = sources.control
    if control is None:
        return {}
    out = {}
    for split in (s for s in splits.values() if s.forgets):
        # Whole rows, as the control's own request held them: what is audited may be windows of them.
        _, before, name = split.name.removesuffix("_paraphrased").partition("forget:")
        rows = sources.earlier[name] if before else sources.request.forget
        if not control.knows_none_of(rows):
            out[split.name] = (
                f"the control {control.path} was not made without these rows. Make one that never saw them: "
                f"{CONTROL_COMMAND}, then pass --control CONTROL"
            )
    return out


EXAMPLES = {"forget": None, "retain": 20}
SHOWN = ("rouge_l_recall", "probability", "extraction_strength")


def examples(job: engine.Audit) -> str:
    """Rows with every model's answer and scores, as JSON lines, for the report's side-by-side view."""
    lines = []
    for split in (
        s for s in job.splits.values() if s.name.split(":")[0] in EXAMPLES and "_paraphrased" not in s.name
    ):
        seen = [
            m
            for m, v in job.views.items()
            if split.name in v.splits and v.splits[split.name].rows == split.rows
        ]
        answers = {m: job.views[m].offer(split.name, "answers") for m in seen}
        scores = {m: {a: job.per_row(a, split.name, m) for a in SHOWN} for m in seen}
        for i, row in enumerate(split.rows[: EXAMPLES[split.name.split(":")[0]]]):
            asked, reference = conversation(row)
            lines.append({
                "split": split.name, "id": row.id, "entity": row.entity, "question": asked[-1]["content"],
                "reference": reference, "answers": {m: answers[m][i] for m in seen},
                "scores": {m: {a: values[i] for a, values in scores[m].items()} for m in seen},
            })  # fmt: skip
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def finish(
    config: RunConfig,
    sources: Sources,
    run: Path,
    results: list[AuditResult],
    tell: Tell,
    *,
    target: Path | None = None,
) -> Outcome:
    """Writes results.json, results.csv, the model card and the report; judges the gates."""
    manifest = open_handle(target or run).manifest
    judged = verdict(results, manifest.intention)
    outcomes = gates.judge([gates.parse(text) for text in config.gate], results)
    tell("writing the report", 1.0, "")
    write_json(run / "results.json", {
        "schema": 1, "config": config.model_dump(mode="json"), "manifest": manifest.model_dump(mode="json"),
        "control": control_note(sources), "results": [r.model_dump(mode="json") for r in results],
        "verdict": judged.model_dump(mode="json"), "cost": cost(run), "machine": machine(), "versions": versions(),
        "gates": [{"gate": o.gate.text, "value": o.value, "holds": o.holds} for o in outcomes],
        "history": history(results, sources), "created": now(),
    })  # fmt: skip
    flat.write_csv(run)
    if (run / "artifact").exists():
        card.write_card(run)
    page.write_report(run)
    return Outcome(run, results, judged, outcomes)


def control_note(sources: Sources) -> dict[str, Any] | None:
    """What the report says about the control."""
    control = sources.control
    return (
        None
        if control is None
        else {"kind": control.kind, "path": control.path, "matched": len(control.matched)}
    )


def history(results: list[AuditResult], sources: Sources) -> list[dict[str, Any]]:
    """Earlier requests, audited again; those whose rows were purged can only be named."""
    out: list[dict[str, Any]] = []
    for served in sources.served:
        mine = [r for r in results if r.split == f"forget:{served.name}" and r.audit in SHOWN]
        out.append({
            "name": served.name, "rows": served.rows, "reason": served.reason, "purged": served.name in sources.purged,
            "results": [r.model_dump(mode="json") for r in mine],
        })  # fmt: skip
    return out


def cost(run: Path) -> dict[str, Any]:
    """Seconds per phase and step, peak memory."""
    events = list(Lines(run / "events.jsonl"))
    phases: dict[str, float] = {}
    for event in (e for e in events if e["kind"] == "phase"):
        phases[event["phase"]] = phases.get(event["phase"], 0.0) + event["seconds"]
    steps = [e for e in events if e["kind"] == "step"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "phases": phases,
        "steps": len(steps),
        "step_seconds": sum(e["seconds"] for e in steps),
        "peak_memory_mb": peak,
    }


def machine() -> dict[str, Any]:
    """What the run ran on."""
    import os
    import platform

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or "CPU", "cores": os.cpu_count(), "threads": torch.get_num_threads(), "processes": world().size,
        "platform": platform.platform(), "python": platform.python_version(),
    }  # fmt: skip


def read_earlier(run: Path) -> RunConfig:
    """The configuration of an existing run; UsageError when the directory is none."""
    if not (run / "config.yaml").exists():
        raise UsageError(f"{run} is not a run directory (it has no config.yaml).")
    return recipes.configure(recipes.read(run / "config.yaml"), {})

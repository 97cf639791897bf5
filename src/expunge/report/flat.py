"""results.csv: one row per result, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from expunge.artifact.store import write_text
from expunge.records import AuditResult
from expunge.report.source import read_run

COLUMNS = tuple(name for name in AuditResult.model_fields)


def write_csv(run: Path) -> Path:
    """Write `results.csv` into a run directory: the fields of `AuditResult`, `details` as JSON of its plain
    numbers.

    Forget text never gets here, whatever the reason of the request: what audits keep per row stays in
    results.json.
    Raises what `read_run` raises.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in read_run(Path(run)).results:
        writer.writerow([_field(result, name) for name in COLUMNS])
    return write_text(Path(run) / "results.csv", out.getvalue())


def _field(result: AuditResult, name: str) -> str | int | float | None:
    value = getattr(result, name)
    if name == "details":
        return json.dumps(
            {k: v for k, v in value.items() if isinstance(v, bool | int | float)}, sort_keys=True
        )
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"  # a spreadsheet would run it as a formula
    return value  # type: ignore[no-any-return]

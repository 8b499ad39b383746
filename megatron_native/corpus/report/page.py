"""The report as one HTML file: nothing is loaded from outside, everything is there without JavaScript.

A policy in the page itself forbids every script and style but its own, by their hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from megatron_native.corpus.report.elements import (
    Html,
    document,
    isolated,
    note,
    number,
    section,
    share,
    size,
    table,
    tag,
    tile,
)
from megatron_native.corpus.report.figures import Report, Stage, Totals
from megatron_native.corpus.report.flow import flow
from megatron_native.corpus.report.sections import (
    budget_section,
    duplicates_section,
    fertility_section,
    languages_section,
    lengths_section,
    script_section,
    sources_section,
)
from megatron_native.corpus.report.stages import COPIES
from megatron_native.corpus.report.style import SCRIPT, STYLE
from megatron_native.corpus.report.texts import settings_section, texts_section


def page(report: Report) -> str:
    """The whole HTML document."""
    names = short_names([stage.name for stage in report.stages])
    sections = [
        ("account", "Account", account_section(report, names)),
        ("languages", "Languages", languages_section(report)),
        ("lengths", "Lengths", lengths_section(report)),
        ("script", "Arabic writing", script_section(report)),
        ("tokens", "Tokens", fertility_section(report, names)),
        ("budget", "Budget", budget_section(report, names)),
        ("sources", "Sources", sources_section(report, names)),
        ("duplicates", "Duplicates", duplicates_section(report, names)),
        ("texts", "Texts", texts_section(report, names)),
        ("settings", "Settings", settings_section(report, names)),
    ]
    present = [(anchor, title, content) for anchor, title, content in sections if content]
    links = [tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in present]
    return document(
        f"Arabic data report: {_headline(report)}",
        STYLE,
        SCRIPT,
        tag("a", "to the figures", href="#account", class_="skip"),
        _header(report),
        tag("nav", tag("ul", links), aria_label="parts of the report"),
        tag("main", [content for _, _, content in present]),
        tag(
            "footer",
            "Made by ",
            tag("code", "megatron-native report"),
            " from the manifests and files of the stages named above.",
        ),
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest ends of paths that tell them apart."""
    found = {}
    for name in names:
        parts = name.rstrip("/").split("/")
        for count in range(1, len(parts) + 1):
            short = "/".join(parts[-count:])
            if sum(1 for other in names if f"/{other.rstrip('/')}".endswith(f"/{short}")) == 1:
                break
        found[name] = short
    return found


def _headline(report: Report) -> str:
    totals = report.totals
    if totals is None:
        return "an account that is not complete"
    return f"{totals.read:,} records read, {totals.kept:,} documents kept"


def _header(report: Report) -> Html:
    totals = report.totals
    created = max((stage.created for stage in report.stages if stage.created), default="")[:10]
    kinds = ", ".join(
        f"{count} × {kind}" if count > 1 else kind
        for kind, count in Counter(stage.kind for stage in report.stages).items()
    )
    tiles = [] if totals is None else _tiles(report, totals)
    return tag(
        "header",
        tag("p", "Arabic data report", class_="eyebrow"),
        tag("h1", _headline(report)),
        tag("p", f"Stages: {kinds}" + (f" · last finished {created}" if created else ""), class_="muted"),
        tag("dl", tiles, class_="tiles") if tiles else None,
        _banner(report),
        tag("ul", [tag("li", warning) for warning in report.warnings], class_="warnings") if report.warnings else None,
    )


def _tiles(report: Report, totals: Totals) -> list[Html]:
    came = totals.read + totals.read_again
    kept_bytes = sum(report.language_bytes.values()) if report.final_stages else None
    tiles = [
        tile("kept", f"{totals.kept:,}", f"{share(totals.kept, came)} of those read", "kept"),
        tile("duplicates", f"{totals.duplicates:,}", share(totals.duplicates, came), "copy"),
        tile("dropped by filters", f"{totals.dropped:,}", share(totals.dropped, came), "dropped"),
        tile("quarantined", f"{totals.quarantined:,}", share(totals.quarantined, came), "quarantined"),
    ]
    if kept_bytes is not None:
        tiles.append(tile("text kept", size(kept_bytes), f"{kept_bytes:,} bytes", "plain"))
    if totals.tokens is not None:
        count = sum(stage.tokens is not None for stage in report.stages)
        tiles.append(
            tile(
                "tokens",
                f"{totals.tokens:,}",
                f"in {count:,} dataset{'s' * (count != 1)}",
                "plain",
            )
        )
    return tiles


def _banner(report: Report) -> Html:
    totals, failed = report.totals, [check for check in report.checks if check.holds is False]
    if not report.balances:
        return tag(
            "div",
            tag("strong", "THE ACCOUNT DOES NOT BALANCE. "),
            "Don't train on this data before it is known why.",
            _sum(totals),
            tag("ul", [tag("li", f"{check.what}: {check.detail}") for check in failed]),
            class_="banner bad",
            role="alert",
        )
    if totals is None:
        return tag("div", "The account can't be closed: a stage did not record what it read.", class_="banner unsure")
    passed = sum(check.holds is True for check in report.checks)
    return tag(
        "div",
        tag("strong", "The account balances. "),
        "Every record that was read is somewhere:",
        _sum(totals),
        tag("p", f"{passed:,} checks passed; they are listed below.", class_="muted"),
        class_="banner good",
    )


def _sum(totals: Totals | None) -> Html | None:
    if totals is None:
        return None
    came = f"{totals.read:,} read" + (f" + {totals.read_again:,} read once more" if totals.read_again else "")
    sign = "=" if totals.balances else "≠"
    return tag(
        "p",
        f"{came} {sign} {totals.kept:,} kept + {totals.duplicates:,} duplicates + {totals.dropped:,} dropped + "
        f"{totals.quarantined:,} quarantined",
        class_="sum",
    )


def account_section(report: Report, names: Mapping[str, str]) -> Html:
    """The flow, the table of stages, the reasons, the edits and the checks."""
    drawing = flow(report.stages, report.links, names)
    stages = [
        [
            tag("bdi", names[stage.name], title=stage.name),
            stage.kind,
            number(stage.read),
            number(stage.kept),
            share(stage.kept, stage.read),
            *_left(stage),
            size(stage.bytes_read),
            size(stage.bytes_kept),
            number(stage.tokens),
        ]
        for stage in report.stages
    ]
    for row in stages:
        if row[-1] == "not recorded":
            row[-1] = "–"
    head = [
        "stage",
        "kind",
        "read",
        "kept",
        "keep rate",
        "duplicates",
        "dropped",
        "quarantined",
        "text read",
        "text kept",
        "tokens",
    ]
    reasons = [
        [reason, isolated(names[stage.name]), number(count), share(count, stage.read)]
        for stage in report.stages
        for counts in (stage.dropped, stage.quarantined)
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    edits = [
        [what, isolated(names[stage.name]), number(count)]
        for stage in report.stages
        for what, count in sorted(stage.edits.items(), key=lambda item: (-item[1], item[0]))
    ]
    signs = {True: "✓ holds", False: "✗ FAILS", None: "? not recorded"}
    checks = [
        [
            check.what.strip("_"),
            tag("span", signs[check.holds], class_=f"check {_kind_of_check(check.holds)}"),
            check.detail,
        ]
        for check in report.checks
    ]
    return section(
        "account",
        "The account of every record",
        drawing or note("Nothing was recorded to draw the flow from."),
        note("Heights are in proportion to records. What a stage takes out is drawn below it.") if drawing else None,
        table("Stages", head, stages, words=2),
        tag(
            "div",
            table("Why records left", ["reason", "stage", "records", "of those read"], reasons, words=2)
            if reasons
            else None,
            table("What was mended in kept documents", ["edit", "stage", "times"], edits, words=2) if edits else None,
            class_="columns",
        ),
        tag(
            "details",
            tag("summary", f"Checks of the account ({len(checks):,})"),
            table("Checks", ["check", "result", "figures"], checks, words=3),
            open=not report.balances,
        ),
    )


def _kind_of_check(holds: bool | None) -> str:
    return "unsure" if holds is None else "good" if holds else "bad"


def _left(stage: Stage) -> list[str]:
    if stage.read is None:
        return ["not recorded"] * 3
    copies = sum(count for reason, count in stage.dropped.items() if reason in COPIES)
    return [f"{copies:,}", f"{sum(stage.dropped.values()) - copies:,}", f"{sum(stage.quarantined.values()):,}"]

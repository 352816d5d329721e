"""The panels about the artifact store."""

from __future__ import annotations

from tools.dashboard_panels import Panel, bars, ceiling, columns, curve, number


def storage(mine: str) -> list[Panel]:
    """What is stored, how near it is to its quotas, and what the collector removes; ``mine`` chooses institutions."""
    held = f"sum by (institution) (suanli_stored_bytes{{{mine}}})"
    part = f"{held} / (sum by (institution) (suanli_stored_quota_bytes{{{mine}}}) > 0)"
    return [
        curve(
            "Stored",
            "By institution, in full for each that holds it; and what lies in the store, each blob once, as of the last sweep.",
            [(held, "{{institution}}"), ("max(suanli_artifact_store_bytes)", "in the store")],
            "bytes",
            8,
        ),
        bars(
            "Storage quotas in use",
            "The ten nearest to theirs. Above it, no upload and no job is accepted.",
            (f"topk(10, {part})", "{{institution}}"),
            "percentunit",
            ceiling(0.8, 1),
            1,
        ),
        columns(
            "Collected",
            "Bytes removed that nobody held.",
            ("sum(increase(suanli_artifact_collected_bytes_total[$__interval]))", "removed"),
            "bytes",
            8,
        ),
        number(
            "Last sweep",
            "How long ago what nobody holds was last looked for; once a day unless set otherwise.",
            ("time() - max(suanli_artifact_collector_last_run_timestamp_seconds)", "ago"),
            "s",
        ),
    ]

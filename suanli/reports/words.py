"""The words on statements, in English and Chinese: the one table."""

from __future__ import annotations

from typing import Final, Literal

Language = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "zh")

TABLE: Final[dict[str, tuple[str, str]]] = {
    "title": ("Statement of usage", "算力用量结算单"),
    "number": ("Number", "编号"),
    "institution": ("Institution", "机构"),
    "month": ("Month", "账期"),
    "period": ("Period (UTC)", "起止时间（UTC）"),
    "issued": ("Issued (UTC)", "出具时间（UTC）"),
    "status": ("Status", "状态"),
    "currency": ("Currency", "币种"),
    "price_lists": ("Price lists", "价目表"),
    "version": ("version {}", "第 {} 版"),
    "no_prices": ("none: nothing is charged", "无：不计费"),
    "energy": ("Energy (estimate)", "能耗（估算）"),
    "carbon": ("Carbon (estimate)", "碳排放（估算）"),
    "final": ("final", "正式"),
    "provisional": ("provisional", "暂定"),
    # Totals.
    "totals": ("Totals", "汇总"),
    "usage": ("Usage", "用量"),
    "correction": ("Corrections of closed months", "已结账期的更正"),
    "credit": ("Credits", "减免"),
    "free": ("Free allowance", "免费额度"),
    "total": ("Total", "合计"),
    "list_total": ("At list price, before discounts and free allowance", "按目录价（折扣与免费额度之前）"),
    "discounts": ("Discounts included", "其中折扣"),
    "by_resource": ("By resource", "按资源"),
    "held": ("Held", "占用量"),
    "amount": ("Amount", "金额"),
    "amount_in": ("Amount, {}", "金额（{}）"),
    "cpu": ("CPU, core-h", "CPU（核时）"),
    "memory": ("Memory, GiB-h", "内存（GiB·时）"),
    "gpu": ("GPU-h", "GPU（卡时）"),
    # Projects.
    "projects": ("Projects", "项目"),
    "project": ("Project", "项目"),
    "attempts": ("Attempts", "运行次数"),
    "used": ("used", "已用"),
    "efficiency": ("Efficiency: used of held", "利用率：已用占占用量之比"),
    "subtotal": ("Subtotal", "小计"),
    # Chart.
    "by_day": ("Use by day", "每日用量"),
    "cpu_by_day": ("Core-hours held a day", "每日占用核时"),
    "gpu_by_day": ("GPU-hours held a day", "每日占用卡时"),
    "nothing": ("Nothing was used.", "本期无用量。"),
    # Lines.
    "lines": ("Lines", "明细"),
    "line": ("No.", "行号"),
    "of_month": ("Used in", "使用月份"),
    "pool": ("Region / pool", "区域 / 资源池"),
    "accelerator": ("Accelerator", "加速卡"),
    "class": ("Priority", "优先级"),
    "low": ("low", "低"),
    "normal": ("normal", "普通"),
    "high": ("high", "高"),
    "urgent": ("urgent", "紧急"),
    "resource": ("Resource", "资源"),
    "quantity": ("Quantity", "数量"),
    "rate": ("Rate", "价目"),
    "unit_price": ("Price an hour", "时单价"),
    "discount": ("Off", "折扣"),
    "all_projects": ("All projects", "全部项目"),
    # Evidence.
    "evidence": ("Evidence", "核验"),
    "digest": ("Digest (SHA-256)", "摘要（SHA-256）"),
    "head_sequence": ("Newest ledger record", "账本最新记录"),
    "head_hash": ("Its hash", "该记录的哈希"),
    "check_file": ("To check these figures", "核对本单数字"),
    "check_ledger": ("To check the ledger", "核对账本"),
    "page": ("Page {} of {}", "第 {} 页，共 {} 页"),
    # Notes.
    "note_final": (
        "The month is closed: no line of this statement will change. Later facts are corrections of later statements.",
        "本账期已结账，各行不会再变；此后的更正列入后续账期的结算单。",
    ),
    "note_provisional": (
        "The month is not closed: figures may still change. The final statement replaces this one.",
        "本账期尚未结账，数字仍可能变化，以正式结算单为准。",
    ),
    "note_rounding": (
        "Each amount is the exact cost of its line, rounded once, half to even; the total is the sum of the lines.",
        "每行金额由精确费用一次舍入得出（四舍六入五成双），合计为各行金额之和。",
    ),
    "note_held": (
        "Charged is what was held, from grant to release, waiting excluded. Used: CPU time, peak memory × time, and GPU "
        "utilisation × time of the processes.",
        "按占用计费：自分配起至释放止，排队不计。已用为进程的 CPU 时间、内存峰值 × 时间、GPU 利用率 × 时间。",
    ),
    "note_rate": (
        "Rate: price list version / number of the rate in it. * preemptible. Quantities are shown rounded; the JSON and CSV forms have them exactly.",
        "价目：价目表版本 / 其中价目的序号。* 可抢占。数量为显示值，精确值见 JSON 与 CSV 格式。",
    ),
    "note_days": (
        "Days are UTC, as known when this was issued, later corrections included; they are not part of the digest.",
        "日期按 UTC；图示为出具时所知的数据（含其后的更正），不在摘要之内。",
    ),
    "note_energy": (
        "Energy and carbon are estimates from what was held, by the factors of the month's last price list.",
        "能耗与碳排放依占用量按当月末价目表的系数估算。",
    ),
}
"""By name: English, Chinese. ``{}`` stands for what is put in."""


class Words:
    """The words of one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._at = LANGUAGES.index(language)

    def __call__(self, name: str, *values: object) -> str:
        """The words of a name; ``KeyError`` when the table has none."""
        return TABLE[name][self._at].format(*values)

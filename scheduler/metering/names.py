"""The names of all metrics. Dashboards and alerts are built on them: a name, once published, keeps its meaning."""

USAGE_LABELS = ("institution", "project", "region", "pool", "accelerator")
USAGE_CPU = "suanli_usage_cpu_core_seconds_total"
USAGE_GPU = "suanli_usage_gpu_seconds_total"
USAGE_MEMORY = "suanli_usage_memory_gib_seconds_total"
USAGE_COST_LABELS = (*USAGE_LABELS, "currency")
USAGE_COST = "suanli_usage_cost_total"
USAGE_SERVICE_UNITS = "suanli_usage_service_units_total"
ADJUSTED_COST_LABELS = (*USAGE_COST_LABELS, "direction")
ADJUSTED_COST = "suanli_ledger_adjusted_cost_total"
ADJUSTMENTS = "suanli_ledger_adjustments_total"
OPEN_CPU = "suanli_usage_open_cpu_core_seconds"
OPEN_GPU = "suanli_usage_open_gpu_seconds"
OPEN_MEMORY = "suanli_usage_open_memory_gib_seconds"
USED_LABELS = ("institution", "project", "region", "pool")
USED_CPU = "suanli_used_cpu_core_seconds_total"
USED_GPU = "suanli_used_gpu_seconds_total"

BUDGET_LABELS = ("budget", "institution", "unit")
BUDGET_AMOUNT = "suanli_budget_amount"
BUDGET_SPENT = "suanli_budget_spent"
BUDGET_COMMITTED = "suanli_budget_committed"
BUDGET_HARD = "suanli_budget_hard"
BUDGET_END = "suanli_budget_end_timestamp_seconds"

LEDGER_LAST_SEQUENCE = "suanli_ledger_last_sequence"
LEDGER_CHAIN_OK = "suanli_ledger_chain_ok"
LEDGER_RECONCILE_DIFFERENCE = "suanli_ledger_reconcile_difference"
LEDGER_LAST_VERIFIED = "suanli_ledger_last_verified_timestamp_seconds"
EVENT_LAST_SEQUENCE = "suanli_event_last_sequence"
LEADER_EPOCH = "suanli_leader_epoch"
POLICY_VERSION = "suanli_policy_version"
PREDICTION_ERROR = "suanli_runtime_prediction_error_octaves"
PREDICTION_COVERAGE = "suanli_runtime_prediction_p90_coverage"

JOBS = "suanli_jobs"
REGION_UP = "suanli_region_up"
REGION_ACTIVE_ATTEMPTS = "suanli_region_active_attempts"
POOL_NODES = "suanli_pool_nodes"
POOL_NODES_DRAINING = "suanli_pool_nodes_draining"
POOL_CAPACITY = "suanli_pool_capacity"
POOL_ALLOCATED = "suanli_pool_allocated"
QUOTA_LIMIT = "suanli_quota_limit"
QUOTA_IN_USE = "suanli_quota_in_use"

JOB_WAIT = "suanli_job_wait_seconds"
PLAN_ROUND = "suanli_plan_round_seconds"
PLAN_STARTS = "suanli_plan_starts_total"
EVICTIONS = "suanli_evictions_total"
COMMIT = "suanli_commit_seconds"
COMMIT_ROWS = "suanli_commit_rows_total"
RPC_LATENCY = "suanli_rpc_seconds"
RPC_STREAMS = "suanli_rpc_open_streams"

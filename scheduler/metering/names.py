"""The names of all metrics. Dashboards and alerts are built on them: a name, once published, keeps its meaning."""

USAGE_LABELS = ("institution", "project", "region", "pool", "accelerator")
USAGE_CPU = "suanli_usage_cpu_core_seconds_total"
USAGE_GPU = "suanli_usage_gpu_seconds_total"
USAGE_MEMORY = "suanli_usage_memory_gib_seconds_total"

LEDGER_LAST_SEQUENCE = "suanli_ledger_last_sequence"
EVENT_LAST_SEQUENCE = "suanli_event_last_sequence"
LEADER_EPOCH = "suanli_leader_epoch"
POLICY_VERSION = "suanli_policy_version"

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
COMMIT = "suanli_commit_seconds"
COMMIT_ROWS = "suanli_commit_rows_total"
RPC_LATENCY = "suanli_rpc_seconds"
RPC_STREAMS = "suanli_rpc_open_streams"

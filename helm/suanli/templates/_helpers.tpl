{{- define "suanli.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Names below get suffixes of up to 22 characters and must stay within 63. */}}
{{- define "suanli.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "suanli.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "suanli.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "suanli.selectorLabels" -}}
app.kubernetes.io/name: {{ include "suanli.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "suanli.labels" -}}
{{ include "suanli.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: suanli
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "suanli.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest | quote }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) | quote }}
{{- end -}}
{{- end -}}

{{- define "suanli.controlPlane.serviceAccountName" -}}
{{- with .Values.controlPlane.serviceAccount -}}
{{- if .create -}}
{{- default (printf "%s-control-plane" (include "suanli.fullname" $)) .name -}}
{{- else -}}
{{- default "default" .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "suanli.agent.serviceAccountName" -}}
{{- with .Values.region.agent.serviceAccount -}}
{{- if .create -}}
{{- default (printf "%s-agent" (include "suanli.fullname" $)) .name -}}
{{- else -}}
{{- default "default" .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The identity of Ray nodes whose jobs run in pods of their own: it may make those pods. */}}
{{- define "suanli.workers.serviceAccountName" -}}
{{- with .Values.region.pods.serviceAccount -}}
{{- if .create -}}
{{- default (printf "%s-workers" (include "suanli.fullname" $)) .name -}}
{{- else -}}
{{- default "default" .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether the jobs of a pool run in pods of their own. */}}
{{- define "suanli.runsInPods" -}}
{{- eq (dig "tier" "" (default dict .isolation)) "pod" -}}
{{- end -}}

{{/* Whether any pool's do. */}}
{{- define "suanli.anyInPods" -}}
{{- $any := false -}}
{{- if .Values.region.enabled -}}
{{- range .Values.region.pools -}}
{{- if eq (include "suanli.runsInPods" .) "true" -}}{{- $any = true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $any -}}
{{- end -}}

{{/* A quantity of processors in thousandths. */}}
{{- define "suanli.milliCores" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | float64 | floor | int64 -}}
{{- else -}}
{{- mulf ($text | float64) 1000 | floor | int64 -}}
{{- end -}}
{{- end -}}

{{/* A quantity of memory in mebibytes, rounded down. */}}
{{- define "suanli.mebibytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $bytes := dict "" 1 "m" 0.001 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- divf (mulf ($number | float64) (get $bytes $unit | float64)) 1048576 | floor | int64 -}}
{{- end -}}

{{/* KubeRay derives names of Services and pods from the cluster's, so it is kept short. */}}
{{- define "suanli.rayCluster" -}}
{{- printf "%s-ray" (include "suanli.fullname" .) -}}
{{- end -}}

{{- define "suanli.agent.controlPlane" -}}
{{- if .Values.region.agent.controlPlane -}}
{{- .Values.region.agent.controlPlane -}}
{{- else if .Values.controlPlane.enabled -}}
{{- printf "%s-control-plane.%s.svc:%d" (include "suanli.fullname" .) .Release.Namespace (int .Values.controlPlane.service.port) -}}
{{- else -}}
{{- fail "region.agent.controlPlane (host:port) is required when controlPlane.enabled is false" -}}
{{- end -}}
{{- end -}}

{{/* What every pod of ours runs as: a fixed unprivileged user; the group owns the volumes. */}}
{{- define "suanli.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "suanli.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "suanli.artifactsEnvFrom" -}}
{{- with .Values.artifacts.existingSecret }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end -}}

{{- define "suanli.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "suanli.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What head and workers share. KubeRay's own probes ask the dashboard, which is off; ours ask Ray's ports. */}}
{{- define "suanli.rayContainer" -}}
image: {{ include "suanli.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  - { name: HOME, value: /var/lib/suanli }
  - { name: RAY_USAGE_STATS_ENABLED, value: "0" }
  # Jobs descend from a Ray worker, which would hand down its niceness of 15.
  - { name: RAY_worker_niceness, value: "0" }
  {{- if .inPods }}
  - name: SUANLI_POD_NAME
    valueFrom: { fieldRef: { fieldPath: metadata.name } }
  - name: SUANLI_POD_NAMESPACE
    valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
  {{- end }}
{{- include "suanli.artifactsEnvFrom" .root | nindent 0 }}
readinessProbe:
  tcpSocket: { port: {{ .probePort }} }
  initialDelaySeconds: 5
  periodSeconds: 5
livenessProbe:
  tcpSocket: { port: {{ .probePort }} }
  initialDelaySeconds: 60
  periodSeconds: 10
  failureThreshold: 12
resources:
  {{- toYaml .resources | nindent 2 }}
securityContext:
  {{- include "suanli.containerSecurityContext" .root | nindent 2 }}
volumeMounts:
  - { name: state, mountPath: /var/lib/suanli }
  - { name: tmp, mountPath: /tmp }
{{- end -}}

{{/* Labels of a pool's Ray nodes: what the agent finds the pool by, and what jobs may select on. */}}
{{- define "suanli.poolLabels" -}}
suanli.io/pool: {{ .name }}
{{- with .acceleratorType }}
ray.io/accelerator-type: {{ . | quote }}
{{- end }}
{{- range $key, $value := .labels }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* What only a leader tells, and every leader alike; the rest is a process' own. docs/howto/dashboards.md has it too. */}}
{{- define "suanli.platformMetrics" -}}
suanli_(audit|budget|event|jobs|ledger|policy|pool|quota|region|runtime_prediction|stored|usage|used)(_.+)?
{{- end -}}

{{/* Where the agent shows its certificate; empty: nowhere. */}}
{{- define "suanli.agent.agentsAddress" -}}
{{- if .Values.region.agent.agentsAddress -}}
{{- .Values.region.agent.agentsAddress -}}
{{- else if and .Values.controlPlane.enabled .Values.controlPlane.agents.enabled (not .Values.region.agent.controlPlane) -}}
{{- printf "%s-control-plane.%s.svc:%d" (include "suanli.fullname" .) .Release.Namespace (int .Values.controlPlane.agents.port) -}}
{{- else if .Values.region.agent.certificate.existingSecret -}}
{{- fail "region.agent.agentsAddress (host:port) is required with region.agent.certificate.existingSecret" -}}
{{- end -}}
{{- end -}}
